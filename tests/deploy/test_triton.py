"""A Triton model repository, read by the rules of Triton's model_config.proto."""

import re

import numpy as np
import onnx
import pytest
from artifact_files import by_hand, logits, model
from networks import images
from onnx import helper

from qdeploy import onnx_file as storage
from qdeploy.deploy.triton import write_repository
from qdeploy.errors import QdeployError

# Field -> what it holds, from model_config.proto; a list has the field any number of times.
ACCELERATOR = {"name": str, "parameters": [{"key": str, "value": str}]}
TENSOR = {"name": str, "data_type": {"TYPE_FP32", "TYPE_UINT8"}, "dims": [int]}
MODEL_CONFIG = {
    "name": str,
    "backend": str,
    "max_batch_size": int,
    "input": [TENSOR],
    "output": [TENSOR | {"label_filename": str}],
    "dynamic_batching": {"preferred_batch_size": [int], "max_queue_delay_microseconds": int},
    "optimization": {
        "execution_accelerators": {
            "gpu_execution_accelerator": [ACCELERATOR],
            "cpu_execution_accelerator": [ACCELERATOR],
        }
    },
}
TOKEN = re.compile(r'\s*(?:#[^\n]*\n)?\s*("(?:[^"\\]|\\.)*"|[\w.+-]+|[{}\[\]:,])')


def parsed(text, schema):
    """Protobuf's text format, as strict as the schema: unknown fields and wrong types are errors."""
    tokens, place = [], 0
    while text[place:].strip():
        found = TOKEN.match(text, place)
        assert found, f"no token at {text[place : place + 20]!r}"
        tokens.append(found[1])
        place = found.end()
    message = fields(tokens, schema, None)
    assert not tokens
    return message


def fields(tokens, schema, end):
    message = {}
    while tokens and tokens[0] != end:
        name = tokens.pop(0)
        assert name in schema, f"no field {name}"
        kind = schema[name]
        one = kind[0] if isinstance(kind, list) else kind
        if not isinstance(one, dict) or tokens[0] == ":":
            assert tokens.pop(0) == ":", f"{name} needs a colon"
        many = isinstance(kind, list) and tokens[0] == "["
        values = listed(tokens, one) if many else [value(tokens, one)]
        if isinstance(kind, list):
            message.setdefault(name, []).extend(values)
        else:
            assert name not in message, f"{name} twice"
            message[name] = values[0]
        if tokens and tokens[0] == ",":
            tokens.pop(0)
    return message


def listed(tokens, kind):
    tokens.pop(0)
    values = []
    while tokens[0] != "]":
        values.append(value(tokens, kind))
        assert tokens[0] in (",", "]")
        if tokens[0] == ",":
            tokens.pop(0)
    tokens.pop(0)
    return values


def value(tokens, kind):
    token = tokens.pop(0)
    if isinstance(kind, dict):
        assert token == "{"
        message = fields(tokens, kind, "}")
        assert tokens.pop(0) == "}"
        return message
    if kind is str:
        assert token[0] == token[-1] == '"'
        return token[1:-1]
    if kind is int:
        return int(token)
    assert token in kind, f"{token} is none of {kind}"
    return token


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(model())
    return path


def config(place):
    return parsed((place / "config.pbtxt").read_text(), MODEL_CONFIG)


def test_the_repository_has_tritons_layout(file, tmp_path):
    place = write_repository(file, tmp_path / "models", "lenet5")
    found = sorted(str(p.relative_to(tmp_path / "models")) for p in place.rglob("*"))
    assert found == ["lenet5/1", "lenet5/1/model.onnx", "lenet5/config.pbtxt"]
    assert (place / "1" / "model.onnx").read_bytes() == model()
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["lenet5"]


def test_the_configuration_says_what_the_file_declares(file, tmp_path):
    assert config(write_repository(file, tmp_path / "models", "lenet5")) == {
        "name": "lenet5",
        "backend": "onnxruntime",
        "max_batch_size": 64,
        "input": [{"name": "input", "data_type": "TYPE_FP32", "dims": [3, 8, 8]}],
        "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [5]}],
        "dynamic_batching": {},
    }


def test_pixels_and_labels(tmp_path):
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT)]
    proto = by_hand(nodes, {}, onnx.TensorProto.UINT8)
    proto.graph.output[0].type.CopyFrom(
        helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, ("n", 3, "h", 8))
    )
    helper.set_model_props(proto, {"qdeploy.classes": '["a \\"cat\\"", "é"]'})
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    place = write_repository(path, tmp_path / "models", "a net/ü")
    found = config(place)
    assert found["name"] == place.name
    assert "/" not in place.name
    assert found["input"] == [{"name": "x", "data_type": "TYPE_UINT8", "dims": [3, 8, 8]}]
    assert found["output"][0]["dims"] == [3, -1, 8]
    assert found["output"][0]["label_filename"] == "labels.txt"
    assert (place / "labels.txt").read_text("utf-8").splitlines() == ['a "cat"', "é"]


@pytest.mark.parametrize(
    ("target", "device", "name"), [("tensorrt", "gpu", "tensorrt"), ("openvino", "cpu", "openvino")]
)
def test_other_targets_are_handed_to_their_runtime(file, tmp_path, target, device, name):
    found = config(write_repository(file, tmp_path / "models", "net", target))
    (accelerator,) = found["optimization"]["execution_accelerators"][
        f"{device}_execution_accelerator"
    ]
    assert accelerator["name"] == name
    int8 = [{"key": "precision_mode", "value": "INT8"}]
    assert accelerator.get("parameters", []) == (int8 if target == "tensorrt" else [])


def test_it_replaces_its_own(file, tmp_path):
    place = write_repository(file, tmp_path / "models", "net")
    (place / "1" / "model.onnx").write_bytes(b"old")
    assert write_repository(file, tmp_path / "models", "net") == place
    assert (place / "1" / "model.onnx").read_bytes() == model()
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["net"]


@pytest.mark.parametrize("content", [None, 'name: "somebody else\'s"\n'])
def test_it_leaves_what_it_did_not_write(file, tmp_path, content):
    place = tmp_path / "models" / "net"
    place.mkdir(parents=True)
    (place / "notes.txt").write_text("mine")
    if content:
        (place / "config.pbtxt").write_text(content)
    before = {p: p.read_bytes() for p in place.iterdir()}
    with pytest.raises(QdeployError, match="was not written by qdeploy and stays as it is"):
        write_repository(file, tmp_path / "models", "net")
    assert {p: p.read_bytes() for p in place.iterdir()} == before
    assert [p.name for p in place.parent.iterdir()] == ["net"]


def test_weights_beside_the_file_come_along(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "FILE_LIMIT", 100)
    monkeypatch.setattr(storage, "SMALLEST_OUTSIDE", 32)
    path = storage.write(onnx.ModelProto.FromString(model()), tmp_path / "m.onnx")
    place = write_repository(path, tmp_path / "models", "net")
    x = images(2).numpy()
    np.testing.assert_array_equal(logits(place / "1" / "model.onnx", x), logits(path, x))


def test_a_fixed_batch_is_refused(tmp_path):
    proto = by_hand([helper.make_node("Relu", ["x"], ["y"])], {}, shape=(2, 3, 8, 8))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(QdeployError, match=r"m\.onnx has a fixed batch of 2"):
        write_repository(path, tmp_path / "models", "net")
    assert not (tmp_path / "models").exists()


def test_the_parser_of_these_tests_is_strict():
    for wrong in ('nam: "x"', "name: x", 'name "x"', "max_batch_size: many", 'name: "a" name: "b"'):
        with pytest.raises((AssertionError, ValueError)):
            parsed(wrong, MODEL_CONFIG)
