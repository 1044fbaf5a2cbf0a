"""The buffers that would ship, while the integers are still searched for."""

from collections.abc import Callable, Iterable

import pytest
import torch
from tiny_runs import SignSearch, TinyBatches, shipped_statistics
from torch import Tensor, nn

from qdeploy.preparation.prepared import is_searching
from qdeploy.training import evaluate
from qdeploy.training.evaluate import shipped_buffers


def buffers(network: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[name]) for name, value in left.items())


def test_inside_the_buffers_are_calibrated_and_afterwards_restored() -> None:
    network = SignSearch(commit_epoch=9)
    batches = list(TinyBatches(shuffle=False).epoch(0))
    mean, variance = shipped_statistics(network, batches)
    before = buffers(network)

    with shipped_buffers(network, batches) as calibrated:
        now = buffers(network)
        now.pop("1.quantizer.codes")  # the levels of the grid, which no checkpoint keeps
        assert_equal(calibrated, now)

    torch.testing.assert_close(calibrated["2.running_mean"], mean)
    torch.testing.assert_close(calibrated["2.running_var"], variance)
    assert_equal(buffers(network), before)


def test_the_buffers_come_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil_then_fail(network: SignSearch, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        network.norm.running_mean.fill_(7)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "calibrate", spoil_then_fail)
    network = SignSearch(commit_epoch=9)
    before = buffers(network)
    with pytest.raises(KeyboardInterrupt), shipped_buffers(network, []):
        pass
    assert_equal(buffers(network), before)


def test_a_shared_module_is_shipped_under_all_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def calibrate(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        network.left.running_mean.fill_(7)

    monkeypatch.setattr(evaluate, "calibrate", calibrate)
    network = SignSearch(commit_epoch=9)
    network.left = network.right = nn.BatchNorm1d(2)
    network.register_buffer("scratch", torch.zeros(1), persistent=False)
    with shipped_buffers(network, []) as calibrated:
        pass
    parameters = dict(network.named_parameters(remove_duplicate=False))
    assert calibrated.keys() == network.state_dict().keys() - parameters.keys()
    assert torch.equal(calibrated["right.running_mean"], torch.full((2,), 7.0))


def committed() -> nn.Module:
    network = SignSearch(commit_epoch=2)
    network.set_progress(2, 4)
    return network


def with_words_of_its_own() -> nn.Module:
    network = nn.BatchNorm1d(2)
    network.searching = True
    return network


@pytest.mark.parametrize("make", [committed, with_words_of_its_own])
def test_nothing_happens_to_a_network_that_is_not_searching(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], nn.Module]
) -> None:
    monkeypatch.setattr(evaluate, "calibrate", None)  # calling it would fail
    network = make()
    before = buffers(network)
    assert not is_searching(network)
    with shipped_buffers(network, []) as calibrated:
        assert calibrated == {}
    assert_equal(buffers(network), before)
