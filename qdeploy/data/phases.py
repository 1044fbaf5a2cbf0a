"""Training batches that change from epoch to epoch."""

from collections.abc import Iterator

from qdeploy.data.batches import Batch, Batches
from qdeploy.recipe import DataSection


class PhasedBatches:
    """The batches under a regime of [data]: each epoch has those of the phase that it begins in."""

    def __init__(self, batches: Batches, section: DataSection) -> None:
        self._batches = batches
        self._section = section
        self._first_steps = [0]  # of each epoch, as far as they were asked for

    @property
    def samples(self) -> int:
        return self._batches.samples

    def steps_before(self, index: int) -> int:
        for epoch in range(len(self._first_steps) - 1, index):
            first = self._first_steps[epoch]
            self._first_steps.append(first + self._in_phase(epoch, first).steps_before(1))
        return self._first_steps[index]

    def epoch(self, index: int) -> Iterator[Batch]:
        return self._in_phase(index, self.steps_before(index)).epoch(index)

    def under(self, section: DataSection) -> "PhasedBatches":
        return PhasedBatches(self._batches, section)

    def _in_phase(self, epoch: int, first_step: int) -> Batches:
        return self._batches.under(self._section.at(epoch, first_step))
