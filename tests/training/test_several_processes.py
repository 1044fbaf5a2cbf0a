"""Two processes with half a batch each follow one process with the whole of it."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from tiny_runs import recipe
from torch import Tensor, nn
from two_processes import in_two_processes

import qdeploy
from qdeploy import processes
from qdeploy.data.batches import ArrayBatches, Batches, Normalisation, Share
from qdeploy.data.open import Data
from qdeploy.datasets.labelled_images import LabelledImages
from qdeploy.errors import QdeployError
from qdeploy.pictures.fit import Fit
from qdeploy.recipe import DataSection, TrainSection
from qdeploy.run import RunFolder
from qdeploy.tasks import Classification
from qdeploy.training.checkpoint import load_checkpoint
from qdeploy.training.console import Console
from qdeploy.training.device import seed_epoch
from qdeploy.training.launch import first_process_first, open_fabric
from qdeploy.training.loop import fit
from qdeploy.training.session import Session

SETTINGS = TrainSection(
    epochs=2, lr=0.05, weight_decay=0.01, clip_norm=1.0, label_smoothing=0.1, calibration_batches=2
)
CASES = {
    "float": None,
    "simqat-w8a8": ("simqat", 8, {}),
    "two-conv": ("simqat", 8, {"fold": "two-conv", "freeze_bn": 6, "quant_delay": 99}),
    "lsq-w8a8": ("lsq", 8, {}),  # steps that start from the first batch
    "pact-w8a8": ("pact", 8, {}),  # alpha as well
}
# Relative to a tensor's largest value. Networks that round come within 1e-6 too, unless a value
# on the edge between two codes falls to the other side, as it may on another processor.
TOLERANCE = dict.fromkeys(CASES, 1e-3) | {"float": 1e-5, "two-conv": 1e-5}
# Not as one process does: gradients are rounded at random and Range BN cuts each process's values
# into chunks; a search calibrates, by the batches of each process.
NOT_AS_ONE = {
    "int8-training": ("int8_training", 8, {}),
    "slb-w1a8": ("slb", 1, {"linear": True, "t_end_time": 1.0}),  # commits before epoch 2
}


def make_network(dropout: float) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6, momentum=0.3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(96, 8),
        nn.BatchNorm1d(8),
        nn.Linear(8, 4),
    )


def training_network(case: str, dropout: float = 0.0) -> nn.Module:
    network = make_network(dropout)
    chosen = (CASES | NOT_AS_ONE)[case]
    if chosen is None:
        return network
    method, bits, options = chosen
    return qdeploy.prepare(network, torch.zeros(2, 1, 8, 8), method, bits, 8, **options)


def data(rank: int, count: int) -> Data:
    """54 images of noise in batches of 16, 16, 16, 6, whose class is their brightest quarter.

    The 31 test images cannot be shared out evenly.
    """
    random = np.random.default_rng(2)
    images = random.integers(0, 256, (85, 1, 8, 8), dtype=np.uint8)
    labels = images.reshape(85, 4, 16).sum(2, dtype=np.int64).argmax(1)
    normalise = Normalisation([0.4], [0.3], "cpu")
    share = Share(rank, count)
    train, test = (LabelledImages(images[s], labels[s]) for s in (slice(54), slice(54, 85)))
    section = DataSection(dataset="mnist", batch_size=16, pad_crop=1, flip=True)
    tested = section.model_copy(update={"batch_size": 10})
    return Data(
        name="noise",
        title="noise",
        classes=("0", "1", "2", "3"),
        example=(torch.zeros(2, 1, 8, 8),),
        mean=(0.4,),
        std=(0.3,),
        fit=Fit(crop=1.0),
        train=ArrayBatches(train, section, normalise, 5, share),
        test=ArrayBatches(test, tested, normalise, share=share),
    )


def train(fabric: Fabric, folder: Path, case: str, dropout: float = 0.0, fails: int = 99) -> None:
    """Trains, and leaves every process's network and figures in `folder`.

    The data of process 1 fail in place of its training batch `fails`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network = training_network(case, dropout)
    some_data = data(processes.rank(), processes.count())
    if processes.rank() == 1:
        some_data = replace(some_data, train=Failing(some_data.train, fails))
    session = Session(
        recipe().model_copy(update={"train": SETTINGS}),
        RunFolder(folder),
        fabric,
        Console(folder / "log.txt", io.StringIO()),
        Classification(SETTINGS.label_smoothing),
        classes=4,
        resume=True,
    )
    result = fit(session, network, some_data)
    torch.save(network.state_dict(), folder / f"{processes.rank()}-of-{processes.count()}.pt")
    if processes.rank() == processes.count() - 1:
        torch.save([record.row() for record in result], folder / "history.pt")


class Failing:
    """Batches of which one cannot be read, as a damaged image cannot."""

    def __init__(self, batches: Batches, fails: int) -> None:
        self.batches, self.left = batches, fails
        self.samples = batches.samples

    def steps_before(self, index: int) -> int:
        return self.batches.steps_before(index)

    def epoch(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches.epoch(index):
            if self.left == 0:
                raise QdeployError("a damaged image")
            self.left -= 1
            yield batch


def train_all(fabric: Fabric, folder: Path) -> None:
    for case in CASES | NOT_AS_ONE:
        train(fabric, folder / case, case)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of every case, by one process and by two."""
    folder = tmp_path_factory.mktemp("trained")
    train_all(open_fabric("cpu"), folder / "one")
    assert in_two_processes(train_all, folder / "two", folder / "two") == [0, 0]
    return folder


def states(folder: Path, case: str) -> tuple[dict[str, Tensor], ...]:
    names = ("one/{}/0-of-1.pt", "two/{}/0-of-2.pt", "two/{}/1-of-2.pt")
    return tuple(torch.load(folder / name.format(case)) for name in names)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_follow_one(trained: Path, case: str) -> None:
    one, first, _ = states(trained, case)
    assert any(name.endswith("running_var") for name in one)
    for name, expected in one.items():
        error = (first[name].double() - expected.double()).abs().max().item()
        assert error <= TOLERANCE[case] * expected.double().abs().max().item(), name


@pytest.mark.parametrize("case", CASES | NOT_AS_ONE)
def test_the_processes_have_the_same_bits(trained: Path, case: str) -> None:
    _, first, second = states(trained, case)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_the_figures_are_those_of_the_whole_data(trained: Path, case: str) -> None:
    one, two = (torch.load(trained / n / case / "history.pt") for n in ("one", "two"))
    assert len(one) == 2
    for expected, found in zip(one, two, strict=True):
        expected["seconds"] = found["seconds"]
        assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_one_process_writes(trained: Path, case: str) -> None:
    folder = trained / "two" / case
    assert len((folder / "log.txt").read_text().splitlines()) == 2
    assert load_checkpoint(folder / "last.pt").epoch == 2


def test_a_process_that_fails_ends_the_other_and_the_run_goes_on(tmp_path: Path) -> None:
    """With dropout: each process draws its own units to drop, and the same ones once resumed."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert in_two_processes(train, whole, whole, "slb-w1a8", 0.3) == [0, 0]
    # 4 batches are trained in epoch 1 and 2 calibrate; of epoch 2, 2 calibrate and 1 is trained.
    assert in_two_processes(train, cut, cut, "slb-w1a8", 0.3, 9) == [1, 1]
    assert load_checkpoint(cut / "last.pt").epoch == 1

    assert in_two_processes(train, cut, cut, "slb-w1a8", 0.3) == [0, 0]
    for name in ("0-of-2.pt", "1-of-2.pt"):
        torch.testing.assert_close(torch.load(cut / name), torch.load(whole / name), rtol=0, atol=0)


def draw(fabric: Fabric, folder: Path) -> None:
    seed_epoch(seed=3, epoch=1)
    torch.save(torch.rand(5), folder / f"{processes.rank()}.pt")


def test_each_process_draws_its_own_random_numbers(tmp_path: Path) -> None:
    assert in_two_processes(draw, tmp_path, tmp_path) == [0, 0]
    assert not torch.equal(torch.load(tmp_path / "0.pt"), torch.load(tmp_path / "1.pt"))


def find_wrong(fabric: Fabric, folder: Path) -> None:
    with first_process_first(fabric):
        (folder / f"seen by {processes.rank()}").touch()
        raise QdeployError("no such data")


def test_what_is_wrong_is_said_by_the_first_process_alone(tmp_path: Path) -> None:
    assert in_two_processes(find_wrong, tmp_path, tmp_path) == [1, 1]
    assert [file.name for file in tmp_path.glob("seen*")] == ["seen by 0"]


def in_turn(fabric: Fabric, folder: Path) -> None:
    with first_process_first(fabric):
        assert (folder / "made").exists() == (processes.rank() == 1)
        (folder / "made").touch()


def test_what_the_first_process_makes_the_second_one_finds(tmp_path: Path) -> None:
    assert in_two_processes(in_turn, tmp_path, tmp_path) == [0, 0]
