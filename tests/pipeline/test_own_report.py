"""write_report and benchmark_files, as somebody with a loop of their own calls them."""

import numpy as np
import onnxruntime
import pytest
import torch
from networks import build, images
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import qdeploy
from qdeploy import QdeployError
from qdeploy.record import Record
from qdeploy.tasks import Segmentation


def exported(network, inputs, path, **options):
    prepared = qdeploy.prepare(network, inputs, "simqat")
    qdeploy.calibrate(prepared, [inputs], batch_norm=True)
    return prepared, qdeploy.export(prepared.eval(), path, inputs, **options)


def in_runtime(file, *inputs):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))[0]


def test_a_classifier_beside_its_float_network(tmp_path):
    network, x = build("residual").eval(), images(24)
    prepared, file = exported(network, x, tmp_path / "model.onnx")
    labels = torch.randint(0, 5, (24,), generator=torch.Generator().manual_seed(0))
    content = file.read_bytes()
    prepared.train(), network.train()
    loader = DataLoader(TensorDataset(x, labels), 10)
    record = qdeploy.write_report(
        prepared, file, loader, tmp_path / "proof", float_network=network, title="noise"
    )
    right = in_runtime(file, x).argmax(1) == labels.numpy()
    assert record.accuracy.onnx == {"top1": pytest.approx(right.mean())}
    assert prepared.training
    assert network.training
    with torch.no_grad():
        right = network.eval()(x).argmax(1) == labels
    assert record.accuracy.float == {"top1": pytest.approx(right.double().mean().item())}
    assert (record.exactness.differing, record.exactness.samples) == (0, 24)
    assert record.size.onnx == len(content) == file.stat().st_size
    assert record.size.float == (tmp_path / "proof" / "float.onnx").stat().st_size
    assert [row.file for row in record.latency] == ["float.onnx", "model.onnx"]
    assert file.read_bytes() == content
    assert Record.from_json((tmp_path / "proof" / "report.json").read_text()) == record
    page = (tmp_path / "proof" / "report.html").read_text()
    assert "simqat on noise" in page
    assert "The recipe" not in page
    assert (tmp_path / "proof" / "report.md").is_file()


def test_masks_of_any_size_and_no_float_network(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 1))
    x = images(6)
    prepared, file = exported(network, x, tmp_path / "m.onnx", dynamic=["height", "width"])
    masks = torch.randint(0, 3, (6, 8, 8))
    record = qdeploy.write_report(
        prepared, file, [(x, masks)], tmp_path / "proof", task=Segmentation(ignore_index=0)
    )
    counted = masks.numpy() != 0
    right = (in_runtime(file, x).argmax(1) == masks.numpy())[counted]
    assert record.accuracy.onnx["pixel_accuracy"] == pytest.approx(right.mean())
    assert record.accuracy.float is None
    assert len(record.sizes) == 3
    assert not (tmp_path / "proof" / "float.onnx").exists()
    assert [row.file for row in record.latency] == ["m.onnx"]


class Sum(nn.Module):
    """Two inputs of features, and one number for each pair."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(5, 4)

    def forward(self, left, right):
        return (self.left(left).relu() + self.right(right).relu()).sum(1, keepdim=True)


def test_several_inputs_as_a_loader_collates_them(tmp_path):
    torch.manual_seed(0)
    pair = torch.randn(12, 6), torch.randn(12, 5)
    prepared, file = exported(Sum(), pair, tmp_path / "m.onnx")
    targets = torch.randn(12, 1)
    items = [((a, b), y) for a, b, y in zip(*pair, targets, strict=True)]
    record = qdeploy.write_report(
        prepared, file, DataLoader(items, 5), tmp_path / "proof", task="regression"
    )
    error = np.abs(in_runtime(file, *pair) - targets.numpy()).mean()
    assert record.accuracy.onnx["mae"] == pytest.approx(error, rel=1e-5)
    assert record.dataset.test_samples == 12


class TestErrors:
    @pytest.fixture
    def given(self, tmp_path):
        return *exported(build("plain"), images(4), tmp_path / "m.onnx"), tmp_path / "proof"

    def test_no_batches(self, given):
        prepared, file, folder = given
        with pytest.raises(QdeployError, match=r"no batches; give pairs of inputs and targets"):
            qdeploy.write_report(prepared, file, [], folder)
        assert not folder.exists()

    def test_inputs_alone(self, given):
        prepared, file, folder = given
        with pytest.raises(QdeployError, match=r"takes pairs of inputs and targets, not Tensor"):
            qdeploy.write_report(prepared, file, [images(4)], folder)
        assert not folder.exists()

    def test_outputs_of_another_task(self, given):
        prepared, file, folder = given
        batches = [(images(4), torch.zeros(4, dtype=torch.int64))]
        with pytest.raises(QdeployError, match=r"not of task Segmentation: it gives \[2, 5\]"):
            qdeploy.write_report(prepared, file, batches, folder, task="segmentation")
        with pytest.raises(QdeployError, match=r"there are 7 classes"):
            qdeploy.write_report(prepared, file, batches, folder, classes=7)
        assert not folder.exists()

    def test_a_file_of_another_network(self, given):
        _, file, folder = given
        other = qdeploy.prepare(build("residual"), images(2), "simqat")
        qdeploy.calibrate(other, [images(4)])
        batches = [(images(4), torch.zeros(4, dtype=torch.int64))]
        with pytest.raises(QdeployError, match=r"is not what this network exports to"):
            qdeploy.write_report(other.eval(), file, batches, folder)
        with pytest.raises(QdeployError, match=r"^write_report takes what qdeploy.prepare"):
            qdeploy.write_report(build("plain"), file, batches, folder)
        assert not folder.exists()


def test_files_are_timed_by_their_names(tmp_path):
    network, x = build("plain").eval(), images(2)
    _, file = exported(network, x, tmp_path / "model.onnx")
    qdeploy.export(network, tmp_path / "float.onnx", x)
    found = qdeploy.benchmark_files([str(tmp_path / "float.onnx"), file], batch_sizes=[1, 2])
    assert [(row.file, row.batch) for row in found.latency] == [
        ("float.onnx", 1), ("model.onnx", 1), ("float.onnx", 2), ("model.onnx", 2),
    ]  # fmt: skip
    lines = str(found).splitlines()
    assert lines[0] == found.machine.cpu
    assert lines[2].split()[:4] == ["model.onnx", "batch", "1:", f"{found.latency[1].p50_ms:.3g}"]
    assert lines[2].endswith(f"{found.latency[1].speedup:.2f} times as fast as float.onnx")
