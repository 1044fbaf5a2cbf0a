"""Data sets of the user's own: what a function in a file returns, in batches."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset, IterableDataset, TensorDataset, default_collate

from qdeploy.data.batches import WHOLE, Batch, Batches, Share
from qdeploy.data.decoding import worked
from qdeploy.errors import QdeployError
from qdeploy.recipe import DataSection
from qdeploy.references import told

FORMS = (
    "it must return (train, test), or a dict of train and test and, if wanted, val, classes, mean, std "
    "and collate. Each part is a torch Dataset of (input, target), or a pair of tensors"
)
PARTS = ("train", "val", "test")
KEYS = {*PARTS, "classes", "mean", "std", "collate"}


@dataclass(frozen=True)
class OwnData:
    """What the function returned.

    val      what epochs are compared on; None: the test set
    classes  their names; () where there are none
    mean, std  what the items were normalised with, per channel; None where that is not said
    collate  makes a batch of a list of items
    """

    train: Dataset[Any]
    test: Dataset[Any]
    val: Dataset[Any] | None = None
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    collate: Callable[[list[Any]], Any] = default_collate


def as_own_data(name: str, returned: Any) -> OwnData:
    """Errors: QdeployError for what is no data set, for an empty one, and for half of a normalisation."""
    if isinstance(returned, Mapping):
        parts = dict(returned)
    elif isinstance(returned, Sequence) and len(returned) == 2:
        parts = dict(zip(("train", "test"), returned, strict=True))
    else:
        raise QdeployError(f"data set {name!r} returned {type(returned).__name__}; {FORMS}")
    odd, missing = (
        sorted(set(parts) - KEYS, key=str),
        [key for key in ("train", "test") if parts.get(key) is None],
    )
    if odd or missing:
        said = f"returned {', '.join(map(str, odd))}" if odd else f"returned no {missing[0]}"
        raise QdeployError(f"data set {name!r} {said}; {FORMS}")
    for key in PARTS:
        if parts.get(key) is not None:
            parts[key] = _dataset(name, key, parts[key])
    for key, kind in (("classes", str), ("mean", float), ("std", float)):
        if parts.get(key) is not None:
            parts[key] = _several(name, key, kind, parts[key])
    _check_normalisation(name, parts.get("mean"), parts.get("std"))
    if parts.get("collate") is not None and not callable(parts["collate"]):
        raise QdeployError(f"data set {name!r}: its collate is {parts['collate']!r}, no function")
    return OwnData(**{key: value for key, value in parts.items() if value is not None})


def _several(name: str, key: str, kind: type, given: Any) -> tuple[Any, ...]:
    """A list of names or numbers, or an array; a word is no list of its letters."""
    try:
        if not isinstance(given, str):
            return tuple(map(kind, given))
    except (TypeError, ValueError):
        pass
    words = "names, in the order of their numbers" if kind is str else "numbers, one a channel"
    raise QdeployError(f"data set {name!r}: its {key} is {given!r}; give a list of {words}")


def _check_normalisation(
    name: str, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> None:
    if mean is None and std is None:
        return
    if mean is None or std is None:
        raise QdeployError(f"data set {name!r}: mean and std go together; return both or neither")
    if len(mean) != len(std) or not np.isfinite([*mean, *std]).all() or min(std, default=0) <= 0:
        raise QdeployError(
            f"data set {name!r}: its mean is {mean} and its std {std}; give one finite number a channel "
            "in both, and every std above 0"
        )


def _dataset(name: str, key: str, given: Any) -> Dataset[Any]:
    """A part as torch has it."""
    if isinstance(given, tuple | list) and all(isinstance(x, Tensor | np.ndarray) for x in given):
        given = _of_arrays(name, key, given)
    if not hasattr(given, "__getitem__") and not isinstance(given, IterableDataset):
        raise QdeployError(f"data set {name!r}: its {key} is {type(given).__name__}; {FORMS}")
    try:
        count = len(given)
    except TypeError:
        raise QdeployError(
            f"data set {name!r}: its {key} has no length, which schedules and progress need; give it "
            "__len__, how many items an epoch has"
        ) from None
    if count < 2:
        raise QdeployError(
            f"data set {name!r}: its {key} holds {count} items, two at least are needed"
        )
    return given


def _of_arrays(name: str, key: str, given: Sequence[Any]) -> Dataset[Any]:
    try:
        return TensorDataset(*map(torch.as_tensor, given))
    except (AssertionError, TypeError) as error:
        kinds = " and ".join(f"{list(array.shape)} of {array.dtype}" for array in given)
        raise QdeployError(
            f"data set {name!r}: its {key} is {kinds}; give arrays of numbers of one length"
        ) from error


class OwnBatches(Batches):
    """A torch Dataset in batches, read by [data] workers.

    What an item draws at random depends on (seed, epoch, its number) alone, so that a resumed run,
    any number of workers and any number of devices see the same. An IterableDataset comes in its own order:
    it is told the epoch by `set_epoch`, if it has that, and each process takes its share of what it gives.
    """

    def __init__(
        self,
        name: str,
        data: Dataset[Any],
        section: DataSection,
        collate: Callable[[list[Any]], Any],
        device: torch.device | str,
        seed: int | None = None,
        share: Share = WHOLE,
    ) -> None:
        super().__init__(len(data), section, seed, share)  # type: ignore[arg-type]
        self._name, self._data, self._collate = name, data, collate
        self._device = torch.device(device)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(pytree.tree_leaves(self.first(1)[0])[0].shape[1:])

    def first(self, count: int) -> Batch:
        """The first items, as a batch on the CPU. Errors: QdeployError for items that make none."""
        drawn = Drawn(self._data, self._seed, 0)
        streams = isinstance(self._data, IterableDataset)
        items = iter(drawn) if streams else map(drawn.__getitem__, range(count))
        return checked(self._name, next(self._told(self._batches(items, count))))

    def epoch(self, index: int) -> Iterator[Batch]:
        section = self._phase(index)
        drawn = Drawn(self._data, self._seed, index)
        if isinstance(self._data, IterableDataset):
            loaded = self._streamed(drawn, section.batch_size)
        else:
            chosen = [
                self._own(batch).tolist() for batch in self._chosen(section, self._random(index))
            ]
            read = partial(_read, data=drawn, collate=self._collate)
            loaded = worked([one for one in chosen if one], read, section.workers, self._pinned)
        for batch in self._told(loaded):
            yield checked(self._name, self._moved(batch))

    def _streamed(self, drawn: Drawn, size: int) -> Iterator[Any]:
        items, left = iter(drawn), self.samples
        steps = self._steps(self._section)
        for _ in range(steps):
            batch = list(islice(items, min(size, left)))
            left -= len(batch)
            own = [batch[number] for number in self._own(torch.arange(len(batch))).tolist()]
            if own:
                yield self._collate(own)

    def _batches(self, items: Iterator[Any], size: int) -> Iterator[Any]:
        yield self._collate(list(islice(items, size)))

    def _told(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches, with what fails in reading them said in a sentence."""
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except QdeployError:
                raise
            except Exception as error:  # of the user's code, or in a worker of torch's
                raise QdeployError(
                    f"data set {self._name!r} gives no batch: {told(error)}. Items of one data set have the "
                    "same shapes, or it returns a collate function of its own"
                ) from error
            yield batch

    def _moved(self, batch: Any) -> Any:
        return pytree.tree_map_only(
            Tensor, lambda x: x.to(self._device, non_blocking=self._pinned), batch
        )

    @property
    def _pinned(self) -> bool:
        """Whether batches are read into pinned memory, from which a GPU copies beside its work."""
        return self._device.type == "cuda"


def _read(numbers: list[int], data: Drawn, collate: Callable[[list[Any]], Any]) -> Any:
    """A batch as a worker reads it."""
    return collate([data[number] for number in numbers])


class Drawn(Dataset[Any]):
    """A data set whose items draw from generators of their own; seed None: as in testing, with 0."""

    def __init__(self, data: Any, seed: int | None, epoch: int) -> None:
        self.data = data
        self.at = (seed or 0, epoch)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> Any:
        with seeded(*self.at, number):
            return self.data[number]

    def __iter__(self) -> Iterator[Any]:
        """The items of an IterableDataset, the same in each repetition of an epoch."""
        if hasattr(self.data, "set_epoch"):
            self.data.set_epoch(self.at[1])
        with seeded(*self.at, 0):
            items = iter(self.data)
        number = 0
        while True:
            with seeded(*self.at, number):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item
            number += 1


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Inside the block torch's, NumPy's and Python's generators start from these; then they are back."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    for_torch, for_others = np.random.SeedSequence(numbers).generate_state(2, np.uint32).tolist()
    torch.random.default_generator.manual_seed(for_torch)
    np.random.seed(for_others)
    random.seed(for_others)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def checked(name: str, batch: Any) -> Batch:
    """Inputs and targets of a batch. Errors: QdeployError for anything else."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        given = f"{len(batch)} parts" if isinstance(batch, tuple | list) else type(batch).__name__
        raise QdeployError(
            f"data set {name!r} gives batches of {given}; an item is (input, target), and several "
            "inputs are a tuple: ((image, table), target)"
        )
    inputs, targets = batch
    inputs = tuple(inputs) if isinstance(inputs, list) else inputs
    if not all(isinstance(x, Tensor) for x in (inputs if isinstance(inputs, tuple) else (inputs,))):
        raise QdeployError(
            f"data set {name!r} gives {type(inputs).__name__} as inputs; allowed: a tensor, or a tuple "
            "of tensors in the order of forward's arguments"
        )
    return inputs, targets
