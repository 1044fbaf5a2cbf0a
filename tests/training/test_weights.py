"""Weights from files of several kinds, and what is said when they do not fit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qdeploy.errors import QdeployError
from qdeploy.training.checkpoint import Checkpoint, save_checkpoint
from qdeploy.training.weights import load_float_weights, load_network_state

State = dict[str, Tensor]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def checkpoint_of(state: State, shipped: State | None = None) -> Checkpoint:
    return Checkpoint("net by slb", [], state, shipped or {}, {}, {})


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {"module." + name: value for name, value in state.items()},
        lambda state: {"model": {"module." + name: value for name, value in state.items()}},
    ],
    ids=["bare", "state_dict", "model", "module.", "model+module."],
)
def test_state_dicts_of_others(tmp_path: Path, wrap: Callable[[State], object]) -> None:
    given, taker = network(), network()
    torch.save(wrap(given.state_dict()), tmp_path / "weights.pt")
    load_float_weights(taker, tmp_path / "weights.pt")
    torch.testing.assert_close(taker.state_dict(), given.state_dict(), rtol=0, atol=0)


def test_a_network_whose_own_part_is_called_module_or_model(tmp_path: Path) -> None:
    given, taker = nn.Module(), nn.Module()
    for parent in (given, taker):
        parent.module = nn.Linear(2, 2)
        parent.model = nn.Parameter(torch.randn(3))
    torch.save(given.state_dict(), tmp_path / "weights.pt")
    load_float_weights(taker, tmp_path / "weights.pt")
    torch.testing.assert_close(taker.state_dict(), given.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_and_the_best_one_of_a_run_folder(tmp_path: Path) -> None:
    best, last, taker = network(), network(), network()
    save_checkpoint(checkpoint_of(best.state_dict()), tmp_path / "best.pt")
    save_checkpoint(checkpoint_of(last.state_dict()), tmp_path / "last.pt")
    load_float_weights(taker, tmp_path / "last.pt")
    assert torch.equal(taker[0].weight, last[0].weight)
    load_float_weights(taker, tmp_path)
    assert torch.equal(taker[0].weight, best[0].weight)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(QdeployError, match=r"cannot read .*best\.pt: No such file"):
        load_float_weights(network(), tmp_path)


def test_a_state_dict_without_counters(tmp_path: Path) -> None:
    given, taker = network(), network()
    state = {n: v for n, v in given.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert len(state) < len(given.state_dict())
    torch.save(state, tmp_path / "weights.pt")
    load_float_weights(taker, tmp_path / "weights.pt")
    torch.testing.assert_close(taker.state_dict(), given.state_dict(), rtol=0, atol=0)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    state = network().state_dict()
    state["0.weight"][1, 2] = float("nan")
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(QdeployError, match=r"weights\.pt: 0\.weight holds values that are not fin"):
        load_float_weights(network(), tmp_path / "weights.pt")


@pytest.mark.parametrize("wrap", [lambda given: given, lambda given: {"model": given}])
def test_a_whole_network_instead_of_its_weights(tmp_path: Path, wrap: Callable) -> None:
    torch.save(wrap(network()), tmp_path / "weights.pt")
    with pytest.raises(QdeployError, match="holds a whole network or other Python objects"):
        load_float_weights(network(), tmp_path / "weights.pt")


def test_the_keys_of_a_file_without_a_state_dict_are_named(tmp_path: Path) -> None:
    torch.save({"net": network().state_dict(), "epoch": 3}, tmp_path / "weights.pt")
    with pytest.raises(QdeployError, match=r"no state dict \(keys: net, epoch\); save one with"):
        load_float_weights(network(), tmp_path / "weights.pt")


@pytest.mark.parametrize("content", [torch.ones(2), {}, {"epoch": 3}, {"model": {"a": 1}}])
def test_a_file_without_a_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(QdeployError, match=r"weights\.pt holds no state dict.*; save one with"):
        load_float_weights(network(), tmp_path / "weights.pt")


def test_misfits_are_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    state = network().state_dict()
    del state["1.running_mean"]
    state["0.weight"] = torch.zeros(2, 5)
    state |= {f"extra{i}": torch.zeros(1) for i in range(7)}
    torch.save(state, tmp_path / "weights.pt")
    taker = network()
    before = {name: value.clone() for name, value in taker.state_dict().items()}

    with pytest.raises(QdeployError) as caught:
        load_float_weights(taker, tmp_path / "weights.pt")

    assert str(caught.value).startswith(
        f"{tmp_path / 'weights.pt'} does not fit Sequential: missing: 1.running_mean; "
        "unexpected: extra0, extra1, extra2, extra3 and 3 more; "
        "of another shape: 0.weight [2, 5] instead of [2, 3]; give "
    )
    torch.testing.assert_close(taker.state_dict(), before, rtol=0, atol=0)


def test_the_shipped_buffers_are_laid_over_the_trained_ones() -> None:
    checkpoint = checkpoint_of(
        network().state_dict(), shipped={"1.running_mean": torch.tensor([5.0, 6.0])}
    )
    taker = network()
    load_network_state(taker, checkpoint)
    assert taker[1].running_mean.tolist() == [5, 6]
    load_network_state(taker, checkpoint, shipped=False)
    assert taker[1].running_mean.tolist() == [0, 0]


def test_a_checkpoint_of_another_network() -> None:
    with pytest.raises(QdeployError, match="the checkpoint of net by slb does not fit Sequential"):
        load_network_state(network(), checkpoint_of({"a": torch.ones(1)}))
