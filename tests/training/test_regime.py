"""Regimes: pure in progress, and a run under one is the loop that one would write by hand."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import (
    SignSearch,
    TinyBatches,
    assert_same_state,
    data_that_fails,
    seed_by_hand,
    tiny_fit,
    tiny_network,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qdeploy.methods.slb import MARGIN
from qdeploy.recipe import TrainPhase, TrainSection
from qdeploy.training.checkpoint import load_checkpoint

REGIME = (
    TrainPhase(epoch=0, lr=0.05, momentum=0.5),
    TrainPhase(step=7, lr=0.02, weight_decay=0.1, nesterov=True),
    TrainPhase(epoch=2, optimizer="adamw", lr=0.01, betas=(0.5, 0.8)),
    TrainPhase(step=17, weight_decay=0.0),
    TrainPhase(epoch=4, optimizer="sgd", momentum=0.9, lr=0.03),
)
SETTINGS = {"epochs": 5, "schedule": None, "nesterov": False, "regime": REGIME}


@st.composite
def regimes(draw: st.DrawFn) -> tuple[TrainPhase, ...]:
    changes = st.fixed_dictionaries(
        {},
        optional={
            "optimizer": st.sampled_from(["sgd", "adam", "adamw"]),
            "lr": st.sampled_from([0.1, 0.2, 0.3]),
            "momentum": st.sampled_from([0.1, 0.5, 0.9]),
            "weight_decay": st.sampled_from([0.0, 0.1]),
        },
    )
    starts = {
        "epoch": sorted(draw(st.sets(st.integers(0, 8), max_size=4))),
        "step": sorted(draw(st.sets(st.integers(0, 40), max_size=4))),
    }
    units = [unit for unit, given in starts.items() for _ in given]
    return tuple(
        TrainPhase(**{unit: starts[unit].pop(0)}, **draw(changes))
        for unit in draw(st.permutations(units))
    )


@given(regime=regimes(), lengths=st.lists(st.integers(1, 7), min_size=8, max_size=8))
def test_phases_add_up_and_depend_on_progress_alone(
    regime: tuple[TrainPhase, ...], lengths: list[int]
) -> None:
    """Against a walk through the run that remembers, for each key, the last phase that gave it."""
    section = TrainSection(regime=regime)
    whole = section.model_dump(exclude={"regime"})
    walk, step = [], 0
    for epoch, length in enumerate(lengths):
        for _ in range(length):
            expected = dict(whole)
            for phase in regime:
                started = phase.epoch is not None and epoch >= phase.epoch
                started |= phase.step is not None and step >= phase.step
                for key in ("optimizer", "lr", "momentum", "weight_decay"):
                    value = getattr(phase, key)
                    if started and value is not None:
                        expected[key] = value
            walk.append((epoch, step, expected))
            step += 1
    for epoch, step, expected in reversed(walk):  # in any order: nothing is remembered
        assert section.at(epoch, step).model_dump(exclude={"regime"}) == expected


def by_hand() -> nn.Module:
    """REGIME on the tiny data, in nothing but PyTorch."""
    network = tiny_network()
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim == 1]
    batches = TinyBatches(shuffle=True)

    def steps(count: int, batch: Iterator[tuple[Tensor, Tensor]]) -> None:
        for _ in range(count):
            images, labels = next(batch)
            optimizer.zero_grad()
            cross_entropy(network(images), labels, label_smoothing=0.1).backward()
            torch.nn.utils.clip_grad_norm_([*weights, *others], 1.0)
            optimizer.step()

    def batch() -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in range(5):
            seed_by_hand(epoch)
            yield from batches.epoch(epoch)

    source = batch()
    groups = [{"params": weights, "weight_decay": 0.01}, {"params": others, "weight_decay": 0}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.5)
    for factor in (0.1, 0.3, 0.5, 0.7, 0.9):  # warm-up
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * factor
        steps(1, source)
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    steps(2, source)
    for group, decay in zip(optimizer.param_groups, (0.1, 0.0), strict=True):
        group.update(lr=0.02, nesterov=True, weight_decay=decay)
    steps(3, source)
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": others, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.5, 0.8))
    steps(7, source)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    steps(3, source)
    optimizer = torch.optim.SGD([*weights, *others], lr=0.03, momentum=0.9, nesterov=True)
    steps(5, source)
    assert next(source, None) is None
    return network


def test_a_run_is_the_loop_by_hand(tmp_path: Path) -> None:
    network = tiny_network()
    result = tiny_fit(network, tmp_path, **SETTINGS)
    assert_same_state(network, by_hand())
    assert [record.lr for record in result] == [0.05 * 0.9, 0.02, 0.01, 0.01, 0.03]


@pytest.mark.parametrize(
    ("epoch", "step"), [(0, 1), (1, 1), (1, 4), (2, 0), (3, 1), (3, 3), (4, 2)]
)
def test_a_run_interrupted_in_any_phase_ends_in_the_same_weights(
    tmp_path: Path, epoch: int, step: int
) -> None:
    data = data_that_fails(KeyboardInterrupt(), epoch, step)
    with pytest.raises(KeyboardInterrupt):
        tiny_fit(tiny_network(), tmp_path, data=data, **SETTINGS)
    network = tiny_network()
    tiny_fit(network, tmp_path, resume=True, **SETTINGS)
    assert_same_state(network, by_hand())


def test_a_new_optimizer_leaves_out_what_is_committed(tmp_path: Path) -> None:
    settings = {"epochs": 4, "regime": (TrainPhase(epoch=3, optimizer="adam", lr=0.1),)}
    searched = SignSearch(commit_epoch=2)
    tiny_fit(searched, tmp_path, **settings | {"epochs": 2})
    network = SignSearch(commit_epoch=2)
    tiny_fit(network, tmp_path, resume=True, **settings)
    assert torch.equal(network.logits, searched.logits.sign() * MARGIN)
    assert len(load_checkpoint(tmp_path / "last.pt").optimizer["state"]) == 4  # head and norm
