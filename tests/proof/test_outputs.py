"""Scores, agreement and gates, against numbers counted by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from qdeploy.errors import QdeployError
from qdeploy.proof.gates import check_gates, check_possible, drop, with_promises
from qdeploy.proof.outputs import judge, of_network, of_runtime
from qdeploy.recipe import ExportSection
from qdeploy.record import (
    Accuracies,
    Agreement,
    Exactness,
    Machine,
    Saturation,
    TensorDifference,
)
from qdeploy.scores import CLASSIFICATION, TOP1, Score
from qdeploy.tasks import Classification, Regression, Segmentation

TENSOR = pytree.tree_structure(0)
PSNR = Score("psnr", "PSNR", "dB")
MAE = Score("mae", "MAE", "", higher_is_better=False)


def judged(outputs, targets, task=None, classes=2, pairs=()):
    """Forms that give these outputs, in two batches."""
    outputs = {name: torch.as_tensor(values) for name, values in outputs.items()}
    targets = torch.as_tensor(targets)
    forms = {name: lambda x, y=y: [y[x[0].long()]] for name, y in outputs.items()}
    chosen = torch.arange(len(targets))
    batches = [(part, targets[part]) for part in chosen.split(2)]
    return judge(forms, batches, task or Classification(), classes, TENSOR, pairs)


def test_top1_and_top5():
    ranked = np.tile(np.arange(7, 0, -1, dtype=np.float32), (4, 1))  # class 0 first, 4 fifth
    found = judged({"onnx": ranked}, [0, 4, 5, 0], classes=7).scores["onnx"]
    assert found == {"top1": 0.5, "top5": 0.75, "error1": 0.5}


def test_top5_needs_more_than_five_classes():
    found = judged({"onnx": np.eye(4, 5, dtype=np.float32)}, [0, 1, 2, 3], classes=5)
    assert found.scores["onnx"] == {"top1": 1.0, "error1": 0.0}
    assert found.samples == 4


def test_of_equal_logits_the_first_is_first():
    """As argmax of NumPy and of ONNX has it; one bit gives many."""
    found = judged({"onnx": np.ones((2, 9), np.float32)}, [0, 1], classes=9).scores["onnx"]
    assert found["top1"] == 0.5


def test_agreement_of_classes():
    a = np.array([[1, 0], [0, 1], [3, 2], [0, 1]], np.float32)
    b = np.array([[1, 0], [1, 0.5], [3, 2], [0, 1.5]], np.float32)
    found = judged({"a": a, "b": b}, [0, 1, 0, 1], pairs=[("a", "b")]).agreements["a", "b"]
    assert found == Agreement(
        samples=4,
        share=0.75,
        largest=1.0,
        mean=pytest.approx((1 + 0.5 + 0.5) / 8),
        sqnr=pytest.approx(10 * math.log10((a**2).sum() / ((a - b) ** 2).sum())),
        decides="image",
        decided=4,
    )


def test_agreement_of_masks_is_of_pixels():
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    masks = torch.zeros(2, 4, 5, dtype=torch.int64)
    found = judged({"a": a, "b": b}, masks, Segmentation(), 3, [("a", "b")]).agreements["a", "b"]
    assert (found.decides, found.decided) == ("pixel", 40)
    assert found.share == pytest.approx((a.argmax(1) == b.argmax(1)).float().mean().item())


def test_values_agree_by_their_ratio_alone_and_equal_ones_without_bound():
    a = torch.randn(4, 1)
    found = judged({"a": a, "b": a}, a, Regression(), pairs=[("a", "b")]).agreements["a", "b"]
    assert (found.share, found.decides, found.sqnr, found.largest) == (None, None, math.inf, 0.0)


def test_every_form_sees_the_same_batches_once_and_structures_are_the_networks():
    seen = []

    def batches():
        for start in (0, 2):
            seen.append(start)
            yield torch.arange(start, start + 2).float()[:, None], torch.tensor([0, 0])

    forms = {
        "network": of_network(TwoHeads(), "cpu"),
        "file": of_runtime(lambda x: [x, np.concatenate([x, -x], 1)]),
    }
    structure = pytree.tree_structure({"boxes": 0, "scores": 0})
    found = judge(forms, batches(), OnScores(), 2, structure, [("network", "file")])
    assert seen == [0, 2]
    assert found.scores["network"] == found.scores["file"]
    assert found.agreements["network", "file"].sqnr == math.inf


class TwoHeads(nn.Module):
    def forward(self, x):
        return {"boxes": x, "scores": torch.cat([x, -x], 1)}


class OnScores(Classification):
    """A classification of one of two outputs."""

    def metrics(self, classes):
        return {score: Of(metric, "scores") for score, metric in super().metrics(classes).items()}

    def decision(self, outputs):
        return outputs["scores"].argmax(1)


def Of(metric, key):  # noqa: N802
    """The metric of one output."""
    update = metric.update
    metric.update = lambda outputs, targets: update(outputs[key], targets)
    return metric


def test_a_network_is_run_in_evaluation_mode():
    run = of_network(nn.Dropout(0.9).train(), "cpu")
    assert run((torch.ones(2, 3),))[0].tolist() == [[1] * 3] * 2


AGREEMENT = Agreement(1000, 0.999, 0.1, 0.01, 47.5)


def exactness(provider="CPUExecutionProvider"):
    """Three codes of integer kernels differ, and five behind float operators."""
    tensors = (
        TensorDifference("conv", 1000, 3, 1, True),
        TensorDifference("gelu", 1000, 5, 2, False),
    )
    return Exactness(100, provider, tensors)


def accuracies(float_top1, trained, onnx):
    made = (None if x is None else {"top1": x} for x in (float_top1, trained, onnx))
    return Accuracies(*made)


@pytest.mark.parametrize(
    ("three", "lost"),
    [((0.99, 0.98, 0.97), 2.0), ((None, 0.98, 0.97), 1.0), ((None, None, 0.97), None),
     ((0.99, 0.98, None), None), ((0.95, 0.9, 0.96), -1.0)],
)  # fmt: skip
def test_the_drop_is_from_the_float_network_or_else_the_trained_one(three, lost):
    found = drop(accuracies(*three), TOP1)
    assert found is None if lost is None else found == pytest.approx(lost)


def test_a_drop_is_in_the_unit_of_the_score():
    forms = Accuracies({"psnr": 31.5, "mae": 0.02}, None, {"psnr": 31.0, "mae": 0.05})
    assert drop(forms, PSNR) == pytest.approx(0.5)
    assert drop(forms, MAE) == pytest.approx(0.03)


def test_gates_on_scores_are_the_least_or_the_most():
    forms = Accuracies(None, None, {"psnr": 31.0, "mae": 0.05})
    section = ExportSection(gates={"psnr": 30.0, "mae": 0.04}, min_sqnr=40.0)
    found = check_gates(section, forms, AGREEMENT, None, 1, (PSNR, MAE))
    assert [(gate.name, gate.limit, gate.value, gate.passed) for gate in found] == [
        ("min_sqnr", 40.0, 47.5, True), ("min_psnr", 30.0, 31.0, True), ("max_mae", 0.04, 0.05, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (
            {"gates": {"psnrr": 30.0}},
            r"export.gates.psnrr: .* Did you mean psnr\? It has psnr, mae",
        ),
        ({"min_agreement": 0.9}, "export.min_agreement is a share .* export.min_sqnr"),
    ],
)
def test_a_gate_on_what_is_not_measured_is_found_before_the_export(limits, said):
    with pytest.raises(QdeployError, match=said):
        check_possible(ExportSection(**limits), Regression(), (PSNR, MAE))


@pytest.mark.parametrize(
    ("limits", "passed"),
    [
        ({}, []),
        ({"min_sqnr": 47}, [True]),
        ({"min_sqnr": 48}, [False]),
        ({"max_drop": 1.5}, [True]),
        ({"max_drop": 0.5}, [False]),
        ({"min_agreement": 0.999}, [True]),
        ({"min_agreement": 0.9995}, [False]),
        ({"max_size": 5000}, [True]),
        ({"max_size": 4999}, [False]),
        ({"max_differing": 3}, [True]),
        ({"max_differing": 2}, [False]),
        ({"max_drop": 2.0, "min_agreement": 1.0, "max_size": 9000}, [True, False, True]),
    ],
)
def test_gates(limits, passed):
    trio = accuracies(0.99, 0.99, 0.98)
    found = check_gates(ExportSection(**limits), trio, AGREEMENT, exactness(), 5000, CLASSIFICATION)
    assert [gate.passed for gate in found] == passed
    assert [gate.name for gate in found] == list(limits)


def test_what_was_not_measured_does_not_pass():
    limits = ExportSection(max_drop=50, min_agreement=0.1, max_differing=9)
    found = check_gates(limits, accuracies(None, None, None), None, None, 1, CLASSIFICATION)
    assert [(gate.value, gate.passed) for gate in found] == [(None, False)] * 3


def test_outputs_that_are_no_numbers_pass_no_gate():
    def of(outputs):
        return lambda inputs: [outputs[: len(inputs[0])]]

    right = torch.eye(4)
    wrong = right.clone()
    wrong[2, 0] = math.nan
    forms = {"network": of(right), "file": of(wrong)}
    parts = [(right[:3], torch.arange(3)), (right[:1], torch.arange(1))]
    structure = pytree.tree_structure(0)
    judged = judge(forms, parts, Classification(), 4, structure, [("network", "file")])
    agreement = judged.agreements["network", "file"]
    assert math.isnan(agreement.largest)
    section = ExportSection(min_sqnr=-1000, max_drop=1000)
    nothing = accuracies(0.5, 0.5, math.nan)
    found = check_gates(section, nothing, agreement, None, 1, CLASSIFICATION)
    assert [gate.passed for gate in found] == [False, False]


def test_two_infinite_scores_are_equal():
    assert drop(Accuracies({"psnr": math.inf}, None, {"psnr": math.inf}), PSNR) == 0
    assert drop(Accuracies({"psnr": math.inf}, None, {"psnr": 40.0}), PSNR) == math.inf


MACHINE = Machine("a processor", 2, None, "Linux", "3.11", "1.31", ("AVX2",), saturates=True)


@pytest.mark.parametrize(
    ("provider", "machine", "layers", "limit"),
    [
        ("CPUExecutionProvider", MACHINE, (), 0),
        ("CPUExecutionProvider", MACHINE, ("fc",), None),
        ("CPUExecutionProvider", replace(MACHINE, saturates=False), ("fc",), 0),
        ("CPUExecutionProvider", replace(MACHINE, instructions=("NEON",)), (), None),
        ("CUDAExecutionProvider", MACHINE, (), None),
    ],
)
def test_no_code_may_differ_where_the_kernels_are_known(provider, machine, layers, limit):
    saturation = Saturation("model.onnx", layers, 9)
    found = with_promises(ExportSection(), exactness(provider), machine, saturation)
    assert found.max_differing == limit
    assert with_promises(ExportSection(), None, machine, saturation).max_differing is None
    own = with_promises(ExportSection(max_differing=7), exactness(provider), machine, saturation)
    assert own.max_differing == 7
