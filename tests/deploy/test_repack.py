"""`qdeploy pack`: the same codes in fewer bytes, for files of every tool, judged by ONNX Runtime."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxsim
import pytest
from artifact_files import exported_bytes
from click.testing import CliRunner
from exported_networks import operators, optimized
from networks import build, images
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process

import qdeploy
from qdeploy.benchmark.graph import Graph
from qdeploy.cli import main
from qdeploy.deploy.inspect import inspect
from qdeploy.deploy.packing import Digits, Windows
from qdeploy.deploy.repack import pack_weights, repack
from qdeploy.deploy.seal import Seal, state
from qdeploy.errors import QdeployError
from qdeploy.onnx_file import read

sys.path.append(str(Path(__file__).parents[2] / "tools"))

from static_quantization import quantized_statically

RNG = np.random.default_rng(0)
TERNARY = RNG.choice([-63, 0, 63], (40, 8, 3, 3)).astype(np.int8)
X = RNG.integers(0, 256, (2, 8, 6, 6)).astype(np.uint8)


def few_levels(shape, kind):
    low = -8 if np.dtype(kind).kind == "i" else 120
    return (low + RNG.integers(0, 5, shape)).astype(kind)


def by_hand(nodes, constants, opset=13, ir_version=8, inputs=()):
    """A model from "x", uint8 [2, 8, 6, 6], to "y"."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [2, 8, 6, 6]), *inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list("nchw"))],
        [
            value if isinstance(value, TensorProto) else numpy_helper.from_array(value, name)
            for name, value in constants.items()
        ],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def dequantized_conv(weight, opset=13, **options):
    """x and weights through DequantizeLinear into a Conv whose output is quantized again."""
    channels = weight.shape[0]
    per_channel = opset >= 13
    scales = np.linspace(0.01, 0.02, channels).astype(np.float32)
    constants = {
        "w": weight,
        "sx": np.float32(0.1), "zx": np.uint8(128), "sy": np.float32(5), "zy": np.uint8(120),
        "sw": scales if per_channel else np.float32(0.01),
        "zw": np.zeros(channels if per_channel else (), weight.dtype),
    }  # fmt: skip
    axis = {"axis": 0} if per_channel else {}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "sx", "zx"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], **axis),
        helper.make_node("Conv", ["xd", "wd"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "sy", "zy"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "sy", "zy"], ["y"]),
    ]
    return by_hand(nodes, constants, opset, **options)


def on_codes(weight):
    """QLinearConv, and QLinearMatMul on what it gives."""
    constants = {
        "w": weight, "v": few_levels((4, 60), np.int8), "sx": np.float32(0.1), "zx": np.uint8(128),
        "sw": np.full(len(weight), 0.01, np.float32), "zw": np.zeros(len(weight), weight.dtype),
        "sv": np.float32(0.1), "zv": np.int8(0), "sy": np.float32(5), "zy": np.uint8(120),
    }  # fmt: skip
    outer = ["sy", "zy"]
    nodes = [
        helper.make_node("QLinearConv", ["x", "sx", "zx", "w", "sw", "zw", *outer], ["c"]),
        helper.make_node("QLinearMatMul", ["c", *outer, "v", "sv", "zv", *outer], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "sy", "zy"], ["y"]),
    ]
    return by_hand(nodes, constants)


def without_scales(weight):
    """ConvInteger, and MatMulInteger of the input with other weights."""
    constants = {
        "w": weight, "v": few_levels((6, 400), np.uint8),
        "zx": np.uint8(128), "zv": np.uint8(121), "zw": np.zeros((), weight.dtype),
    }  # fmt: skip
    nodes = [
        helper.make_node("ConvInteger", ["x", "w", "zx", "zw"], ["c"]),
        helper.make_node("MatMulInteger", ["x", "v", "zx", "zv"], ["m"]),
        helper.make_node("ReduceSum", ["m"], ["r"], keepdims=0),
        helper.make_node("Add", ["c", "r"], ["s"]),
        helper.make_node("Cast", ["s"], ["y"], to=TensorProto.FLOAT),
    ]
    return by_hand(nodes, constants)


def four_bits():
    kind = TensorProto.INT4
    weight = helper.make_tensor("w", kind, [6, 800], RNG.choice([-1, 1], 4800).tolist())
    zero = helper.make_tensor("zw", kind, [800], [0] * 800)
    nodes = [
        helper.make_node("Cast", ["x"], ["xf"], to=TensorProto.FLOAT),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xf", "wd"], ["y"]),
    ]
    return by_hand(
        nodes, {"w": weight, "zw": zero, "sw": np.full(800, 0.5, np.float32)}, 21, ir_version=10
    )


def in_a_constant_node():
    proto = dequantized_conv(TERNARY)
    weight = proto.graph.initializer[0]
    assert weight.name == "w"
    node = helper.make_node("Constant", [], ["w"], value=weight)
    del proto.graph.initializer[0]
    nodes = [node, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def in_branches():
    """One branch reads a weight of the main graph, the other one has its own."""
    main_graph = dequantized_conv(TERNARY).graph
    inner = main_graph.node[1:3]
    branches = []
    for name in ("w", "own"):
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in inner]
        nodes[0].input[0], nodes[0].output[0], nodes[1].input[1] = name, f"d_{name}", f"d_{name}"
        nodes[1].output[0] = f"c_{name}"
        output = helper.make_tensor_value_info(f"c_{name}", TensorProto.FLOAT, list("nchw"))
        own = [numpy_helper.from_array(few_levels(TERNARY.shape, np.int8), "own")]
        branches.append(helper.make_graph(nodes, name, [], [output], own if name == "own" else []))
    nodes = [
        main_graph.node[0],
        helper.make_node("ReduceMax", ["xd"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "sx"], ["b"]),
        helper.make_node("If", ["b"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    return by_hand(nodes, {tensor.name: tensor for tensor in main_graph.initializer})


CASES = {
    "int8": lambda: dequantized_conv(TERNARY),
    "uint8": lambda: dequantized_conv(few_levels(TERNARY.shape, np.uint8)),
    "uint8, five bits": lambda: dequantized_conv(
        RNG.integers(100, 120, TERNARY.shape).astype(np.uint8)
    ),
    "opset 11": lambda: dequantized_conv(TERNARY, 11),
    "opset 23": lambda: dequantized_conv(TERNARY, 23, ir_version=11),
    "on codes": lambda: on_codes(TERNARY),
    "without scales": lambda: without_scales(few_levels(TERNARY.shape, np.uint8)),
    "four bits": four_bits,
    "in a Constant node": in_a_constant_node,
    "in branches": in_branches,
}


def outputs(proto, x=X):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def packed_copy(proto, count=None):
    packed = onnx.ModelProto.FromString(proto.SerializeToString())
    found = pack_weights(packed)
    assert found == count or (count is None and found)
    onnx.checker.check_model(packed, full_check=True)
    return packed


class TestFilesByHand:
    @pytest.mark.parametrize("case", CASES)
    def test_smaller_bit_equal_and_on_the_same_kernels(self, case, tmp_path):
        proto = CASES[case]()
        packed = packed_copy(proto)
        assert packed.ByteSize() < 0.9 * proto.ByteSize()
        np.testing.assert_array_equal(outputs(packed), outputs(proto))
        kernels = operators(optimized(proto, tmp_path))
        assert operators(optimized(packed, tmp_path)) == kernels
        assert case == "four bits" or kernels.keys() & {"QLinearConv", "ConvInteger", "If"}
        assert pack_weights(packed) == 0

    def test_weights_keep_their_names_and_codes(self):
        packed = packed_copy(dequantized_conv(TERNARY), 1)
        assert "w" not in {tensor.name for tensor in packed.graph.initializer}
        np.testing.assert_array_equal(Graph(packed, Path()).array("w"), TERNARY)

    def test_new_names_are_free_ones(self):
        content = in_branches().SerializeToString()
        for old, new in {"xd": "p0", "sw": "p1", "zw": "p2", "c_w": "p10", "own": "p11"}.items():
            content = content.replace(old.encode(), new.encode())
        proto = onnx.ModelProto.FromString(content)
        packed = packed_copy(proto, 2)
        branch = packed.graph.node[-1].attribute[1].g
        assert {"p0", "p10"} < {node.output[0] for g in (packed.graph, branch) for node in g.node}
        np.testing.assert_array_equal(outputs(packed), outputs(proto))

    def test_what_a_caller_may_replace_stays(self):
        given = helper.make_tensor_value_info("w", TensorProto.INT8, TERNARY.shape)
        assert pack_weights(dequantized_conv(TERNARY, inputs=[given])) == 0

    def test_an_opset_without_range_is_told_to_rise(self):
        with pytest.raises(QdeployError, match=r"opset 10, .* from opset 11 on"):
            pack_weights(dequantized_conv(TERNARY, 10, ir_version=5))
        wide = RNG.integers(-128, 128, TERNARY.shape).astype(np.int8)
        assert pack_weights(dequantized_conv(wide, 10, ir_version=5)) == 0


@pytest.fixture(scope="module")
def float_file(tmp_path_factory):
    """A Conv and two Linear layers whose weights take five levels, before any tool quantizes them."""
    network = build("plain").eval()
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.sign() * (parameter.data.abs() > 0.05)
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    return qdeploy.export(network, path, images(2))


class TestFilesOfOtherTools:
    @pytest.fixture(params=["quantize_static", "quantize_dynamic"])
    def file(self, request, float_file, tmp_path):
        path = tmp_path / "theirs.onnx"
        if request.param == "quantize_static":
            return quantized_statically(float_file, path, [[images(32).numpy()]])
        quant_pre_process(float_file, tmp_path / "ready.onnx", skip_symbolic_shape=True)
        quantize_dynamic(tmp_path / "ready.onnx", path, per_channel=False)
        return path

    def test_the_same_outputs_of_the_same_kernels(self, file, tmp_path, monkeypatch):
        for packing in (Digits, Windows):  # so small a network does not earn what packing costs
            monkeypatch.setattr(packing, "file_size", lambda self, count: count // 2)
            monkeypatch.setattr(packing, "shared_size", 0)
        x = images(33).numpy()
        found = repack(file, tmp_path / "packed.onnx")
        before, after = onnx.load(file), onnx.load(found.file)
        assert (found.weights, found.seal) == (3, Seal.CHANGED)  # the float file was ours
        np.testing.assert_array_equal(outputs(after, x), outputs(before, x))
        assert operators(optimized(after, tmp_path)) == operators(optimized(before, tmp_path))
        assert {e.key: e.value for e in after.metadata_props} == {
            e.key: e.value for e in before.metadata_props
        }


@pytest.fixture(scope="module")
def ours():
    """A file whose weights are worth packing: as exported, and with its codes as int8."""
    x = images(48, seed=7)
    prepared = qdeploy.prepare(build("residual"), x[:2], "slb", 1, 8)
    prepared.set_progress(9, 10)
    qdeploy.calibrate(prepared, x.split(16))
    prepared.eval()
    return exported_bytes(prepared), exported_bytes(prepared, packing=False)


class TestOurOwnFiles:
    @pytest.fixture
    def path(self, ours, tmp_path):
        path = tmp_path / "model.onnx"
        path.write_bytes(ours[1])
        return path

    def test_what_a_simplifier_unpacked_is_packed_again(self, ours, tmp_path):
        path = tmp_path / "model.onnx"
        simplified, _ = onnxsim.simplify(onnx.ModelProto.FromString(ours[0]))
        del simplified.graph.value_info[:]
        if operators(simplified)["Gather"]:
            pytest.skip("this onnxsim leaves the weights packed")
        onnx.save(simplified, path)
        contents = inspect(path)
        assert contents.saving > 500
        found = repack(path, path)
        assert abs(contents.saving - (found.before - found.after)) < 150
        (tmp_path / "before.onnx").write_bytes(ours[0])
        before, again = inspect(tmp_path / "before.onnx"), inspect(path)
        assert abs(before.weight_bytes - again.weight_bytes) < 100
        assert (again.saving, again.seal) == (0, Seal.CHANGED)
        np.testing.assert_array_equal(
            outputs(onnx.load(path), images(9).numpy()),
            outputs(onnx.ModelProto.FromString(ours[0]), images(9).numpy()),
        )

    def test_what_onnx_runtime_saved_reads_as_what_it_was_made_of(self, ours, tmp_path):
        path = tmp_path / "model.onnx"
        path.write_bytes(ours[0])
        made = onnx.ModelProto.FromString(ours[0])
        (tmp_path / "saved.onnx").write_bytes(optimized(made, tmp_path).SerializeToString())
        repack(tmp_path / "saved.onnx", tmp_path / "saved.onnx")
        before, after = inspect(path).layers, inspect(tmp_path / "saved.onnx").layers
        assert {layer.operator for layer in after} == {"QLinearConv", "QGemm"}
        read_before, read_after = (
            {layer.shape: (layer.weight, layer.activation) for layer in layers}
            for layers in (before, after)
        )
        assert len(read_before) == len(before)  # ONNX Runtime may order them anew
        assert read_after == read_before
        assert not any(layer.unknown for layer in after)

    def test_an_exported_file_has_nothing_to_gain(self, ours, tmp_path):
        path = tmp_path / "model.onnx"
        path.write_bytes(ours[0])
        assert inspect(path).saving == 0
        assert repack(path, tmp_path / "other.onnx").weights == 0
        assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]

    def test_a_whole_file_is_sealed_anew_with_its_metadata(self, path):
        before = {e.key: e.value for e in read(path).metadata_props}
        repack(path, path)
        assert state(read(path), path.parent) is Seal.WHOLE
        after = {e.key: e.value for e in read(path).metadata_props}
        assert list(after) == list(before)
        assert after != before

    def test_a_changed_weight_stays_found_out(self, path):
        proto = onnx.load(path)
        weight = next(t for t in proto.graph.initializer if len(t.dims) == 4)
        weight.raw_data = weight.raw_data[:-1] + bytes([weight.raw_data[-1] ^ 2])
        onnx.save(proto, path)
        assert repack(path, path).weights
        assert state(read(path), path.parent) is Seal.CHANGED

    def test_changed_metadata_stay_found_out(self, path):
        proto = onnx.load(path)
        proto.metadata_props.add(key="owner", value="they")
        onnx.save(proto, path)
        assert repack(path, path).weights
        assert state(read(path), path.parent) is Seal.METADATA

    def test_weights_beside_the_file(self, path, ours):
        onnx.save(
            onnx.load(path), path, save_as_external_data=True, location="w.bin", size_threshold=100
        )
        assert state(read(path), path.parent) is Seal.WHOLE
        expected = path.stat().st_size + (path.parent / "w.bin").stat().st_size
        found = repack(path, path.with_name("packed.onnx"))
        assert (found.before, found.unread) == (expected, ()), "the first file reads them still"
        assert state(read(found.file), path.parent) is Seal.WHOLE
        x = images(9).numpy()
        np.testing.assert_array_equal(
            outputs(onnx.load(found.file), x), outputs(onnx.ModelProto.FromString(ours[1]), x)
        )
        (path.parent / "w.bin").unlink()
        with pytest.raises(QdeployError, match=r"w\.bin"):
            repack(path, path)


class TestTheCommand:
    @staticmethod
    def printed(*arguments, code=0):
        result = CliRunner().invoke(main, [*map(str, arguments)])
        assert result.exit_code == code, result.output
        return result.output.replace("\n", " ")

    def test_in_place_or_elsewhere(self, ours, tmp_path):
        path, other = tmp_path / "model.onnx", tmp_path / "packed.onnx"
        path.write_bytes(ours[1])
        text = self.printed("pack", path, "-o", other)
        assert f"{len(ours[1]):,} -> {other.stat().st_size:,} bytes" in text
        assert "sealed anew" in text
        assert path.read_bytes() == ours[1]
        self.printed("pack", path)
        assert path.read_bytes() == other.read_bytes()
        assert "nothing was written" in self.printed("pack", path)

    def test_inspect_names_it_and_what_the_seal_says(self, ours, tmp_path):
        path = tmp_path / "my model.onnx"
        path.write_bytes(ours[1])
        text = " ".join(self.printed("inspect", path).split())
        assert "not packed: 1." in text
        proto = onnx.ModelProto.FromString(ours[1])
        proto.metadata_props.add(key="owner", value="they")
        onnx.save(proto, path)
        text = " ".join(self.printed("inspect", path).split())
        assert "METADATA CHANGED since qdeploy wrote it: added owner" in text
        del proto.metadata_props[:]
        onnx.save(proto, path)
        text = " ".join(self.printed("inspect", path, code=3).split())
        assert "LOST" in text
        assert "was unpacked: 1." in text
        assert "qdeploy pack '" in text
        assert "not sealed anew" in self.printed("pack", path)
        self.printed("inspect", path, code=3)

    def test_bad_files_and_opsets_are_told(self, tmp_path):
        path = tmp_path / "notes.txt"
        path.write_text("no network\n" * 50)
        assert "is no ONNX file" in self.printed("pack", path, code=1)

    def test_it_needs_neither_torch_nor_onnx_runtime(self, ours, tmp_path):
        path = tmp_path / "model.onnx"
        path.write_bytes(ours[1])
        code = f"""
import sys
sys.modules["torch"] = sys.modules["onnxruntime"] = None  # importing them raises ImportError
from qdeploy.cli import main
main(["pack", {str(path)!r}])
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert path.stat().st_size < len(ours[1])


class TestWeightsBesideTheFile:
    @pytest.fixture
    def beside(self, tmp_path):
        weight = np.random.default_rng(0).choice([-1, 1], (64, 128)).astype(np.int8)
        model = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 13]> g (float[N, 64] x) => (float[N, 128] y)'
            "<float s = {0.5}, int8 z = {0}, int8[64, 128] w>"
            "{d = DequantizeLinear(w, s, z) y = MatMul(x, d)}"
        )
        held = [t for t in model.graph.initializer if t.name != "w"]
        del model.graph.initializer[:]
        model.graph.initializer.extend([*held, numpy_helper.from_array(weight, "w")])
        path = tmp_path / "m.onnx"
        onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=64)
        return path

    def test_another_output_leaves_the_file_and_its_weights(self, beside, tmp_path):
        packed = repack(beside, tmp_path / "packed.onnx")
        assert packed.weights == 1
        assert packed.unread == ()
        onnx.load(beside)

    def test_in_place_they_are_read_no_longer(self, beside):
        assert [file.name for file in repack(beside, beside).unread] == ["w.data"]

    def test_they_are_no_output(self, beside, tmp_path):
        with pytest.raises(QdeployError, match=r"w.data holds weights of .*m.onnx; choose another"):
            repack(beside, tmp_path / "w.data")
        onnx.load(beside)
