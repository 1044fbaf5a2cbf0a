"""The same file in OpenVINO, where it is installed, packed and not."""

import networks
import numpy as np
import onnx
import onnxruntime
import pytest

import qdeploy
from qdeploy.benchmark import openvino as runtime
from qdeploy.errors import QdeployError

IMAGES = networks.images(64).numpy()


def exported(folder, network, act_bits, **options):
    x = networks.images(48, seed=7)
    prepared = qdeploy.prepare(networks.build(network), x[:2], "slb", 1, act_bits)
    qdeploy.calibrate(prepared, x.split(16))
    return qdeploy.export(prepared, folder / "m.onnx", x[:2], **options)


def in_onnx_runtime(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": IMAGES})[0]


@pytest.mark.parametrize("act_bits", [8, "float"])
def test_it_reads_packed_weights_and_agrees(tmp_path, act_bits):
    pytest.importorskip("openvino")
    path = exported(tmp_path, "residual", act_bits)
    types = {tensor.data_type for tensor in onnx.load(path).graph.initializer if tensor.dims}
    assert onnx.TensorProto.UINT8 in types, "nothing is packed"
    name, run = runtime.load(path)
    expected, found = in_onnx_runtime(path), run(IMAGES)
    assert name.startswith("OpenVINO 20")
    spread = np.abs(expected - expected.mean(0)).max()
    assert np.abs(found - expected).max() < (1e-4 if act_bits == "float" else 0.15) * spread
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.95


def test_the_target_needs_no_other_file(tmp_path):
    targets = ("cpu", "openvino")
    files = [exported(tmp_path, "plain", 8, target=target).read_bytes() for target in targets]
    assert files[0] == files[1]


def test_what_it_cannot_read_is_an_error(tmp_path):
    pytest.importorskip("openvino")
    path = tmp_path / "notes.onnx"
    path.write_text("no network\n" * 50)
    with pytest.raises(QdeployError, match=r"OpenVINO cannot read .*notes\.onnx"):
        runtime.load(path)


def test_without_it_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(QdeployError, match=r'pip install "qdeploy\[openvino\]"'):
        runtime.load(tmp_path / "m.onnx")
