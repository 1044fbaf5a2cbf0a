"""Runs small enough to train in milliseconds, with everything that makes resuming hard."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from typing_extensions import Self

from qdeploy.metrics import EpochRecord
from qdeploy.preparation.prepare import prepare
from qdeploy.preparation.prepared import PreparedNetwork
from qdeploy.recipe import DataSection, ModelSection, QuantizeSection, Recipe, TrainSection
from qdeploy.run import RunFolder
from qdeploy.tasks import Classification
from qdeploy.training.console import Console
from qdeploy.training.launch import open_fabric
from qdeploy.training.loop import fit
from qdeploy.training.session import Session

SETTINGS = TrainSection(
    epochs=4,
    seed=3,
    lr=0.05,
    momentum=0.9,
    nesterov=True,
    weight_decay=0.01,
    schedule="cosine",
    warmup_epochs=1,
    label_smoothing=0.1,
    clip_norm=1.0,
    calibration_batches=2,
)

RECORD = EpochRecord(
    epoch=2,
    steps=938,
    lr=0.05,
    train={"loss": 0.1, "top1": 0.96875, "top5": 0.99, "error1": 0.03125},
    test={"loss": 1 / 3, "top1": 0.9722, "top5": 1.0, "error1": 1 - 0.9722},
    seconds=4.25,
    progress={"temperature": 1.2},
)


class TinyBatches:
    """44 images of 1x4x4 whose class is their brightest column, in batches of 10."""

    def __init__(self, shuffle: bool, samples: int = 44) -> None:
        random = torch.Generator().manual_seed(11)
        self.images = torch.randn(samples, 1, 4, 4, generator=random)
        self.labels = self.images.sum((1, 2)).argmax(1)
        self.shuffle = shuffle
        self.samples = samples

    def steps_before(self, index: int) -> int:
        return index * -(-self.samples // 10)

    def epoch(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        random = torch.Generator().manual_seed(100 + index)
        order = torch.randperm(self.samples, generator=random)
        if not self.shuffle:
            order = torch.arange(self.samples)
        for chosen in order.split(10):
            yield self.images[chosen], self.labels[chosen]


def tiny_data() -> SimpleNamespace:
    return SimpleNamespace(train=TinyBatches(shuffle=True), test=TinyBatches(shuffle=False))


class FailingBatches(TinyBatches):
    """Raises `error` in place of batch `step` of `epoch`."""

    def __init__(self, error: BaseException, epoch: int, step: int) -> None:
        super().__init__(shuffle=True)
        self.error, self.at = error, (epoch, step)

    def epoch(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step, batch in enumerate(super().epoch(index)):
            if (index, step) == self.at:
                raise self.error
            yield batch


def data_that_fails(error: BaseException, epoch: int, step: int) -> object:
    data = tiny_data()
    data.train = FailingBatches(error, epoch, step)
    return data


def tiny_network() -> nn.Sequential:
    """BatchNorm has statistics, dropout draws random numbers."""
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(12, 4),
    )


def seed_by_hand(epoch: int) -> None:
    """What torch draws depends on the seed, 3, the epoch and the process, 0."""
    sequence = np.random.SeedSequence([3, epoch, 0])
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


class SignSearch(PreparedNetwork):
    """SLB at 1 bit: trains tanh(logits / sqrt 2), ships sign(logits), commits at an epoch (from 0)."""

    def __new__(cls, commit_epoch: int) -> Self:
        torch.manual_seed(6)
        layers = nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 4)
        prepared = prepare(
            nn.Sequential(nn.Flatten(), *layers),
            torch.zeros(2, 1, 4, 4),
            "slb",
            1,
            "float",
            {"3": "float"},
            **{"linear": True, "t_factor": 1.0, "t_end_time": 1.0, "epoch_size": commit_epoch + 1},
        )
        prepared.__class__ = cls
        return prepared

    def __init__(self, commit_epoch: int) -> None:
        self.told: list[tuple[int, int]] = []

    def set_progress(self, epoch: int, epochs: int) -> None:
        self.told.append((epoch, epochs))
        super().set_progress(epoch, epochs)

    @property
    def logits(self) -> nn.Parameter:
        return self.get_submodule("1").weight

    @property
    def norm(self) -> nn.BatchNorm1d:
        return self.get_submodule("2")

    @property
    def head(self) -> nn.Linear:
        return self.get_submodule("3")


@torch.no_grad()
def shipped_statistics(
    network: SignSearch, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Mean and variance before the norm with the weights that ship: plain means over batches."""
    outputs = [linear(images.flatten(1), network.logits.sign()) for images, _ in batches]
    mean = torch.stack([output.mean(0) for output in outputs]).mean(0)
    variance = torch.stack([output.var(0) for output in outputs]).mean(0)
    return mean, variance


def tiny_fit(network: nn.Module, folder: Path, **changes: object) -> list[EpochRecord]:
    """fit() on the tiny data; `changes` are settings, or of the session, or arguments of fit."""
    folder.mkdir(exist_ok=True)
    settings = {key: changes.pop(key) for key in list(changes) if key in TrainSection.model_fields}
    parts = {"train": SETTINGS.model_copy(update=settings)}
    if "method" in changes:
        parts["quantize"] = QuantizeSection(method=changes.pop("method"))
    session = Session(
        recipe=recipe().model_copy(update=parts),
        run=RunFolder(folder),
        fabric=changes.pop("fabric", None) or open_fabric("cpu"),
        console=changes.pop("console", None) or Console(stream=io.StringIO()),
        task=changes.pop("task", None) or Classification(parts["train"].label_smoothing),
        classes=4,
        resume=changes.pop("resume", False),
    )
    return fit(session, network, changes.pop("data", None) or tiny_data(), **changes)


def recipe() -> Recipe:
    return Recipe(
        name="tiny", model=ModelSection(network="lenet5"), data=DataSection(dataset="digits")
    )


def assert_same_state(left: nn.Module, right: nn.Module) -> None:
    torch.testing.assert_close(left.state_dict(), right.state_dict(), rtol=0, atol=0)
