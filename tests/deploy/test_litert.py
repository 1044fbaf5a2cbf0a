"""LiteRT files against ONNX Runtime. What writes or runs them is skipped where LiteRT is not installed."""

import sys
from collections import Counter

import networks
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported_networks import calibrated_by
from networks import Network, conv
from onnx import numpy_helper
from torch import nn

import qdeploy
from qdeploy.deploy.targets import litert
from qdeploy.errors import QdeployError

IMAGES = networks.images(64).numpy()
WIDTHS = {"w8a8": ("simqat", 8, 8), "w4a4": ("lsq", 4, 4), "w4": ("simqat", 4, "float")}


@pytest.fixture
def flatbuffer():
    return pytest.importorskip("ai_edge_litert.schema_py_generated")


def export(folder, network, width="w8a8", **options):
    """The ONNX file and the LiteRT file."""
    prepared = calibrated_by(network, *WIDTHS[width])
    made = qdeploy.export(
        prepared, folder / "m.tflite", networks.images(2), target="litert", **options
    )
    assert made == folder / "m.tflite"
    return folder / "m.onnx", made


def in_onnx_runtime(path, images):
    """With weights uint8 at load, since pairs of products of int8 may saturate without VNNI."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    model = with_cut_weights(onnx.load(path)).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": images})[0]


def with_cut_weights(model):
    """The 128 of a channel that folding mirrored is 127, since LiteRT's weights have no zero point."""
    tensors = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors:
            codes, _, zero = (numpy_helper.to_array(tensors[name]) for name in node.input)
            if codes.dtype == np.int8 and codes.ndim > 1:
                zero = zero.reshape(-1, *[1] * (codes.ndim - 1))
                cut = np.minimum(codes, (zero.astype(int) + 127).clip(max=127).astype(np.int8))
                tensors[node.input[0]].CopyFrom(numpy_helper.from_array(cut, node.input[0]))
    return model


def assert_equal(expected, found):
    """But for floats that kernels add in another order, so that a near-tie rounds the other way."""
    assert found.shape == expected.shape
    apart = np.abs(expected - found).reshape(len(found), -1).max(1) / expected.std()
    equal = (apart < 1e-4).mean()
    assert equal >= 0.9, f"{equal:.0%} equal, {apart.max()} apart"


def padded_pools():
    """Windows whose padding is not LiteRT's, two outputs a channel, an image flattened channel by channel."""
    return nn.Sequential(
        conv(), nn.MaxPool2d(3, 2, 1), nn.ReLU(),
        nn.Conv2d(6, 12, 3, padding=1, groups=6), nn.AvgPool2d(3, 2, 1), nn.Flatten(), nn.Linear(48, 5),
    )  # fmt: skip


def turned():
    """Rows and columns change places, and channels come to the front."""
    return Network(
        lambda self, x: self.fc(self.conv(x.transpose(2, 3)).permute(0, 2, 1, 3).flatten(1)),
        conv=conv(), fc=nn.Linear(384, 5),
    )  # fmt: skip


def below_zero():
    """Codes that all stand for values below 0, and end below their zero point."""
    return nn.Sequential(conv(), nn.Hardtanh(-3, -0.1), conv(6, 5), nn.Flatten())


OF_ITS_OWN = {"padded_pools": padded_pools, "turned": turned, "below_zero": below_zero}


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("residual", "w8a8"), ("residual", "w4a4"), ("residual", "w4"), ("inverted_residual", "w4a4"),
        ("shuffled", "w4a4"), ("squeeze_excite", "w8a8"), ("hard_swish", "w8a8"), ("up_and_down", "w8a8"),
        ("padded_pools", "w4a4"), ("padded_pools", "w4"), ("turned", "w8a8"), ("below_zero", "w4a4"),
    ],
)  # fmt: skip
def test_it_computes_what_onnx_runtime_does(flatbuffer, name, width, tmp_path):
    torch.manual_seed(0)
    network = OF_ITS_OWN[name]() if name in OF_ITS_OWN else networks.build(name)
    path, own = export(tmp_path, network, width)
    version, run = litert.load(own)
    assert version.startswith("LiteRT 2")
    expected = in_onnx_runtime(path, IMAGES)
    found = run(IMAGES)[0]
    assert_equal(expected, found)
    assert np.array_equal(run(IMAGES[:3])[0], found[:3]), "the batch is open"


class Operators:
    """The operators of a LiteRT file: (kind, what it reads, what it gives)."""

    def __init__(self, flatbuffer, path):
        model = flatbuffer.ModelT.InitFromPackedBuf(path.read_bytes())
        (self.graph,), self.buffers = model.subgraphs, model.buffers
        kinds = {v: k for k, v in vars(flatbuffer.BuiltinOperator).items() if not k.startswith("_")}
        types = {v: k for k, v in vars(flatbuffer.TensorType).items() if not k.startswith("_")}
        codes = [kinds[code.builtinCode] for code in model.operatorCodes]
        self.kinds = [codes[one.opcodeIndex] for one in self.graph.operators]
        self.types = [types[tensor.type] for tensor in self.graph.tensors]

    def of(self, *kinds):
        for kind, one in zip(self.kinds, self.graph.operators, strict=True):
            if kind in kinds:
                yield list(one.inputs), one.outputs[0]

    def data(self, tensor):
        array = np.frombuffer(bytes(self.buffers[self.graph.tensors[tensor].buffer].data), np.uint8)
        dtype = {"INT8": np.int8, "INT32": np.int32}[self.types[tensor]]
        return array.view(dtype).reshape(self.graph.tensors[tensor].shape)


def test_codes_scales_and_biases_are_those_of_the_onnx_file(flatbuffer, tmp_path):
    path, own = export(tmp_path, networks.build("residual"))
    graph = onnx.load(path).graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    maker = {node.output[0]: node for node in graph.node}
    found = Operators(flatbuffer, own)
    pairs = zip(
        (node for node in graph.node if node.op_type == "Conv"),
        found.of("CONV_2D", "DEPTHWISE_CONV_2D"),
        strict=True,
    )
    for node, ((x, weight, bias), output) in pairs:
        types = [found.types[tensor] for tensor in (x, weight, bias, output)]
        assert types == ["INT8", "INT8", "INT32", "INT8"]
        codes, scale, zero = (constants[name] for name in maker[node.input[1]].input)
        centred = codes.astype(int) - zero.reshape(-1, 1, 1, 1)
        depthwise = found.graph.tensors[weight].quantization.quantizedDimension == 3
        order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
        assert np.array_equal(found.data(weight), centred.transpose(order))
        assert np.array_equal(found.graph.tensors[weight].quantization.scale, scale)
        codes, scale, _ = (constants[name] for name in maker[node.input[2]].input)
        assert np.array_equal(found.data(bias), codes)
        assert np.array_equal(found.graph.tensors[bias].quantization.scale, scale)


def test_bounds_of_few_bits_cost_no_operator(flatbuffer, tmp_path):
    _, own = export(tmp_path, networks.build("inverted_residual"), "w4a4")
    found = Operators(flatbuffer, own)
    assert Counter(found.kinds) == {
        "CONV_2D": 3, "DEPTHWISE_CONV_2D": 1, "ADD": 1, "MEAN": 1, "RESHAPE": 1, "PAD": 1,
        "QUANTIZE": 2,  # of the input, and of the stem's codes, which two read at different widths
        "MAXIMUM": 1,  # of the sum, which may be negative, in front of a Linear of 4 bits
        # What is not rounded behind is computed in floats, and from step to step it goes by floats.
        "DEQUANTIZE": 3, "FULLY_CONNECTED": 1,
    }  # fmt: skip


def test_it_is_called_by_names_with_channels_last(flatbuffer, tmp_path):
    path, own = export(tmp_path, networks.build("plain"), output_names=["y"])
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(own))
    run = interpreter.get_signature_runner()
    found = [run(input=np.moveaxis(image[None], 1, -1))["y"] for image in IMAGES]
    assert_equal(in_onnx_runtime(path, IMAGES), np.concatenate(found))


@pytest.mark.parametrize("grey", [True, False])
def test_pixels_go_in_as_bytes(flatbuffer, grey, tmp_path):
    """Where pixels are their own codes they are read as such, elsewhere normalised in floats."""
    mean, std = [0.3054, 0.3054 if grey else 0.4, 0.3054], [0.3247] * 3
    pixels = torch.randint(0, 256, (48, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    pixels[0, :, 0, 0], pixels[0, :, 0, 1] = 0, 255
    images = (pixels / 255 - torch.tensor(mean).reshape(-1, 1, 1)) / 0.3247
    prepared = qdeploy.prepare(networks.build("plain"), images[:2], "simqat", 8, 8)
    qdeploy.calibrate(prepared, images.split(48))
    path = tmp_path / "m.onnx"
    own = qdeploy.export(prepared, path, images[:2], target="litert", uint8_input=(mean, std))
    found = Operators(flatbuffer, own)
    assert found.types[found.graph.inputs[0]] == "UINT8"
    assert ("CAST" in found.kinds) == (not grey)
    bytes_ = pixels.to(torch.uint8).numpy()
    assert_equal(in_onnx_runtime(path, bytes_), litert.load(own)[1](bytes_)[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("signal", "two axes, at conv"), ("attention", "operator MatMul|operator Softmax"),
        ("overlapping", "weights that a transposed convolution turns"),
    ],
)  # fmt: skip
def test_what_it_has_no_form_of_is_named_and_nothing_is_written(
    flatbuffer, name, message, tmp_path
):
    attention = Network(
        lambda self, x: torch.softmax(x @ x.transpose(2, 3), -1).flatten(1), conv=conv()
    )
    overlapping = calibrated_by(
        nn.Sequential(conv(), nn.ConvTranspose2d(6, 5, 3, 2, 1)), *WIDTHS["w8a8"]
    )  # its weights are turned, and no kernel takes them
    own = {"attention": attention, "overlapping": overlapping}
    network = own[name] if name in own else networks.build(name)
    with pytest.raises(QdeployError, match=f"target litert has no form of .*{message}"):
        qdeploy.export(network.eval(), tmp_path / "m.tflite", networks.images(2), target="litert")
    assert not list(tmp_path.iterdir())


def test_without_litert_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.schema_py_generated", None)
    with pytest.raises(QdeployError, match=r'pip install "qdeploy\[litert\]"'):
        qdeploy.export(
            networks.build("plain").eval(),
            tmp_path / "m.tflite",
            networks.images(2),
            target="litert",
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("flatbuffer")
def test_open_sizes(tmp_path):
    """Convolutions and a global average run at any size; what is reshaped to several is refused."""
    prepared = calibrated_by(networks.build("residual"), *WIDTHS["w8a8"])
    options = {"target": "litert", "dynamic": ["height", "width"]}
    made = qdeploy.export(prepared, tmp_path / "m.tflite", networks.images(2), **options)
    _, run = litert.load(made)
    x = np.concatenate([IMAGES[:8], IMAGES[8:16]], axis=3)[:, :, 3:]
    assert_equal(in_onnx_runtime(tmp_path / "m.onnx", x), *run(x), ties=True)


@pytest.mark.usefixtures("flatbuffer")
def test_a_transposed_convolution_of_open_sizes_is_refused(tmp_path):
    network = Network(
        lambda self, x: self.up(self.conv(x)), conv=conv(), up=nn.ConvTranspose2d(6, 4, 2, 2)
    )
    prepared = qdeploy.prepare(network.eval(), networks.images(2), "simqat")
    qdeploy.calibrate(prepared, [networks.images(2)])
    with pytest.raises(QdeployError, match="DepthToSpace of several open sizes"):
        qdeploy.export(
            prepared,
            tmp_path / "m.tflite",
            networks.images(2),
            target="litert",
            dynamic=["height", "width"],
        )
    assert not list(tmp_path.iterdir())
