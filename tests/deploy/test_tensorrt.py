"""Files for TensorRT: the rules of its parser, and the values of training."""

import networks
import numpy as np
import onnx
import pytest
import torch
from exported_networks import calibrated, calibrated_by, outputs, run, session, spread
from onnx import TensorProto, numpy_helper
from onnx_reference import evaluator

import qdeploy
from qdeploy.benchmark import open_session
from qdeploy.deploy.target import find_target
from qdeploy.deploy.targets.tensorrt import coarser_steps
from qdeploy.errors import QdeployError

FILES = {
    "8 bits": ("residual", "simqat w8a8"),
    "3 and 4 bits": ("plain", "simqat w3a4"),
    "symmetric": ("residual", "simqat w5a6"),
}


def for_tensorrt(prepared, folder, **options):
    path = folder / "trt.onnx"
    qdeploy.export(prepared, path, networks.images(2), target="tensorrt", **options)
    return onnx.load(path)


@pytest.fixture(scope="module", params=FILES)
def made(request, tmp_path_factory):
    """A prepared network and its file."""
    name, settings = FILES[request.param]
    prepared = calibrated(networks.build(name), settings)
    return prepared, for_tensorrt(prepared, tmp_path_factory.mktemp("trt"))


def constants(proto):
    return {tensor.name: tensor for tensor in proto.graph.initializer}


def refused(proto):
    """What TensorRT's ONNX parser refuses, by the checks in its importers of Q/DQ and Clip."""
    tensors = constants(proto)
    on_codes = {n.output[0] for n in proto.graph.node if n.op_type == "QuantizeLinear"}
    for node in proto.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            if on_codes & set(node.input):
                yield f"{node.op_type} on codes"
            if any(n in tensors and tensors[n].data_type == TensorProto.UINT8 for n in node.input):
                yield f"{node.op_type} of uint8"
            continue
        data, scale, *zeros = node.input
        if not zeros:
            yield "codes without a zero point"
            continue
        (zero,) = zeros
        if numpy_helper.to_array(tensors[zero]).any():
            yield "a zero point other than 0"
        if tensors[zero].data_type != TensorProto.INT8:
            yield "codes that are not int8"
        scales = numpy_helper.to_array(tensors[scale])
        if not (scales > 0).all():
            yield "a scale that is not positive"
        if scales.size != numpy_helper.to_array(tensors[zero]).size:
            yield "other numbers of scales and zero points"
        if scales.ndim and scales.size != tensors[data].dims[0]:
            yield "other numbers of scales and channels"
        if data in tensors and tensors[data].data_type != TensorProto.INT8:
            yield "constants that are not int8"


def test_the_parser_takes_it(made):
    assert list(refused(made[1])) == []


def test_the_file_for_the_cpu_is_what_it_refuses(tmp_path):
    prepared = calibrated(networks.build("plain"), "simqat w3a4")
    path = qdeploy.export(prepared, tmp_path / "m.onnx", networks.images(2))
    found = set(refused(onnx.load(path)))
    assert found >= {"a zero point other than 0", "codes that are not int8", "Clip on codes"}


def test_weights_are_int8_and_biases_float(made):
    tensors = constants(made[1])
    layers = [node for node in made[1].graph.node if node.op_type in ("Conv", "Gemm")]
    makers = {node.output[0]: node for node in made[1].graph.node}
    for layer in layers:
        weight = makers[layer.input[1]]
        assert tensors[weight.input[0]].data_type == TensorProto.INT8
        assert tensors[layer.input[2]].data_type == TensorProto.FLOAT


def test_weights_have_the_values_of_training(made):
    """But one step of a channel that folding mirrored, where 128 has no code."""
    prepared, proto = made
    tensors = constants(proto)
    rows = [
        n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in tensors
    ]
    found = {}
    for row in rows:
        codes, scale, _ = (numpy_helper.to_array(tensors[name]) for name in row.input)
        column = (-1, *[1] * (codes.ndim - 1))
        found.setdefault(codes.shape, []).append((codes * scale.reshape(column), scale.max()))
    for _, layer in prepared.quantized_layers():
        expected = layer.integers()[0]
        values, step = expected.dequantize().numpy(), expected.scale.numpy()
        differences = [np.abs(v - values).max() / step.max() for v, _ in found[values.shape]]
        assert min(differences) < 1.01


@torch.no_grad()
def test_it_computes_nearly_what_training_evaluates(made):
    prepared, proto = made
    x = networks.images(64)
    trained = outputs(prepared, x)
    found = run(proto, x)
    exact = coarser_steps(qdeploy.convert(prepared))[0] == 0
    assert (found.argmax(1) == trained.argmax(1)).mean() >= 0.9
    assert np.abs(found - trained).max() < (0.3 if exact else 0.4) * spread(trained)


class TestExactGrids:
    """Where codes less their zero point fit int8, the values are those of training."""

    def activations(self, proto, x):
        """What stands behind each DequantizeLinear of an activation, in unfused ONNX Runtime."""
        tensors = constants(proto)
        names = [
            node.output[0]
            for node in proto.graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] not in tensors
        ]
        shown = onnx.ModelProto.FromString(proto.SerializeToString())
        shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in names)
        runtime = session(shown, plain=True)
        return runtime.run(names, {"input": x.numpy()})

    def test_seven_bits_of_what_is_never_negative(self, tmp_path):
        prepared = calibrated_by(networks.build("plain"), "simqat", 8, 7)
        proto = for_tensorrt(prepared, tmp_path)
        # The image has both signs and 8 bits; the two ReLUs have 7.
        assert coarser_steps(qdeploy.convert(prepared)) == (1, 3)
        for node in proto.graph.node:
            assert node.op_type != "Clip", "int8 ends at 127 by itself"
        cpu = onnx.load(qdeploy.export(prepared, tmp_path / "cpu.onnx", networks.images(2)))
        steps = [
            {round(float(numpy_helper.to_array(constants(p)[n.input[1]])), 9)
             for n in p.graph.node if n.op_type == "QuantizeLinear"}
            for p in (proto, cpu)
        ]  # fmt: skip
        assert len(steps[0] & steps[1]) == 2

    def test_symmetric_ranges_saturate_where_training_does(self, tmp_path):
        prepared = calibrated_by(networks.build("plain"), "simqat", 8, 6, act_symmetric=True)
        converted = qdeploy.convert(prepared)
        assert coarser_steps(converted) == (0, 3)
        proto = for_tensorrt(prepared, tmp_path)
        cpu = onnx.load(qdeploy.export(prepared, tmp_path / "cpu.onnx", networks.images(2)))
        far = 20 * networks.images(16)  # far outside of what was calibrated
        pairs = zip(self.activations(proto, far), self.activations(cpu, far), strict=True)
        for found, wanted in pairs:
            assert (found.min(), found.max()) == pytest.approx((wanted.min(), wanted.max()))
        np.testing.assert_allclose(run(proto, far), outputs(prepared, far), rtol=1e-3, atol=1e-2)


def test_signs_are_those_of_training(tmp_path):
    network = networks.Network(
        lambda self, x: self.fc(self.norm(self.stem(x)).flatten(1)),
        stem=networks.conv(), norm=torch.nn.BatchNorm2d(6), fc=torch.nn.Linear(384, 5),
    )  # fmt: skip
    prepared = calibrated_by(network, "xnor", 1, 1, layers={"stem": "float"})
    proto = for_tensorrt(prepared, tmp_path)
    assert list(refused(proto)) == []
    assert any(node.op_type == "Where" for node in proto.graph.node)
    x = networks.images(32)
    np.testing.assert_allclose(run(proto, x), outputs(prepared, x), rtol=1e-3, atol=1e-3)


class TestRefusals:
    def test_sixteen_bits(self, tmp_path):
        prepared = calibrated_by(networks.build("plain"), "dorefa", 16, 16)
        with pytest.raises(
            QdeployError, match=r"8 bits at most, and .* has 16: train with act_bits"
        ):
            for_tensorrt(prepared, tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_weights_with_a_zero_point_that_int8_lacks(self, tmp_path):
        prepared = calibrated_by(
            networks.build("plain"), "simqat", weight_symmetric=False, reduce_range=False
        )
        with pytest.raises(QdeployError, match="weights of int8 without a zero point"):
            for_tensorrt(prepared, tmp_path)

    def test_a_target_that_is_not_there(self, tmp_path):
        with pytest.raises(
            QdeployError, match="no target 'tpu'; choose one of cpu, litert, openvino, tens"
        ):
            qdeploy.export(
                networks.build("plain"), tmp_path / "m", networks.images(2), target="tpu"
            )


def pooled_sequence():
    layers = torch.nn.Conv1d(3, 6, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool1d(1)
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(6, 5))


def linear_over_sequences():
    return torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 5))


# Neither loads between signed codes as it is exported for others: a Linear as rows of one matrix, a pool as
# one over images of height 1.
@pytest.mark.parametrize(
    ("make", "shape"),
    [(linear_over_sequences, (16, 4, 8)), (pooled_sequence, (16, 3, 8))],
    ids=["linear", "pool"],
)
def test_a_network_of_sequences_loads_and_computes(make, shape, tmp_path):
    torch.manual_seed(0)
    network, x = make(), torch.randn(shape)
    prepared = qdeploy.prepare(network.eval(), x[:2], "simqat", act_symmetric=True)
    qdeploy.calibrate(prepared, [x])
    path = qdeploy.export(prepared, tmp_path / "m.onnx", x[:2], target="tensorrt")
    found = session(onnx.load(path)).run(None, {"input": x.numpy()})[0]
    with torch.no_grad():
        wanted = prepared.eval()(x).numpy()
    np.testing.assert_allclose(found, wanted, atol=0.01 * np.abs(wanted).max())


def test_the_proof_runs_the_file_as_it_is_written(made, tmp_path):
    """By onnx's own evaluator. ONNX Runtime alone rounds the float biases, since 1.23."""
    _, proto = made
    x = networks.images(4).numpy()
    proven = open_session(
        proto.SerializeToString(), "cpu", as_written=find_target("tensorrt").as_written
    )
    expected = evaluator(proto).run(None, {"input": x})[0]
    np.testing.assert_allclose(proven.run(x), expected, rtol=1e-4, atol=1e-4 * spread(expected))
