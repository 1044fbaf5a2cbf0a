"""The network as it would ship, while its integers are still searched for."""

from collections.abc import Iterable

import pytest
import torch
from tiny_runs import SignSearch, TinyBatches, shipped_statistics
from torch import Tensor, nn

from qdeploy.training import search
from qdeploy.training.search import is_searching, set_progress, shipped


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

    with shipped(network, batches) as calibrated:
        assert_equal(calibrated, buffers(network))

    torch.testing.assert_close(calibrated["norm.running_mean"], mean)
    torch.testing.assert_close(calibrated["norm.running_var"], variance)
    assert_equal(buffers(network), before)


def test_the_buffers_come_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil_then_fail(network: SignSearch, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        network.norm.running_mean.fill_(7)
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "calibrate", spoil_then_fail)
    network = SignSearch(commit_epoch=9)
    before = buffers(network)
    with pytest.raises(KeyboardInterrupt), shipped(network, []):
        pass
    assert_equal(buffers(network), before)


def test_a_shared_module_is_shipped_under_all_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def calibrate(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        network.left.running_mean.fill_(7)

    monkeypatch.setattr(search, "calibrate", calibrate)
    network = nn.Module()
    network.searching = True
    network.left = network.right = nn.BatchNorm1d(2)
    network.register_buffer("scratch", torch.zeros(1), persistent=False)
    with shipped(network, []) as calibrated:
        pass
    assert calibrated.keys() == network.state_dict().keys() - {"left.weight", "left.bias"} - {
        "right.weight",
        "right.bias",
    }
    assert torch.equal(calibrated["right.running_mean"], torch.full((2,), 7.0))


def test_nothing_happens_to_a_network_that_is_not_searching(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search, "calibrate", None)  # calling it would fail
    network = nn.BatchNorm1d(2)
    assert not is_searching(network)
    set_progress(network, 0, 1)
    with shipped(network, []) as calibrated:
        assert calibrated == {}
