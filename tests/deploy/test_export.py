"""The file: valid, stock operators only, small, fused into integer kernels, and right."""

import math

import numpy as np
import onnx
import onnx.compose
import onnxruntime
import pytest
import torch
from exported_networks import (
    SETTINGS,
    calibrated,
    export,
    exported,
    operators,
    optimized,
    outputs,
    run,
    session,
    spread,
)
from networks import NETWORKS, Network, build, conv, images
from onnx_reference import evaluator
from torch import nn

import qdeploy
from qdeploy.deploy import passes
from qdeploy.deploy.export import finished, to_onnx
from qdeploy.deploy.names import PRODUCTS
from qdeploy.deploy.seal import Seal, seal, state
from qdeploy.errors import QdeployError
from qdeploy.layers.integer import IntegerLayer
from qdeploy.models.lenet5 import lenet5
from qdeploy.models.resnet import resnet20
from qdeploy.proof.description import describe, information_bound

FILES = [(name, "simqat w8a8") for name in NETWORKS] + [
    ("residual", "slb w1a8"), ("residual", "simqat w3a4"), ("inverted_residual", "simqat w3a4"),
    ("shuffled", "slb w2a8"), ("branches", "simqat w5a6"), ("squeeze_excite", "slb w4a8"),
    ("plain", "simqat w3a4"), ("hard_swish", "simqat w3a4"), ("called_twice", "slb w1a8"),
    ("residual", "simqat w5a6"),
]  # fmt: skip
every_file = pytest.mark.parametrize(("name", "settings"), FILES)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("residual", ["stem.0", "conv1", "conv2", "projection", "same.0", "fc"]),
        ("called_twice", ["stem.0", "shared", "shared (2)", "fc"]),
    ],
)
def test_products_are_called_after_their_layers(name, layers):
    file = exported(name, "slb w1a8")
    for proto in (file.packed, file.int8):
        found = [node.name for node in proto.graph.node if node.op_type in PRODUCTS]
        assert sorted(found) == sorted(layers)


@every_file
def test_the_file_computes_what_training_evaluates(name, settings):
    file, x = exported(name, settings), images(64)
    integer = outputs(file.converted, x)
    found = run(file.packed, x)
    # A float operator between integer tensors may tip a code over, by processor.
    assert np.abs(found - integer).max() < 0.05 * spread(integer)
    trained = outputs(file.prepared, x)
    few_steps = min(SETTINGS[settings][1:3]) < 8 and "slb" not in settings
    # Where rounding comes last, one value on a tie moves an output by a whole step.
    steps = 0.1 if name in ("hard_swish", "up_and_down") else 0.04
    assert np.abs(found - trained).max() < (0.6 if few_steps else steps) * spread(trained)
    assert (found.argmax(1) == trained.argmax(1)).mean() >= (0.9 if few_steps else 0.95)


@every_file
def test_the_file_is_valid_and_plain(name, settings):
    proto = exported(name, settings).packed
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    (opset,) = proto.opset_import
    assert (opset.domain, proto.ir_version) == ("", 7 if opset.version < 15 else 8)
    assert opset.version <= 18, "what years-old runtimes read"
    assert {node.domain for node in proto.graph.node} == {""}
    assert len(proto.functions) == 0
    keys = [entry.key for entry in proto.metadata_props]
    assert keys == ["qdeploy.network", "qdeploy.sha256"]
    assert [i.name for i in proto.graph.input] == ["input"]
    assert [o.name for o in proto.graph.output] == ["logits"]


@every_file
def test_nothing_in_the_file_is_for_debugging(name, settings):
    proto = exported(name, settings).packed
    graph = proto.graph
    holders = (graph, *graph.node, *graph.initializer, *graph.input, *graph.output)
    assert not any(getattr(holder, "doc_string", "") for holder in (proto, *holders))
    assert not any(len(holder.metadata_props) for holder in holders)
    assert len(graph.value_info) == 0
    assert not any(node.name for node in graph.node if node.op_type not in PRODUCTS)
    assert not any(
        a.name in ("block_size", "saturate") for node in graph.node for a in node.attribute
    )
    names = [name for node in graph.node for name in node.output]
    assert all(len(name) <= 2 or name == "logits" for name in names)


@every_file
def test_the_batch_is_free(name, settings):
    file = exported(name, settings)
    runtime = session(file.packed)
    whole = runtime.run(None, {"input": images(17).numpy()})[0]
    assert len(whole) == 17
    for size in (1, 3):
        part = runtime.run(None, {"input": images(17)[:size].numpy()})[0]
        np.testing.assert_allclose(part, whole[:size], atol=1e-5)


INTEGER = {
    "residual": {"QLinearConv": 5, "QLinearAdd": 2, "QGemm": 1, "QLinearGlobalAveragePool": 1},
    "branches": {"QLinearConv": 4, "QLinearConcat": 2, "QGemm": 1},
    "inverted_residual": {"QLinearConv": 4, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1},
    "shuffled": {"QLinearConv": 3, "QLinearConcat": 2, "QLinearGlobalAveragePool": 1},
    "average_pooled": {"QLinearConv": 2, "QLinearAveragePool": 2, "QGemm": 1},
    "plain": {"QLinearConv": 1, "QGemm": 2},
    "vector": {"QGemm": 2},
    "signal": {"QLinearConv": 1, "QGemm": 1},
    "called_twice": {"QLinearConv": 3, "QGemm": 1},
}
FLOAT = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "Add", "Concat"}


@pytest.mark.parametrize(("name", "settings"), [f for f in FILES if f[0] in INTEGER])
def test_onnx_runtime_makes_integer_kernels_of_it(name, settings, tmp_path):
    found = operators(optimized(exported(name, settings).packed, tmp_path))
    assert {kind: found[kind] for kind in INTEGER[name]} == INTEGER[name]
    # Older versions of torch put the sizes of a view together in the file.
    of_sizes = {"Concat"} if found["Shape"] else set()
    assert not set(found) & FLOAT - of_sizes
    # What layers of fewer bits and an Add both read is rounded a second time for the layers.
    narrowed = name in ("residual", "inverted_residual") and SETTINGS[settings][2] < 8
    assert found["DequantizeLinear"] == narrowed
    assert found["QuantizeLinear"] == 1 + narrowed  # the image


@pytest.mark.parametrize("name", ["pre_activation", "squeeze_excite", "hard_swish", "up_and_down"])
def test_layers_beside_float_operators_are_integer_too(name, tmp_path):
    found = operators(optimized(exported(name, "simqat w8a8").packed, tmp_path))
    assert found["QLinearConv"] == {
        "pre_activation": 6, "squeeze_excite": 4, "hard_swish": 2, "up_and_down": 3,
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "settings"),
    [("plain", "simqat w3a4"), ("residual", "slb w1a8"), ("shuffled", "slb w2a8")],
)
def test_onnx_itself_computes_the_same_as_the_unfused_file(name, settings):
    file, x = exported(name, settings), images(4).numpy()
    expected = evaluator(file.packed).run(None, {"input": x})[0]
    np.testing.assert_allclose(run(file.packed, x, plain=True), expected, rtol=1e-3, atol=2e-3)


def test_activations_of_few_bits_saturate_at_their_bits():
    file, x = exported("plain", "simqat w3a4"), 6 * images(32)
    assert operators(file.packed)["Clip"] == 2
    trained = outputs(file.prepared, x)
    assert np.abs(run(file.packed, x) - trained).max() < 0.05 * spread(trained)
    unclipped = onnx.ModelProto.FromString(file.packed.SerializeToString())
    for node in unclipped.graph.node:
        if node.op_type == "Clip":
            node.op_type = "Identity"
            del node.input[1:]
    assert np.abs(run(unclipped, x) - trained).max() > 0.5 * spread(trained)


def test_float_activations_leave_packed_weights_and_nothing_else(tmp_path):
    network = build("residual")
    prepared = qdeploy.prepare(network, images(2), "slb", 1, "float").eval()
    proto = export(prepared).packed
    x = images(32)
    np.testing.assert_allclose(run(proto, x), outputs(prepared, x), rtol=1e-3, atol=1e-3)
    assert operators(proto)["QuantizeLinear"] == 0
    # Unpacked once, at load: none of it is left for a run.
    found = operators(optimized(proto, tmp_path))
    assert found["FusedConv"] + found["Conv"] == 5
    left = set(found) - {"Conv", "FusedConv", "Gemm", "GlobalAveragePool", "Reshape", "Add", "Relu"}
    assert left <= {"ReorderInput", "ReorderOutput"}, left


def outlier(weight):
    """Rounded to eight bits with 40 in it, nothing of the rest would be left."""
    with torch.no_grad():
        weight.flatten(1)[:, 0] = 40


BESIDE_FLOAT = {
    "conv": (lambda: conv(6, 6), "float_layer"),
    "conv and norm": (lambda: nn.Sequential(conv(6, 6), nn.BatchNorm2d(6)), "float_layer.0"),
    "depthwise": (lambda: conv(6, 6, groups=6), "float_layer"),
    "transposed": (lambda: nn.ConvTranspose2d(6, 6, 3, padding=1), "float_layer"),
    "linear": (
        lambda: nn.Sequential(nn.Flatten(1), nn.Linear(384, 384), nn.Unflatten(1, (6, 8, 8))),
        "float_layer.1",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "glob"), BESIDE_FLOAT.values(), ids=BESIDE_FLOAT)
def test_a_float_layer_between_integer_tensors_stays_float(make, glob, monkeypatch):
    torch.manual_seed(2)  # in front of the weights too: what ran before must not choose them
    layer = make()
    outlier(next(p for p in layer.parameters() if p.ndim > 1))
    network = Network(
        lambda self, x: self.fc((self.float_layer(y := self.stem(x)) + y).relu().flatten(1)),
        stem=nn.Sequential(conv(), nn.ReLU()), float_layer=layer, fc=nn.Linear(384, 5),
    )  # fmt: skip
    prepared = calibrated(network, layers={glob: "float"} if glob else None)
    x = images(32)
    trained = outputs(prepared, x)
    others = [p for p in passes.BEFORE_PACKING if p is not passes.guard_float_layers]
    assert len(others) == len(passes.BEFORE_PACKING) - 1
    monkeypatch.setattr(passes, "BEFORE_PACKING", others)
    graph = to_onnx(qdeploy.convert(prepared), x)
    unguarded = finished(graph, True, {})
    passes.guard_float_layers(graph)
    guarded = finished(graph, True, {})
    error = np.abs(run(guarded, x) - trained).max()
    assert error < 0.005 * spread(trained)
    assert np.abs(run(unguarded, x) - trained).max() > max(2 * error, 0.005 * spread(trained))


def test_first_and_last_in_float_are_float_in_the_file(tmp_path):
    prepared = calibrated(build("residual"), "slb w1a8", first_last_float=True)
    file, x = export(prepared), images(32)
    found = operators(optimized(file.packed, tmp_path))
    assert found["QLinearConv"] == 4
    assert found["Gemm"] + found["FusedGemm"] == 1
    trained = outputs(prepared, x)
    assert np.abs(run(file.packed, x) - trained).max() < 0.03 * spread(trained)


def test_a_plain_float_network_exports_and_is_left_alone(tmp_path):
    network = build("residual").train()
    path = qdeploy.export(network, tmp_path / "float.onnx", images(1))
    assert all(module.training for module in network.modules())
    found = run(onnx.load(path), images(8))
    np.testing.assert_allclose(found, outputs(network.eval(), images(8)), rtol=1e-3, atol=1e-4)


def test_export_writes_what_to_onnx_and_finished_give(tmp_path):
    file = exported("residual", "slb w1a8")
    prepared = file.prepared.train()
    path = qdeploy.export(prepared, tmp_path / "a.onnx", images(2))
    assert prepared.training
    prepared.eval()
    assert onnx.load(path).graph == file.packed.graph
    path = qdeploy.export(file.converted, str(tmp_path / "b.onnx"), images(2), packing=False)
    assert onnx.load(path).graph == file.int8.graph
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_the_output_is_called_logits_whatever_makes_it():
    network = Network(lambda self, x: self.conv(x).mean((2, 3)), conv=conv())
    prepared = calibrated(network)
    proto = export(prepared).packed
    assert [o.name for o in proto.graph.output] == ["logits"]
    assert operators(proto)["GlobalAveragePool"] == operators(proto)["Flatten"] == 1
    np.testing.assert_allclose(run(proto, images(8)), outputs(prepared, images(8)), atol=0.02)


def test_metadata_travels_in_the_file(tmp_path):
    path = qdeploy.export(
        exported("vector", "simqat w8a8").converted, tmp_path / "a.onnx", images(2),
        metadata={"classes": "a,b"},
    )  # fmt: skip
    proto = onnx.load(path)
    assert {p.key: p.value for p in proto.metadata_props}["classes"] == "a,b"
    assert proto.producer_name == "qdeploy"


def unexportable(self, x):
    return torch.special.bessel_j0(self.conv(x)).flatten(1)


def test_a_network_that_torch_cannot_export_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    prepared = calibrated(Network(unexportable, conv=conv()))
    with pytest.raises(QdeployError, match=r"torch\.onnx cannot export"):
        qdeploy.export(prepared, path, images(2))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("prepared_first", [False, True])
def test_bytes_are_refused_with_the_way_to_a_file_that_takes_them(prepared_first, tmp_path):
    network = build("residual").eval()
    network = calibrated(network) if prepared_first else network
    pixels = (255 * torch.rand(2, 3, 8, 8)).to(torch.uint8)
    with pytest.raises(QdeployError, match=r"not torch.uint8 \[2, 3, 8, 8\].*uint8_input"):
        qdeploy.export(network, tmp_path / "model.onnx", pixels)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("prepared_first", [False, True])
@pytest.mark.parametrize(
    ("given", "named"),
    [
        (torch.zeros(2, 5, 8, 8), r"torch.float32 \[2, 5, 8, 8\]"),  # 5 channels, not 3
        (torch.zeros(2, 3), r"torch.float32 \[2, 3\]"),
        ((images(2), images(2)), r"torch.float32 \[2, 3, 8, 8\], torch.float32 \[2, 3, 8, 8\]"),
    ],
)
def test_an_example_input_that_does_not_fit_is_named(given, named, prepared_first, tmp_path):
    network = build("residual").eval()
    network = calibrated(network) if prepared_first else network
    with pytest.raises(QdeployError, match=f"does not take an example input of {named}"):
        qdeploy.export(network, tmp_path / "model.onnx", given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("where", "way_out"),
    [
        ("missing/model.onnx", "choose another output folder"),
        ("file/model.onnx", "choose another output folder"),
        ("folder", "it is a folder; give the name of a file"),
    ],
)
def test_nothing_is_written_where_it_cannot_be(where, way_out, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(QdeployError, match=f"cannot write .*{way_out}"):
        qdeploy.export(exported("vector", "simqat w8a8").converted, tmp_path / where, images(2))
    assert sorted(tmp_path.rglob("*")) == before


def bound_by_hand(integers, bits):
    """log2(levels in use) x weights / 8, which is not above their bits, and 4 for each scale and bias."""
    codes = [m.codes for m in integers.modules() if isinstance(m, IntegerLayer)]
    levels = [len(found.unique()) for found in codes]
    assert max(levels) <= 2**bits
    sizes = (found.numel() * math.log2(n) / 8 for found, n in zip(codes, levels, strict=True))
    return sum(map(math.ceil, sizes)) + 8 * sum(map(len, codes)), len(codes)


def sizes(build_network, shape, method, bits, options):
    torch.manual_seed(0)
    network, x = build_network(), torch.randn(2, *shape)
    prepared = qdeploy.prepare(network, x, method, bits, 8, **options)
    qdeploy.calibrate(prepared, [x])
    integers = qdeploy.convert(prepared)
    size = finished(to_onnx(integers, x), True, {}).ByteSize()
    bound, layers = bound_by_hand(integers, bits)
    assert information_bound(integers, describe(integers, ())) == bound
    return size, bound * 8 / 7 if bits == 8 else bound, layers  # codes of 7 bits lie there as 8


SLB = {"linear": True}
WIDTHS = [
    ("slb", 1, SLB), ("slb", 2, SLB), ("simqat", 3, {}), ("slb", 4, SLB), ("simqat", 8, {}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "bits", "options"), WIDTHS)
def test_lenet_is_as_small_as_its_bits(method, bits, options):
    size, bound, layers = sizes(lenet5, (1, 28, 28), method, bits, options)
    assert bound < size <= 1.05 * bound + 1500 * layers


@pytest.mark.parametrize(("method", "bits", "options"), [WIDTHS[0], WIDTHS[2]])
def test_resnet_is_as_small_as_its_bits(method, bits, options):
    size, bound, layers = sizes(resnet20, (3, 32, 32), method, bits, options)
    assert layers == 23
    assert bound < size <= 1.05 * bound + 1500 * layers


def test_a_tensor_of_which_only_the_size_is_asked_is_not_in_the_file(tmp_path):
    def forward(self, x):
        y = self.stem(x)
        return self.last(
            nn.functional.interpolate(y, size=self.other(x).shape[2:]) / y[0, 0].numel()
        )

    network = Network(forward, stem=conv(), other=nn.Conv2d(3, 2, 3, 2), last=conv(6, 2)).eval()
    prepared = qdeploy.prepare(network, images(2), "simqat")
    qdeploy.calibrate(prepared, [images()])
    file = qdeploy.export(prepared, tmp_path / "model.onnx", images(2))
    assert qdeploy.validate(prepared, file, [images()]).exactness.differing == 0


def test_onnx_runtime_saves_it_in_its_own_format_with_fusions_left_to_load(tmp_path):
    """`convert_onnx_models_to_ort --optimization_style Runtime`: the integer kernels of each processor."""
    proto = exported("residual", "slb w1a8").packed
    saved = tmp_path / "model.ort"
    settings = {
        "session.save_model_format": "ORT",
        "optimization.minimal_build_optimizations": "save",
    }
    session(proto, saved, settings=settings)
    loaded = onnxruntime.InferenceSession(str(saved), providers=["CPUExecutionProvider"])
    found = loaded.run(None, {"input": images(8).numpy()})[0]
    np.testing.assert_allclose(found, run(proto, images(8)), rtol=1e-6, atol=1e-6)


def test_two_files_become_one_without_their_metadata(tmp_path):
    """As docs/compatibility.md says: both have a hash of their own, and the opset that they need."""
    first = exported("residual", "slb w1a8").packed
    second = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float[N, 5] input) => (float[N, 5] logits)'
        "{ logits = Softmax (input) }"
    )
    seal(second)
    joined = {"io_map": [("logits", "input")], "prefix1": "first/", "prefix2": "second/"}
    copies = [onnx.ModelProto.FromString(one.SerializeToString()) for one in (first, second)]
    for copy in copies:
        copy.opset_import[0].version, copy.ir_version = 21, 10
    with pytest.raises(ValueError, match="metadata"):
        onnx.compose.merge_models(*copies, **joined)
    for copy in copies:
        del copy.metadata_props[:]
    merged = onnx.compose.merge_models(*copies, **joined)
    onnx.checker.check_model(merged, full_check=True)
    x = images(8).numpy()
    found = session(merged).run(None, {"first/input": x})[0]
    logits = torch.from_numpy(run(first, x))
    np.testing.assert_allclose(found, logits.softmax(1), rtol=1e-5, atol=1e-6)
    assert state(merged, tmp_path) is Seal.NONE
