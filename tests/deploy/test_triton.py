"""A Triton model repository, read by the rules of Triton's model_config.proto, which tritonclient ships."""

import functools

import numpy as np
import onnx
import pytest
from artifact_files import by_hand, logits, model
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    json_format,
    message_factory,
    text_format,
)
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
    "parameters": [{"key": str, "value": {"string_value": str}}],
}


def declare(message, fields):
    """Fills in a protobuf message type; enumerations and types of fields are nested in it."""
    for number, (name, kind) in enumerate(fields.items(), 1):
        field = message.field.add(name=name, number=number, label=1)
        if isinstance(kind, list):
            field.label, (kind,) = 3, kind
        if isinstance(kind, dict):
            declare(message.nested_type.add(name=f"Of_{name}"), kind)
        elif isinstance(kind, set):
            values = message.enum_type.add(name=f"Of_{name}").value
            for value, member in enumerate(sorted(kind)):
                values.add(name=member, number=value)
        if kind in (int, str):
            field.type = {int: field.TYPE_INT32, str: field.TYPE_STRING}[kind]
        else:
            field.type_name = f"Of_{name}"


@functools.cache
def model_config():
    """The protobuf class of MODEL_CONFIG."""
    file = descriptor_pb2.FileDescriptorProto(name="config.proto")
    declare(file.message_type.add(name="ModelConfig"), MODEL_CONFIG)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("ModelConfig"))


def parsed(text):
    """By protobuf: unknown fields and wrong types are errors."""
    message = text_format.Parse(text, model_config()())
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(model())
    return path


def config(place):
    return parsed((place / "config.pbtxt").read_text("utf-8"))


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


@pytest.fixture
def photographs(tmp_path):
    """A file that says how photographs become its input."""
    proto = onnx.ModelProto.FromString(model())
    given = {"qdeploy.normalisation": '{"mean": [0.5], "std": [0.2]}', "qdeploy.crop": "0.875"}
    helper.set_model_props(proto, given)
    path = tmp_path / "photographs.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_clients_read_how_pictures_are_prepared(photographs, tmp_path):
    found = config(write_repository(photographs, tmp_path / "models", "net"))["parameters"]
    assert [(entry["key"], entry["value"]["string_value"]) for entry in found] == [
        ("qdeploy.normalisation", '{"mean": [0.5], "std": [0.2]}'),
        ("qdeploy.crop", "0.875"),
    ]


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


@pytest.mark.parametrize("target", ["cpu", "tensorrt", "openvino"])
def test_tritons_own_schema_takes_it(photographs, tmp_path, target):
    published = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    place = write_repository(photographs, tmp_path / "models", "net", target)
    text = (place / "config.pbtxt").read_text("utf-8")
    message = text_format.Parse(text, published.ModelConfig())
    assert message.parameters["qdeploy.crop"].string_value == "0.875"
    assert json_format.MessageToDict(message, preserving_proto_field_name=True)["parameters"] == {
        entry["key"]: entry["value"] for entry in parsed(text)["parameters"]
    }


@pytest.mark.parametrize("wrong", ['nam: "x"', "name: x", "max_batch_size: many"])
def test_the_schema_of_these_tests_is_strict(wrong):
    with pytest.raises(text_format.ParseError):
        parsed(wrong)
