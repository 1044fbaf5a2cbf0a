"""What nodes, values, inputs and outputs of a file are called."""

import json
from importlib.metadata import version

import networks
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from artifact_files import logits
from exported_networks import calibrated, session
from torch import nn

import qdeploy
from qdeploy.benchmark.runtime import refusals
from qdeploy.deploy.names import PRODUCTS
from qdeploy.errors import QdeployError


@pytest.fixture(scope="module")
def prepared():
    return calibrated(networks.build("residual"), "slb w2a8")


def exported(network, folder, **options):
    return qdeploy.export(network, folder / "model.onnx", networks.images(2), **options)


def names_of(model):
    return [node.name for node in model.graph.node]


def test_readable_names_are_those_of_the_modules(prepared, tmp_path):
    model = onnx.load(exported(prepared, tmp_path, readable=True))
    found = dict(zip(names_of(model), model.graph.node, strict=True))
    assert len(found) == len(model.graph.node), "each its own"
    modules = dict(prepared.named_modules())
    for node in model.graph.node:
        if node.op_type in PRODUCTS:
            assert isinstance(modules[node.name], nn.Module)
            assert found[f"{node.name}.weight.DequantizeLinear"].output[0] == node.input[1]
            assert found[f"{node.name}.bias.DequantizeLinear"].output[0] == node.input[2]
    assert found["conv1.QuantizeLinear"].input[0] == found["conv1"].output[0]
    packed = {t.name for t in model.graph.initializer if t.name.startswith("conv2.weight.")}
    assert "conv2.weight.DequantizeLinear.x_scale" in packed


def test_names_change_no_value(prepared, tmp_path):
    x = networks.images(9).numpy()
    plain = logits(exported(prepared, tmp_path), x)
    np.testing.assert_array_equal(logits(exported(prepared, tmp_path, readable=True), x), plain)


def test_an_error_of_the_runtime_names_the_layer(prepared, tmp_path):
    model = onnx.load(exported(prepared, tmp_path, readable=True))
    shape = next(t for t in model.graph.initializer if t.name == "pool_activation.Reshape.shape")
    shape.CopyFrom(onnx.numpy_helper.from_array(np.array([-1, 7]), shape.name))
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    with pytest.raises(refusals(), match=r"fc|pool_activation\.Reshape"):  # at load, or in a run
        session(model).run(None, {"input": networks.images(2).numpy()})


@pytest.mark.parametrize(("width", "readable"), [(8, False), (1024, True)])
def test_large_files_are_readable_and_small_ones_are_small(width, readable, tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))
    x = torch.randn(4, width)
    prepared = qdeploy.prepare(network, x, "simqat")
    qdeploy.calibrate(prepared, [x])
    model = onnx.load(qdeploy.export(prepared, tmp_path / "model.onnx", x))
    assert all(names_of(model)) == readable
    assert {"0", "2"} <= set(names_of(model))


class Named(nn.Module):
    """Its modules have the names of the file's ends, and its activation has that of a layer."""

    def __init__(self):
        super().__init__()
        self.input = nn.Linear(6, 5)
        self.logits = nn.Linear(5, 4)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.relu(self.logits(torch.relu(self.input(x)))))


def test_a_module_may_be_called_as_an_input_or_output(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(8, 6)
    prepared = qdeploy.prepare(Named(), x, "simqat")
    qdeploy.calibrate(prepared, [x])
    file = qdeploy.export(prepared, tmp_path / "model.onnx", x, readable=True)
    with torch.no_grad():
        wanted = qdeploy.convert(prepared)(x).numpy()
    np.testing.assert_allclose(logits(file, x.numpy()), wanted, atol=1e-5)
    assert {"input", "logits", "last"} <= set(names_of(onnx.load(file)))


def test_constants_of_one_operator_are_told_apart(tmp_path):
    """A Concat calls all that it reads by one word."""

    class Sizes(nn.Module):
        def forward(self, x):
            return x.new_ones(x.shape[0], x.shape[1], 2) * x.mean((2, 3))[..., None]

    x = networks.images(3)
    file = qdeploy.export(Sizes().eval(), tmp_path / "model.onnx", x, readable=True)
    np.testing.assert_allclose(logits(file, x.numpy()), Sizes()(x).numpy(), atol=1e-6)


def test_inputs_and_outputs_are_called_as_the_user_says(prepared, tmp_path):
    file = exported(prepared, tmp_path, input_names=["image"], output_names=["scores"])
    graph = onnx.load(file).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["image", "scores"]
    proof = qdeploy.validate(prepared, file, [networks.images(4)])
    assert [output.name for output in proof.outputs] == ["scores"]


class Returns(nn.Module):
    def __init__(self, returned):
        super().__init__()
        self.conv, self.offset = nn.Conv2d(3, 4, 3), nn.Parameter(torch.randn(4))
        self.returned = returned

    def forward(self, x):
        return self.returned(self, x, self.conv(x))


@pytest.mark.parametrize("readable", [False, True])
@pytest.mark.parametrize(
    "returned",
    [
        lambda self, x, y: (y, y),
        lambda self, x, y: (y, self.offset),
        lambda self, x, y: (x, y),
        lambda self, x, y: {"": y, "last": y.relu()},
    ],
    ids=["one twice", "a parameter", "the input", "an empty key"],
)
@pytest.mark.parametrize("quantized", [False, True])
def test_whatever_is_returned_has_its_name_and_value(returned, quantized, readable, tmp_path):
    torch.manual_seed(0)
    x, network = networks.images(4), Returns(returned).eval()
    given = network
    if quantized:
        given = qdeploy.prepare(network, x, "simqat")
        qdeploy.calibrate(given, [x])
        network = qdeploy.convert(given)
    file = qdeploy.export(given, tmp_path / "model.onnx", x, readable=readable)
    graph = onnx.load(file).graph
    assert [value.name for value in graph.input] == ["input"]
    with torch.no_grad():
        wanted = torch.utils._pytree.tree_leaves(network(x))
    found = session(onnx.load(file)).run(None, {"input": x.numpy()})
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other.detach().numpy(), atol=1e-5)
    assert not any("alias" in value.name for value in graph.output)
    if quantized:
        assert qdeploy.validate(given, file, [x]).exactness.differing == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"input_names": ["a", "b"]},
            r"input_names is \['a', 'b'\]; allowed: a name of its own for each of input",
        ),
        ({"output_names": [""]}, "output_names is .*logits"),
        (
            {"input_names": ["x"], "output_names": ["x"]},
            "x would be the name of several inputs or outputs",
        ),
        ({"classes": "cat"}, r'classes is \'cat\'; allowed.*"cat", "dog"'),
        ({"classes": [1, 2]}, "classes is"),
        ({"normalisation": (0.5, 0.5)}, "normalisation is"),
    ],
)
def test_what_does_not_fit_is_an_error_that_says_what_does(prepared, tmp_path, options, message):
    with pytest.raises(QdeployError, match=message):
        exported(prepared, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_keys_that_make_one_name_are_an_error_that_says_what_to_give(tmp_path):
    network = Returns(lambda self, x, y: {"a": {"b": y}, "a_b": x}).eval()
    with pytest.raises(QdeployError, match=r"a_b would be the name of several .* output_names"):
        qdeploy.export(network, tmp_path / "m.onnx", networks.images(2))
    names = ["first", "second"]
    file = qdeploy.export(network, tmp_path / "m.onnx", networks.images(2), output_names=names)
    assert [value.name for value in onnx.load(file).graph.output] == names


def test_python_notes_what_the_command_line_notes(prepared, tmp_path):
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.2, 0.1]
    classes = [f"class {number}" for number in range(10)]
    options = {"classes": classes, "normalisation": (mean, std), "metadata": {"mine": "too"}}
    for form in ({}, {"uint8_input": (mean, std)}):
        runtime = onnxruntime.InferenceSession(exported(prepared, tmp_path, **options | form))
        found = runtime.get_modelmeta().custom_metadata_map
        assert json.loads(found["qdeploy.classes"]) == classes
        assert json.loads(found["qdeploy.normalisation"]) == {"mean": mean, "std": std}
        assert json.loads(found["qdeploy.origin"])["torch"] == version("torch")
        assert found["mine"] == "too"
