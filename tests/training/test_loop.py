"""The loop against a loop written out by hand, and everything that may interrupt it."""

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import (
    SETTINGS,
    SignSearch,
    TinyBatches,
    assert_same_state,
    data_that_fails,
    seed_by_hand,
    shipped_statistics,
    tiny_data,
    tiny_fit,
    tiny_network,
)
from torch import nn
from torch.nn.functional import cross_entropy, linear

from qdeploy.errors import QdeployError
from qdeploy.methods.slb import MARGIN
from qdeploy.tasks import Classification
from qdeploy.training import evaluate as evaluation
from qdeploy.training import loop
from qdeploy.training.checkpoint import load_checkpoint
from qdeploy.training.console import Console
from qdeploy.training.evaluate import evaluate


def plain_loop() -> nn.Module:
    """SETTINGS on the tiny data, in nothing but PyTorch."""
    network = tiny_network()
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 0.01}, {"params": others, "weight_decay": 0}],
        lr=0.05,
        momentum=0.9,
        nesterov=True,
    )
    batches = TinyBatches(shuffle=True)
    for epoch in range(4):
        seed_by_hand(epoch)
        for step, (images, labels) in enumerate(batches.epoch(epoch)):
            progress = epoch + (step + 0.5) / 5
            cosine = 0.5 + 0.5 * np.cos(np.pi * (progress - 1) / 3)
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * (progress if progress < 1 else cosine)
            optimizer.zero_grad()
            cross_entropy(network(images), labels, label_smoothing=0.1).backward()
            torch.nn.utils.clip_grad_norm_([*weights, *others], 1.0)
            optimizer.step()
    return network


def test_the_weights_are_bitwise_those_of_a_plain_loop(tmp_path: Path) -> None:
    network = tiny_network()
    tiny_fit(network, tmp_path)
    assert_same_state(network, plain_loop())


def test_it_learns_and_records_what_evaluation_finds(tmp_path: Path) -> None:
    network = tiny_network()
    result = tiny_fit(network, tmp_path, epochs=20)
    last = result[-1]
    assert (last.epoch, last.steps) == (20, 100)
    assert last.train["loss"] < result[0].train["loss"]
    assert last.test["top1"] > 0.8  # chance is 0.25
    assert evaluate(network, tiny_data().test.epoch(0), Classification(), 4) == last.test
    assert last.lr == pytest.approx(0.05 * np.sin(np.pi / 2 * 0.1 / 19) ** 2, rel=1e-6)


def test_the_best_checkpoint_is_the_earlier_of_equals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([0.5, 0.75, 0.75, 0.25])
    monkeypatch.setattr(loop, "evaluate", lambda *_: {"loss": 1.0, "top1": next(accuracies)})
    result = tiny_fit(tiny_network(), tmp_path)
    assert [record.test["top1"] for record in result] == [0.5, 0.75, 0.75, 0.25]
    assert load_checkpoint(tmp_path / "best.pt").epoch == 2
    assert load_checkpoint(tmp_path / "last.pt").epoch == result[-1].epoch == 4


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    data = tiny_data()
    data.train.images[13] = torch.nan  # seen for the first time when the data is exchanged
    tiny_fit(tiny_network(), tmp_path, epochs=2)
    good = (tmp_path / "last.pt").read_bytes()

    with pytest.raises(QdeployError, match=r"diverged: loss nan in epoch 3, step \d, .*rate 0\.0"):
        tiny_fit(tiny_network(), tmp_path, data=data, resume=True)
    assert (tmp_path / "last.pt").read_bytes() == good


def test_an_infinite_test_loss_is_not_kept_either(tmp_path: Path) -> None:
    data = tiny_data()
    data.test.images[13] = torch.inf
    with pytest.raises(QdeployError, match="diverged: test loss nan after epoch 1"):
        tiny_fit(tiny_network(), tmp_path, data=data)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.csv", "scores.json"]


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_label_that_the_network_has_no_output_for_is_named(part: str, tmp_path: Path) -> None:
    data = tiny_data()
    getattr(data, part).labels[13] = 4
    with pytest.raises(
        QdeployError, match=r"^Target 4 is out of bounds: .* 4 classes, so labels are 0 to 3"
    ):
        tiny_fit(tiny_network(), tmp_path, data=data)


def test_another_index_error_of_a_loss_is_that_of_the_users_code(tmp_path: Path) -> None:
    class Broken(Classification):
        def training_loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return outputs.sum() + [1.0][1]

    with pytest.raises(IndexError, match="list index out of range"):
        tiny_fit(tiny_network(), tmp_path, task=Broken())


def test_too_high_a_learning_rate_is_named(tmp_path: Path) -> None:
    with pytest.raises(QdeployError, match=r"learning rate .*e\+.*; lower train\.lr"):
        tiny_fit(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), tmp_path, lr=1e38, clip_norm=None)


@pytest.mark.parametrize(("epoch", "step"), [(0, 3), (1, 0), (2, 4)])
def test_after_ctrl_c_the_run_goes_on_to_the_same_weights(
    tmp_path: Path, epoch: int, step: int
) -> None:
    stream = io.StringIO()
    data = data_that_fails(KeyboardInterrupt(), epoch, step)
    with pytest.raises(KeyboardInterrupt):
        tiny_fit(tiny_network(), tmp_path, data=data, console=Console(stream=stream))
    assert f"stopped: {tmp_path} holds {epoch} of 4 epochs\n" in stream.getvalue()

    torch.rand(5)  # the interrupted process left its generators anywhere
    network = tiny_network()
    tiny_fit(network, tmp_path, resume=True)
    assert_same_state(network, plain_loop())


def test_resuming_a_finished_run_gives_its_result(tmp_path: Path) -> None:
    result = tiny_fit(tiny_network(), tmp_path)
    network = tiny_network()
    assert tiny_fit(network, tmp_path, resume=True) == result
    assert_same_state(network, plain_loop())


def test_a_checkpoint_of_another_method_is_refused(tmp_path: Path) -> None:
    tiny_fit(tiny_network(), tmp_path, epochs=1, method="slb")
    with pytest.raises(
        QdeployError,
        match=r"last\.pt is .* of network lenet5, method slb, and this run is of .* simqat; give",
    ):
        tiny_fit(tiny_network(), tmp_path, resume=True, method="simqat")


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    tiny_fit(tiny_network(), tmp_path, epochs=1)
    with pytest.raises(
        QdeployError, match=r"does not fit Sequential: unexpected: 0\.weight.*1\.weight \[3\]"
    ):
        tiny_fit(nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), tmp_path, resume=True)


class Busy(nn.Sequential):
    """A float network whose own words are those of a prepared one."""

    progress = 0.5
    searching = True

    def set_progress(self, epoch: int, epochs: int) -> None:
        raise AssertionError("not for us to call")


def test_a_float_network_may_have_any_attributes_of_its_own(tmp_path: Path) -> None:
    network = Busy(*tiny_network())
    result = tiny_fit(network, tmp_path)
    assert_same_state(network, plain_loop())
    assert [record.progress for record in result] == [{}] * 4
    assert load_checkpoint(tmp_path / "last.pt").shipped == {}


def test_progress_is_told_before_each_epoch(tmp_path: Path) -> None:
    network = SignSearch(commit_epoch=2)
    tiny_fit(network, tmp_path)
    assert network.told == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_calibration_is_for_evaluation_until_the_commitment_and_lasts_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    for module in (evaluation, loop):

        def calibrate(
            network: SignSearch, batches: Iterator, where: str = module.__name__, **_: bool
        ) -> None:
            calls.append((where.rpartition(".")[2], len(network.told), len(list(batches))))

        monkeypatch.setattr(module, "calibrate", calibrate)

    tiny_fit(SignSearch(commit_epoch=2), tmp_path)
    # (who asked, the epoch from 1, batches)
    assert calls == [("evaluate", 1, 2), ("evaluate", 2, 2), ("loop", 3, 2)]


def test_the_committed_network_starts_from_its_own_statistics(tmp_path: Path) -> None:
    data = data_that_fails(KeyboardInterrupt(), epoch=2, step=2)  # step 2: calibrated, 2 trained
    network = SignSearch(commit_epoch=2)
    network.norm.momentum = 0.0  # training leaves the statistics as calibration put them
    with pytest.raises(KeyboardInterrupt):
        tiny_fit(network, tmp_path, data=data)
    mean, variance = shipped_statistics(network, islice(tiny_data().train.epoch(2), 2))
    torch.testing.assert_close(network.norm.running_mean, mean)
    torch.testing.assert_close(network.norm.running_var, variance)


def test_evaluation_while_searching_is_of_the_weights_that_ship(tmp_path: Path) -> None:
    network = SignSearch(commit_epoch=9)
    result = tiny_fit(network, tmp_path, epochs=3)
    checkpoint = load_checkpoint(tmp_path / "last.pt")
    data = tiny_data()

    mean, variance = shipped_statistics(network, islice(data.train.epoch(2), 2))
    with torch.no_grad():
        hard = linear(data.test.images.flatten(1), network.logits.sign())
        hard = (hard - mean) / (variance + network.norm.eps).sqrt()
        logits = network.head(hard * network.norm.weight + network.norm.bias)

    assert result[-1].test["loss"] == pytest.approx(cross_entropy(logits, data.test.labels).item())
    torch.testing.assert_close(checkpoint.shipped["2.running_mean"], mean)
    torch.testing.assert_close(
        checkpoint.state["2.running_mean"], network.norm.running_mean, rtol=0, atol=0
    )
    assert not torch.allclose(network.norm.running_mean, mean)


def test_after_the_commitment_the_integers_stay(tmp_path: Path) -> None:
    network = SignSearch(commit_epoch=2)
    tiny_fit(network, tmp_path, epochs=2)
    searched = network.logits.sign()
    head = network.head.weight.detach().clone()

    network = SignSearch(commit_epoch=2)
    tiny_fit(network, tmp_path, epochs=5, resume=True)

    assert torch.equal(network.logits, searched * MARGIN)  # hardened, and at rest since
    assert not torch.equal(network.head.weight, head)
    checkpoint = load_checkpoint(tmp_path / "last.pt")
    assert checkpoint.shipped == {}


@pytest.mark.parametrize(("epoch", "commit"), [(1, 2), (2, 2), (3, 2), (3, 9)])
def test_an_interrupted_search_ends_in_the_same_weights(
    tmp_path: Path, epoch: int, commit: int
) -> None:
    whole = SignSearch(commit)
    expected = tiny_fit(whole, tmp_path / "whole")

    data = data_that_fails(KeyboardInterrupt(), epoch, step=1)
    with pytest.raises(KeyboardInterrupt):
        tiny_fit(SignSearch(commit), tmp_path / "cut", data=data)
    network = SignSearch(commit)
    history = tiny_fit(network, tmp_path / "cut", resume=True)

    assert_same_state(network, whole)
    assert [r.test for r in history] == [r.test for r in expected]


def test_the_settings_are_those_of_the_plain_loop() -> None:
    """The plain loop repeats SETTINGS as numbers; a change there must be made here."""
    assert SETTINGS.model_dump(exclude_defaults=True) == {
        **{"epochs": 4, "seed": 3, "lr": 0.05, "nesterov": True, "weight_decay": 0.01},
        "schedule": "cosine",
        **{"warmup_epochs": 1, "label_smoothing": 0.1, "clip_norm": 1.0, "calibration_batches": 2},
    }
