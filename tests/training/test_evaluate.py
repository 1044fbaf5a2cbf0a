"""Metrics against NumPy, and that evaluation leaves no trace."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.backends import cudnn

import qdeploy
from qdeploy.tasks import Classification
from qdeploy.training import evaluate as evaluation


def evaluate(network: nn.Module, data: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    return evaluation.evaluate(network, data, Classification(), data[0][0].shape[1])


def batches(classes: int) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(classes)
    return [
        (torch.randn(size, classes, generator=random), torch.arange(size) % classes)
        for size in (7, 7, 3)
    ]


@pytest.mark.parametrize("classes", [3, 5, 12])
def test_metrics_are_those_of_numpy(classes: int) -> None:
    data = batches(classes)
    logits = np.concatenate([x.numpy().astype(np.float64) for x, _ in data])
    labels = np.concatenate([y.numpy() for _, y in data])
    own = logits[np.arange(17), labels]
    rank = (logits > own[:, None]).sum(1)

    metrics = evaluate(nn.Identity(), data)

    assert metrics["loss"] == pytest.approx(np.mean(np.log(np.exp(logits).sum(1)) - own), rel=1e-5)
    assert metrics["top1"] == np.mean(rank < 1)
    assert metrics["error1"] == np.mean(rank >= 1)
    assert metrics.get("top5") == (np.mean(rank < 5) if classes > 5 else None)


def test_of_a_prepared_network_the_integers_are_tested_and_it_stays_as_it_is() -> None:
    torch.manual_seed(0)
    data = batches(5)
    network = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 5))
    prepared = qdeploy.prepare(network, data[0][0], "simqat", 2, 2).train()
    qdeploy.calibrate(prepared, data)
    before = {name: value.clone() for name, value in prepared.state_dict().items()}

    found = evaluate(prepared, data)

    logits = torch.cat([qdeploy.convert(prepared)(x) for x, _ in data])
    labels = torch.cat([y for _, y in data])
    assert found["loss"] == pytest.approx(
        nn.functional.cross_entropy(logits, labels).item(), rel=1e-6
    )
    in_float = evaluate(nn.Sequential(prepared), data)  # what is no prepared network is itself
    assert found["loss"] != pytest.approx(in_float["loss"], rel=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())
    assert all(module.training for module in prepared.modules())


class Looking(nn.Module):
    """Notes what cuDNN may do while it runs."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = (cudnn.allow_tf32, cudnn.deterministic)
        return x


@pytest.mark.parametrize("deterministic", [False, True])
def test_no_convolution_is_tested_in_tf32_and_the_settings_of_training_are_back(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cudnn, "deterministic", deterministic)
    network, before = Looking(), cudnn.allow_tf32
    evaluate(network, batches(3))
    assert network.seen == (False, deterministic)
    assert (cudnn.allow_tf32, cudnn.deterministic) == (before, deterministic)


def test_weights_buffers_gradients_and_modes_stay() -> None:
    network = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.9), nn.Linear(4, 4))
    network[0].eval()  # somebody froze this one
    before = {name: value.clone() for name, value in network.state_dict().items()}

    first, second = evaluate(network, batches(4)), evaluate(network, batches(4))

    assert first == second
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert [module.training for module in network.modules()] == [True, False, True, True]


def test_the_modes_come_back_after_an_error() -> None:
    network = nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        evaluate(network, batches(4))
    assert network.training
