"""What goes with a run from its recipe to its last checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from lightning_fabric import Fabric

from qdeploy import processes
from qdeploy.metrics import write_metrics
from qdeploy.recipe import Recipe
from qdeploy.run import RunFolder
from qdeploy.scores import Score
from qdeploy.tasks import Task
from qdeploy.training.checkpoint import Checkpoint, load_checkpoint_of, save_checkpoint
from qdeploy.training.console import Console


@dataclass(frozen=True)
class Session:
    """A run while it is trained. Each of its processes has one, and the first process writes.

    recipe   with the regimes that its network brings along
    run      the folder of its files
    fabric   its devices
    console  where it says what happens
    task     what the network is for
    classes  how many the data set names
    resume   whether it goes on with what the folder holds
    """

    recipe: Recipe
    run: RunFolder
    fabric: Fabric
    console: Console
    task: Task
    classes: int
    resume: bool = False

    @cached_property
    def scores(self) -> tuple[Score, ...]:
        """What the task is judged by, the headline first."""
        return tuple(self.task.metrics(self.classes))

    def last_checkpoint(self) -> Checkpoint | None:
        """The checkpoint to go on from; None if the run begins.

        Errors: QdeployError if it cannot be read or is of another network or method.
        """
        if not self.resume or not self.run.last.exists():
            return None
        return load_checkpoint_of(self.recipe, self.run.last)

    def keep(self, checkpoint: Checkpoint) -> None:
        """Write metrics.csv and the checkpoints, last.pt at the end: until then the epoch is undone."""
        if processes.rank() > 0:
            return
        history = checkpoint.history
        write_metrics(self.run.metrics, history, self.scores)
        headline = self.scores[0]
        # Of equals the first.
        best = max(
            history, key=lambda record: headline.key(record.test[headline.name]), default=None
        )
        if best is None or best is history[-1]:
            save_checkpoint(checkpoint, self.run.best)
        save_checkpoint(checkpoint, self.run.last)
