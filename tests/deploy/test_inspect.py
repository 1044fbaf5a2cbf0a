"""What `qdeploy inspect` says, against the network that was exported and against NumPy."""

import json
import subprocess
import sys

import networks
import numpy as np
import onnx
import pytest
from artifact_files import by_hand, exported_bytes, model
from click.testing import CliRunner
from onnx import helper

import qdeploy
from qdeploy.benchmark.graph import Graph
from qdeploy.cli import main
from qdeploy.deploy.inspect import inspect
from qdeploy.deploy.seal import Seal
from qdeploy.errors import QdeployError
from qdeploy.layers.activation import ActivationQuantizer


def inspected(content, folder):
    path = folder / "m.onnx"
    path.write_bytes(content)
    return inspect(path)


@pytest.fixture(scope="module")
def prepared():
    x = networks.images(48, seed=7)
    prepared = qdeploy.prepare(networks.build("plain"), x[:2], "simqat", 3, 4)
    qdeploy.calibrate(prepared, x.split(16))
    return prepared.eval()


def test_bits_codes_and_scales_are_those_of_the_network(prepared, tmp_path):
    found = inspected(exported_bytes(prepared), tmp_path).layers
    layers = [layer for _, layer in prepared.quantized_layers()]
    assert [layer.shape for layer in found] == [layer.integers()[0].codes.shape for layer in layers]
    for row, layer in zip(found, layers, strict=True):
        weight, _ = layer.integers()
        values = weight.dequantize()
        low, high = row.weight.codes
        assert row.weight.bits == int(np.ceil(np.log2(len(np.unique(weight.codes)))))
        ratio = weight.codes.max() / high  # codes are spread, values stay
        np.testing.assert_allclose(row.weight.scales[1], weight.scale.max() * ratio, rtol=1e-6)
        assert values.max() <= (high - low) * row.weight.scales[1]
    assert [row.activation.bits for row in found] == [8, 4, 4]
    quantizers = [m for m in prepared.modules() if isinstance(m, ActivationQuantizer)]
    scales = [quantizer.qparams()[0].item() for quantizer in quantizers]
    for row in found:
        assert any(np.isclose(row.activation.scales[0], scale) for scale in scales)


def test_bounds_in_front_of_quantizers_are_bounds_of_codes(prepared, tmp_path):
    """For TensorRT they are taken of float values."""
    rows = inspected(exported_bytes(prepared, target="tensorrt"), tmp_path).layers
    assert [row.activation.bits for row in rows] == [8, 4, 4]


def test_a_packed_file_says_what_its_int8_twin_does(prepared, tmp_path):
    x = networks.images(48, seed=7)
    wide = qdeploy.prepare(networks.build("residual"), x[:2], "slb", 1, 8)
    qdeploy.calibrate(wide, x.split(16))
    packed = inspected(exported_bytes(wide.eval()), tmp_path).layers
    plain = inspected(exported_bytes(wide, packing=False), tmp_path).layers
    assert {row.stored for row in packed} == {"int8", "uint8"}
    assert {row.stored for row in plain} == {"int8"}
    for one, other in zip(packed, plain, strict=True):
        assert one.weight == other.weight
        count = int(np.prod(one.shape))
        assert other.bytes == count
        assert one.bytes == (-(-count // 8) if one.stored == "uint8" else count)
    assert [row.weight.bits for row in packed[:-1]] == [1] * 5


def test_weights_beside_float_activations(tmp_path):
    prepared = qdeploy.prepare(networks.build("plain"), networks.images(2), "slb", 1, "float")
    rows = inspected(exported_bytes(prepared.eval()), tmp_path).layers
    assert [row.activation for row in rows] == [None] * 3
    assert rows[0].weight.bits == 1
    assert rows[0].weight.channels == rows[0].shape[0]


def test_a_float_file(tmp_path):
    rows = inspected(exported_bytes(networks.build("plain").eval()), tmp_path).layers
    assert [(row.weight, row.activation, row.stored) for row in rows] == [
        (None, None, "float32")
    ] * 3
    assert [row.bytes for row in rows] == [4 * int(np.prod(row.shape)) for row in rows]


class TestFilesOfOtherTools:
    def test_qat_with_a_quantizer_on_float_weights(self, tmp_path):
        weight = np.linspace(-1, 1, 8 * 27, dtype=np.float32).reshape(8, 3, 3, 3)
        nodes = [
            helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            helper.make_node("Conv", ["x", "d"], ["y"], name="first"),
        ]
        constants = {"w": weight, "s": np.float32(0.5), "z": np.int8(0)}
        found = inspected(by_hand(nodes, constants).SerializeToString(), tmp_path)
        (row,) = found.layers
        assert (row.name, row.stored, row.activation) == ("first", "float32", None)
        assert (row.weight.codes, row.weight.bits) == ((-2, 2), 3)
        assert found.seal is Seal.NONE
        assert found.producer == "another tool"
        assert found.recipe == found.origin == {}

    def test_operators_on_codes(self, tmp_path):
        constants = {
            "sx": np.float32(0.1), "zx": np.uint8(3), "w": np.arange(-108, 108, dtype=np.int8)
            .reshape(8, 3, 3, 3), "sw": np.full(8, 0.25, np.float32), "zw": np.zeros(8, np.int8),
            "sy": np.float32(1), "zy": np.uint8(0),
        }  # fmt: skip
        names = ["x", "sx", "zx", "w", "sw", "zw", "sy", "zy"]
        nodes = [
            helper.make_node("QLinearConv", names, ["c"]),
            helper.make_node("DequantizeLinear", ["c", "sy", "zy"], ["y"]),
        ]
        proto = by_hand(nodes, constants, onnx.TensorProto.UINT8)
        (row,) = inspected(proto.SerializeToString(), tmp_path).layers
        assert (row.weight.bits, row.weight.codes, row.weight.channels) == (8, (-108, 107), 8)
        assert row.activation.zeros == (3, 3)
        assert row.activation.type == "uint8"

    @pytest.mark.parametrize("opset", [10, 13, 17, 19, 21, 23])
    def test_constants_of_every_opset_are_computed(self, opset, tmp_path):
        """Scales of channels are there from opset 13 on."""
        codes = np.arange(-4, 4, dtype=np.int8).repeat(27).reshape(8, 3, 3, 3)
        scales = np.float32(0.5) if opset < 13 else np.linspace(0.5, 2, 8, dtype=np.float32)
        axis = {} if opset < 13 else {"axis": 0}
        nodes = [
            helper.make_node("Reshape", ["flat", "shape"], ["codes"]),
            helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["w"], **axis),
            helper.make_node("Conv", ["x", "w"], ["y"]),
        ]
        constants = {
            "flat": codes.ravel(), "shape": np.array(codes.shape), "s": scales,
            "z": np.zeros_like(scales, np.int8),
        }  # fmt: skip
        proto = by_hand(nodes, constants)
        proto.opset_import[0].version = opset
        (row,) = inspected(proto.SerializeToString(), tmp_path).layers
        assert (row.shape, row.weight.bits, row.weight.codes) == ((8, 3, 3, 3), 3, (-4, 3))
        found = Graph(proto, tmp_path).array("w")
        expected = codes * np.broadcast_to(scales, 8).reshape(8, 1, 1, 1)
        np.testing.assert_array_equal(found, expected)

    def test_a_constant_that_onnx_cannot_compute_is_named(self, tmp_path):
        nodes = [
            helper.make_node("MaxRoiPool", ["w", "r"], ["c"], pooled_shape=[3, 3]),
            helper.make_node("Conv", ["x", "c"], ["y"]),
        ]
        constants = {"w": np.ones((8, 3, 6, 6), np.float32), "r": np.zeros((8, 5), np.float32)}
        with pytest.raises(QdeployError, match="cannot compute the constant c, which a MaxRoiPool"):
            inspected(by_hand(nodes, constants).SerializeToString(), tmp_path)

    @pytest.mark.parametrize(
        "bound",
        [
            helper.make_node("Clip", ["x", "low", "six"], ["v"]),  # ReLU6: values, not codes
            helper.make_node("Clip", ["x", "low"], ["v"]),
            helper.make_node("Where", ["mask", "x", "low"], ["v"]),
        ],
        ids=["relu6", "one bound", "mask"],
    )
    def test_bounds_of_float_values_are_none_of_codes(self, bound, tmp_path):
        nodes = [
            bound,
            helper.make_node("QuantizeLinear", ["v", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            helper.make_node("Conv", ["d", "w"], ["y"]),
        ]
        constants = {
            "low": np.float32(0), "six": np.float32(6), "s": np.float32(6 / 255),
            "z": np.uint8(0), "w": np.ones((8, 3, 3, 3), np.float32),
            "mask": np.ones((1, 3, 8, 8), bool),
        }  # fmt: skip
        (row,) = inspected(by_hand(nodes, constants).SerializeToString(), tmp_path).layers
        assert (row.activation.bits, row.activation.codes) == (8, (0, 255))

    @pytest.mark.parametrize(("kind", "codes"), [("UINT4", (0, 15)), ("INT16", (-32768, 32767))])
    def test_codes_of_other_widths(self, kind, codes, tmp_path):
        zero = helper.make_tensor("z", onnx.TensorProto.DataType.Value(kind), [], [0])
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            helper.make_node("Conv", ["d", "w"], ["y"], name="layer"),
        ]
        constants = {"s": np.float32(1), "w": np.ones((8, 3, 3, 3), np.float32)}
        proto = by_hand(nodes, constants)
        proto.graph.initializer.append(zero)
        (row,) = inspected(proto.SerializeToString(), tmp_path).layers
        assert (row.activation.type, row.activation.codes) == (kind.lower(), codes)

    def test_weights_in_narrow_floats_have_no_codes(self, tmp_path):
        kind = onnx.TensorProto.FLOAT8E4M3FN
        nodes = [
            helper.make_node("DequantizeLinear", ["w", "s"], ["d"]),
            helper.make_node("Conv", ["x", "d"], ["y"]),
        ]
        proto = by_hand(nodes, {"s": np.float32(1)})
        weight = helper.make_tensor("w", kind, [8, 3, 3, 3], [0.5] * 216)
        proto.graph.initializer.append(weight)
        (row,) = inspected(proto.SerializeToString(), tmp_path).layers
        assert (row.weight, row.stored) == (None, "float8e4m3fn")

    def test_integer_products_without_scales(self, tmp_path):
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("ConvInteger", ["q", "w", "z", "zw"], ["c"]),
            helper.make_node("Cast", ["c"], ["y"], to=onnx.TensorProto.FLOAT),
        ]
        constants = {
            "w": np.arange(-8, 208).astype(np.uint8).reshape(8, 3, 3, 3) % 16, "zw": np.uint8(8),
        }  # fmt: skip
        (row,) = inspected(by_hand(nodes, constants).SerializeToString(), tmp_path).layers
        assert (row.name, row.weight.bits, row.weight.zeros) == ("ConvInteger 1", 4, (8, 8))
        assert row.weight.scales is None
        assert "scales of ConvInteger" in row.unknown
        assert CliRunner().invoke(main, ["inspect", str(tmp_path / "m.onnx")]).exit_code == 0

    def test_weights_in_typed_fields_count(self, tmp_path):
        proto = by_hand([helper.make_node("Conv", ["x", "w"], ["y"])], {})
        values = helper.make_tensor("w", onnx.TensorProto.FLOAT, [8, 3, 3, 3], [1.0] * 216)
        assert not values.raw_data
        proto.graph.initializer.append(values)
        assert inspected(proto.SerializeToString(), tmp_path).weight_bytes == 4 * 216

    def test_what_is_not_known_is_said(self, tmp_path):
        node = helper.make_node(
            "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=8, N=4, bits=4
        )
        constants = {"w": np.zeros((4, 1, 4), np.uint8), "s": np.ones(4, np.float32)}
        proto = by_hand([node], constants, domains=("", "com.microsoft"))
        (row,) = inspected(proto.SerializeToString(), tmp_path).layers
        assert row.unknown == "bits and scales of com.microsoft::MatMulNBits"
        printed = CliRunner().invoke(main, ["inspect", str(tmp_path / "m.onnx")]).output
        assert "not known" in printed
        assert "no hash in the file" in printed


class TestTheCommand:
    def test_it_prints_layers_and_shapes(self, tmp_path):
        path = tmp_path / "m.onnx"
        path.write_bytes(model())
        result = CliRunner().invoke(main, ["inspect", str(path)])
        assert result.exit_code == 0
        assert "whole: its SHA-256 is the one written in it" in result.output
        assert "input: float32 [batch, 3, 8, 8]" in result.output
        assert "6x3x3x3" in result.output

    def test_json_is_all_of_it(self, tmp_path):
        path = tmp_path / "m.onnx"
        path.write_bytes(model())
        found = json.loads(CliRunner().invoke(main, ["inspect", str(path), "--json"]).output)
        assert found["bytes"] == len(model())
        assert (found["seal"], found["intact"]) == ("whole", True)
        assert [layer["shape"] for layer in found["layers"]] == [[6, 3, 3, 3], [7, 54], [5, 7]]

    def test_a_changed_file_ends_with_1(self, tmp_path):
        path = tmp_path / "m.onnx"
        content = bytearray(model())
        tensor = onnx.ModelProto.FromString(model()).graph.initializer[0]
        content[content.index(tensor.raw_data)] ^= 2
        path.write_bytes(content)
        result = CliRunner().invoke(main, ["inspect", str(path)])
        assert result.exit_code == 1
        assert "CHANGED since qdeploy wrote it" in result.output

    def test_what_is_no_network(self, tmp_path):
        path = tmp_path / "notes.txt"
        path.write_text("no network\n" * 50)
        result = CliRunner().invoke(main, ["inspect", str(path)])
        assert result.exit_code == 1
        assert "notes.txt is no ONNX file" in result.output
        with pytest.raises(QdeployError, match="cannot read"):
            inspect(tmp_path / "absent.onnx")

    def test_it_needs_no_torch(self, tmp_path):
        path = tmp_path / "m.onnx"
        path.write_bytes(model())
        code = f"""
import sys
sys.modules["torch"] = None  # importing it raises ImportError
from qdeploy.benchmark.graph import Graph
from qdeploy.cli import main
main(["inspect", r"{path}"])
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "7x54" in done.stdout
