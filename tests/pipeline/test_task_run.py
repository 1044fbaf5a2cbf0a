"""Runs of other tasks than classification, on data of the user's own: from the recipe to the proven file."""

import json
import re
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from command_line import fails, metrics, succeeds

from qdeploy.training.session import Session

CODE = """
import torch
import torchmetrics
from torch import nn
from torch.utils.data import Dataset

from qdeploy.tasks import Score, Task


class Squares(Dataset):
    '''A bright square on noise, of one of two kinds; its mask, or its size and place.'''

    def __init__(self, count, seed, masks):
        self.count, self.seed, self.masks = count, seed, masks

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        fixed = torch.Generator().manual_seed(1000 * self.seed + number)
        side, top, left = (int(torch.randint(low, 8, (), generator=fixed)) for low in (3, 0, 0))
        kind = int(torch.randint(0, 2, (), generator=fixed))
        image = 0.3 * torch.randn(2, 16, 16, generator=fixed)
        image += 0.01 * torch.rand(())  # augmentation: what it draws must be the same when resumed
        image[kind, top : top + side, left : left + side] += 2
        mask = torch.zeros(16, 16, dtype=torch.int64)
        mask[top : top + side, left : left + side] = kind + 1
        if self.masks:
            return image, mask
        return image, {"size": torch.tensor(float(side)), "kind": kind}


def make(masks=True):
    parts = {"train": Squares(40, 0, masks), "test": Squares(12, 1, masks)}
    return parts | {"classes": ["nothing", "first", "second"]} if masks else parts


def segmenter():
    layers = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 1)
    return nn.Sequential(*layers)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 8, 3, 2, bias=False), nn.BatchNorm2d(8)
        self.size, self.kind = nn.Linear(8, 1), nn.Linear(8, 2)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu().mean((2, 3))
        return {"size": self.size(x), "kind": self.kind(x)}


class SizeAndKind(Task):
    def __init__(self, weight=0.1):
        self.weight = weight

    def loss(self, outputs, targets):
        size = (outputs["size"][:, 0] - targets["size"]).square().mean()
        return nn.functional.cross_entropy(outputs["kind"], targets["kind"]) + self.weight * size

    def metrics(self, classes):
        return {Score("size_error", "size error", "px", higher_is_better=False): SizeError()}


class SizeError(torchmetrics.MeanAbsoluteError):
    def update(self, outputs, targets):
        super().update(outputs["size"][:, 0], targets["size"])


class Broken(SizeAndKind):
    def loss(self, outputs, targets):
        return (outputs["size"][:, 0] - targets["size"]).square()


class ByClass(SizeAndKind):
    def metrics(self, classes):
        return {Score("f1", "F1"): KindF1(2, average=None)}


class KindF1(torchmetrics.classification.MulticlassF1Score):
    def update(self, outputs, targets):
        super().update(outputs["kind"], targets["kind"])


def halves():
    images = torch.stack([image for image, _ in (Squares(20, 0, True)[n] for n in range(20))])
    return (images, images / 2), (images, images / 2)


def filters():
    return nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1))


class InRows(Task):
    def loss(self, outputs, targets):
        return (outputs.view(-1) - targets.view(-1)).square().mean()

    def metrics(self, classes):
        return {Score("mae", "MAE", "", higher_is_better=False): torchmetrics.MeanAbsoluteError()}


class Misnamed(SizeAndKind):
    def loss(self, outputs, targets):
        return outputs["sise"].mean()
"""

RECIPE = """
[model]
network = "mine.py:{network}"

[task]
kind = "{task}"

[data]
dataset = "mine.py:make"
batch_size = 8
workers = 0

[quantize]
method = "simqat"
weight_bits = 4

[train]
epochs = 3
float_epochs = 1
optimizer = "adam"
lr = 0.02
"""


def recipe(folder, network="segmenter", task="segmentation", more=""):
    (folder / "mine.py").write_text(CODE)
    text = RECIPE.format(network=network, task=task)
    (folder / "mine.toml").write_text(text.replace("workers = 0", f"workers = 0\n{more}"))
    return folder / "mine.toml"


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
    """A run of a segmentation, exported, and what the export printed as JSON."""
    folder = tmp_path_factory.mktemp("segmented")
    succeeds("train", recipe(folder), "-o", folder / "run")
    gates = ["--max-drop", 100, "--min-agreement", 0.99]
    return folder / "run", json.loads(succeeds("export", folder / "run", "--json", *gates))


@pytest.fixture(scope="module")
def of_two_outputs(tmp_path_factory):
    """A run of a task of the user's own, with two outputs, a dict of targets and no decision."""
    folder = tmp_path_factory.mktemp("outputs")
    path = recipe(folder, "TwoHeads", "mine.py:SizeAndKind", "options = { masks = false }")
    succeeds("train", path, "-o", folder / "run")
    limits = "[export.gates]\nsize_error = 9.0\n"
    file = folder / "run" / "recipe.toml"
    file.write_text(file.read_text().replace("[export.gates]\n", limits))
    return folder / "run", json.loads(succeeds("export", folder / "run", "--json"))


def ground_truth(run, masks):
    """The test images and targets, made by the run's own copy of the code."""
    names = {}
    exec((run / "data.py").read_text(), names)
    torch.manual_seed(0)
    items = [names["Squares"](12, 1, masks)[number] for number in range(12)]
    return np.stack([image.numpy() for image, _ in items]), [target for _, target in items]


def outputs(run, images):
    session = onnxruntime.InferenceSession(
        str(run / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    return dict(
        zip(
            [one.name for one in session.get_outputs()],
            session.run(None, {"input": images}),
            strict=True,
        )
    )


def test_a_segmentation_learns_and_its_scores_are_those_of_numpy_on_the_file(segmented):
    run, record = segmented
    last = metrics(run)[-1]
    assert last["test_miou"] > 0.5  # a network that finds no square has 0.3 at most
    assert record["scores"][0]["title"] == "mIoU"
    assert record["accuracy"]["trained"] == pytest.approx(
        {"miou": last["test_miou"], "pixel_accuracy": last["test_pixel_accuracy"]}
    )
    images, masks = ground_truth(run, masks=True)
    found, truth = outputs(run, images)["logits"].argmax(1), np.stack(masks)
    shares = [
        ((found == c) & (truth == c)).sum() / ((found == c) | (truth == c)).sum() for c in range(3)
    ]
    assert record["accuracy"]["onnx"]["miou"] == pytest.approx(np.mean(shares), abs=0.02)
    assert record["accuracy"]["onnx"]["pixel_accuracy"] == pytest.approx(
        (found == truth).mean(), abs=0.01
    )


def test_its_agreement_is_of_pixels_and_its_gate_is_passed(segmented):
    _, record = segmented
    agreement = record["agreement"]
    assert (agreement["decides"], agreement["decided"]) == ("pixel", 12 * 16 * 16)
    assert [(gate["name"], gate["passed"]) for gate in record["gates"]] == [
        ("max_drop", True), ("min_agreement", True), ("max_differing", True),
    ]  # fmt: skip


def test_a_benchmark_has_no_top1_of_it(segmented):
    run, _ = segmented
    said = fails("benchmark", run / "model.onnx", "--data", "digits")
    assert "--data measures top-1 of logits [N, classes], and" in said
    assert "gives ['batch', 3, 16, 16]; leave it out" in said


def test_pages_speak_of_the_task(segmented, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the comparison goes
    run, _ = segmented
    report = (run / "report.md").read_text()
    assert "| Network | mIoU | Pixel accuracy |" in report
    assert "mIoU of both" in report
    training, columns = (run / "training.html").read_text(), (run / "metrics.csv").read_text()
    for text in (report, training, columns, succeeds("report", run)):
        assert "top-1" not in text.lower()
        assert "top1" not in text
    assert "Test mIoU" in training
    assert "mIoU" in succeeds("report", run)


def test_a_task_of_two_outputs_is_judged_by_its_own_score(of_two_outputs):
    run, record = of_two_outputs
    assert record["task"] == "mine.py:SizeAndKind"  # without the folder, which is of this machine
    images, targets = ground_truth(run, masks=False)
    found = outputs(run, images)
    assert list(found) == ["size", "kind"]
    sizes = np.array([target["size"].item() for target in targets])
    error = np.abs(found["size"][:, 0] - sizes).mean()
    assert record["accuracy"]["onnx"]["size_error"] == pytest.approx(error, abs=0.05)
    assert record["agreement"]["share"] is None
    assert float(record["agreement"]["sqnr"]) > 60
    again = json.loads(succeeds("export", run, "--json", "--min-sqnr", 60))
    first = again["gates"][0]
    assert (first["name"], first["passed"]) == ("min_sqnr", True)
    assert [(gate["name"], gate["limit"], gate["passed"]) for gate in record["gates"]] == [
        ("max_differing", 0, True), ("max_size_error", 9.0, True),
    ]  # fmt: skip
    assert "px" in succeeds("export", run)


def test_losses_and_metrics_may_view_outputs_that_networks_store_channels_last(tmp_path):
    path = recipe(tmp_path, "filters", "mine.py:InRows")
    path.write_text(path.read_text().replace("mine.py:make", "mine.py:halves"))
    succeeds("train", path, "-o", tmp_path / "run", "--set", "train.distill=0.5")
    record = json.loads(succeeds("export", tmp_path / "run", "--json"))
    names = {}
    exec((tmp_path / "run" / "data.py").read_text(), names)
    images, halves = (x.numpy() for x in names["halves"]()[1])
    error = np.abs(outputs(tmp_path / "run", images)["output"] - halves).mean()
    assert record["accuracy"]["onnx"]["mae"] == pytest.approx(error, abs=0.02)


def test_the_best_epoch_of_an_error_is_the_lowest(of_two_outputs):
    run, _ = of_two_outputs
    lowest = min(metrics(run), key=lambda row: row["test_size_error"])
    best = torch.load(run / "best.pt", weights_only=True)
    assert len(best["history"]) == lowest["epoch"]


def test_a_run_that_was_cut_ends_in_the_same_weights(of_two_outputs, tmp_path, monkeypatch):
    whole, cut = of_two_outputs[0], tmp_path / "run"
    path = recipe(tmp_path, "TwoHeads", "mine.py:SizeAndKind", "options = { masks = false }")
    keep, calls = Session.keep, []

    def keep_two(session, checkpoint):
        calls.append(len(checkpoint.history))
        if calls == [1, 1, 2]:  # of the float run, and of the second epoch
            raise KeyboardInterrupt
        keep(session, checkpoint)

    with monkeypatch.context() as patched:
        patched.setattr(Session, "keep", keep_two)
        fails("train", path, "-o", cut, code=130)
    assert len(metrics(cut)) == 1
    (tmp_path / "mine.py").write_text("raise NotImplementedError")  # its copies are there
    succeeds("train", path, "-o", cut, "--resume")
    first, second = (
        torch.load(run / "last.pt", weights_only=True)["state"] for run in (whole, cut)
    )
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("network", "task", "masks", "said"),
    [
        ("TwoHeads", "segmentation", "true", "gives dict for 2 inputs, and there are 3 classes"),
        ("TwoHeads", "mine.py:Broken", "false", r"the loss of task .* is \[2\] of float32, and must be one"),
        ("TwoHeads", "mine.py:ByClass", "false", r"score 'f1' computes \[2\]; take a mean over classes"),
        ("TwoHeads", "mine.py:Misnamed", "false", "targets of mine.py:make: KeyError: 'sise'"),
        ("segmenter", "regression", "true", r"outputs are \[2, 3, 16, 16\] and targets \[2, 16, 16\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_before_a_run_begins(tmp_path, network, task, masks, said):
    path = recipe(tmp_path, network, task, f"options = {{ masks = {masks} }}")
    assert re.search(said, fails("train", path, "-o", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("names", "count"),
    [("", 0), (", 'classes': ['square']", 1)],  # of one class every pixel would be right
)
def test_classes_that_nobody_named_are_asked_for(tmp_path, names, count):
    path = recipe(tmp_path)
    file = tmp_path / "mine.py"
    part = f"{{'train': Squares(4, 0, True), 'test': Squares(4, 1, True){names}}}"
    file.write_text(CODE + f"\n\ndef make():\n    return {part}\n")
    said = f'names {count}; a function of your own returns "classes"'
    assert said in fails("train", path, "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ("[(torch.ones(2, 16, 16), torch.ones(16, 16))] * 4", "masks are float32"),
        ("[(torch.ones(3, 16, 16), torch.zeros(16, 16).long())] * 4", "[2, 3, 16, 16] of float32"),
        ("[(torch.ones(2, 16, 16), 1, 2)] * 4", "gives batches of 3 parts"),
    ],
)
def test_training_items_are_tried_as_those_of_the_test_are(tmp_path, train, said):
    path = recipe(tmp_path)
    parts = f"{{'train': {train}, 'test': Squares(4, 1, True), 'classes': list('abc')}}"
    (tmp_path / "mine.py").write_text(CODE + f"\n\ndef make():\n    return {parts}\n")
    assert said in fails("train", path, "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_gate_that_the_task_has_not_is_named_before_anything_is_written(of_two_outputs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(of_two_outputs[0], run)
    for name in ("model.onnx", "report.json"):
        (run / name).unlink()
    assert "set export.min_sqnr" in fails("export", run, "--min-agreement", 0.9)
    assert not (run / "model.onnx").exists()
