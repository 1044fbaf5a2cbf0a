"""Accuracy, agreement and gates, against numbers counted by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from qdeploy.proof.gates import check_gates, top1_drop, with_promises
from qdeploy.proof.outputs import Predictions, of_network, predict
from qdeploy.recipe import ExportSection
from qdeploy.record import (
    Accuracies,
    Accuracy,
    Agreement,
    Exactness,
    Machine,
    Saturation,
    TensorDifference,
)

LABELS = np.array([0, 1, 2, 3])


def logits(*rows):
    return np.array(rows, np.float32)


def test_top1_and_top5():
    ranked = np.tile(np.arange(7, 0, -1, dtype=np.float32), (4, 1))  # class 0 first, 4 fifth
    predictions = Predictions({"onnx": ranked}, np.array([0, 4, 5, 0]))
    assert predictions.accuracy("onnx") == Accuracy(0.5, 0.75)
    assert predictions.accuracy("float") is None


def test_top5_needs_more_than_five_classes():
    predictions = Predictions({"onnx": np.eye(4, 5, dtype=np.float32)}, LABELS)
    assert predictions.accuracy("onnx") == Accuracy(1.0, None)


def test_agreement():
    a = logits([1, 0], [0, 1], [3, 2], [0, 1])
    b = logits([1, 0], [1, 0.5], [3, 2], [0, 1.5])
    found = Predictions({"a": a, "b": b}, LABELS).agreement("a", "b")
    assert found.top1 == 0.75
    assert found.max_logit_difference == 1.0
    assert found.mean_logit_difference == pytest.approx((1 + 0.5 + 0.5) / 8)
    assert found.samples == 4


def test_every_classifier_sees_the_same_batches_once():
    seen = []

    def batches():
        for start in (0, 2):
            seen.append(start)
            yield torch.arange(start, start + 2).float()[:, None], torch.tensor([start, start + 1])

    double, half = (lambda x, f=f: (x * f).numpy() for f in (2, 0.5))
    predictions = predict({"double": double, "half": half}, batches())
    assert seen == [0, 2]
    assert predictions.labels.tolist() == [0, 1, 2, 3]
    assert predictions.logits["double"].ravel().tolist() == [0, 2, 4, 6]
    assert predictions.logits["half"].ravel().tolist() == [0, 0.5, 1, 1.5]


def test_a_network_is_run_in_evaluation_mode():
    classify = of_network(nn.Dropout(0.9).train(), "cpu")
    assert classify(torch.ones(2, 3)).tolist() == [[1] * 3] * 2


AGREEMENT = Agreement(0.999, 0.1, 0.01, 1000)


def exactness(provider="CPUExecutionProvider"):
    """Three codes of integer kernels differ, and five behind float operators."""
    tensors = (
        TensorDifference("conv", 1000, 3, 1, True),
        TensorDifference("gelu", 1000, 5, 2, False),
    )
    return Exactness(100, provider, tensors)


def accuracies(float_top1, trained, onnx):
    made = (None if top1 is None else Accuracy(top1, None) for top1 in (float_top1, trained, onnx))
    return Accuracies(*made)


@pytest.mark.parametrize(
    ("three", "drop"),
    [((0.99, 0.98, 0.97), 2.0), ((None, 0.98, 0.97), 1.0), ((None, None, 0.97), None),
     ((0.99, 0.98, None), None), ((0.95, 0.9, 0.96), -1.0)],
)  # fmt: skip
def test_the_drop_is_from_the_float_network_or_else_the_trained_one(three, drop):
    found = top1_drop(accuracies(*three))
    assert found is None if drop is None else found == pytest.approx(drop)


@pytest.mark.parametrize(
    ("limits", "passed"),
    [
        ({}, []),
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
    found = check_gates(ExportSection(**limits), trio, AGREEMENT, exactness(), 5000)
    assert [gate.passed for gate in found] == passed
    assert [gate.name for gate in found] == list(limits)


def test_what_was_not_measured_does_not_pass():
    limits = ExportSection(max_drop=50, min_agreement=0.1, max_differing=9)
    found = check_gates(limits, accuracies(None, None, None), None, None, 1)
    assert [(gate.value, gate.passed) for gate in found] == [(None, False)] * 3


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
