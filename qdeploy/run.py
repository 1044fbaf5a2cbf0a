"""A run folder: everything of one training run, in one place."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from qdeploy.errors import QdeployError
from qdeploy.files import atomic_write
from qdeploy.recipe import Recipe


@dataclass(frozen=True)
class RunFolder:
    """The names of a run's files; making one of these touches no disk."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The recipe as it was trained, every default written out."""
        return self.path / "recipe.toml"

    @property
    def network(self) -> Path:
        """The source of the float network."""
        return self.path / "network.py"

    @property
    def log(self) -> Path:
        """What the console said, and every setting."""
        return self.path / "log.txt"

    @property
    def metrics(self) -> Path:
        """One line an epoch; the columns are those of EpochRecord."""
        return self.path / "metrics.csv"

    @property
    def last(self) -> Path:
        """The checkpoint of the last finished epoch: what a resumed run starts from."""
        return self.path / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint of the highest test top-1, the earlier one of equals."""
        return self.path / "best.pt"

    @property
    def curves(self) -> Path:
        """The page of training curves."""
        return self.path / "training.html"

    @property
    def model(self) -> Path:
        """The exported quantized network."""
        return self.path / "model.onnx"

    @property
    def float_model(self) -> Path:
        """The float network, exported for comparison."""
        return self.path / "float.onnx"

    @property
    def reports(self) -> tuple[Path, Path, Path]:
        """The report as JSON, Markdown and HTML."""
        return self.path / "report.json", self.path / "report.md", self.path / "report.html"

    @property
    def float_run(self) -> "RunFolder":
        """The nested run of the float baseline."""
        return RunFolder(self.path / "float")

    @property
    def all_files(self) -> tuple[Path, ...]:
        """Every file that a run may hold, without those of the nested run."""
        training = (self.recipe, self.network, self.log, self.metrics, self.last, self.best)
        return (*training, self.curves, self.model, self.float_model, *self.reports)


def default_path(recipe: Recipe) -> Path:
    """`runs/<recipe>-<time>` below the working directory, for a run that was given no folder."""
    return Path("runs") / f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"


def create_run(
    path: Path, recipe: Recipe, *, resume: bool = False, force: bool = False
) -> RunFolder:
    """The folder of a run, made if it is missing, with the recipe in it.

    `resume` goes on with what is there, from the beginning if no epoch was finished. `force`
    removes the files of an earlier run and of its float baseline, and no others. Raises
    QdeployError if the folder holds something and neither was asked for, or cannot be written.
    """
    run = RunFolder(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()) and not (resume or force):
            raise QdeployError(
                f"the run folder {path} is not empty; --resume goes on with that run, "
                "--force starts it anew, -o chooses another folder"
            )
        if force and not resume:
            for old in (*run.all_files, *run.float_run.all_files):
                old.unlink(missing_ok=True)
    except OSError as error:
        raise QdeployError(
            f"cannot use {path} as a run folder: {error.strerror}; "
            "choose one that you may write with -o"
        ) from error
    with atomic_write(run.recipe) as file:
        file.write(recipe.to_toml().encode())
    return run
