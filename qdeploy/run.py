"""A run folder: everything of one training run, in one place."""

from datetime import datetime
from pathlib import Path

from qdeploy.errors import QdeployError
from qdeploy.files import atomic_write, temporary_path
from qdeploy.recipe import Recipe


class RunFolder:
    """The names of a run's files; making one of these touches no disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.toml"  # as it was trained, every default written out
        self.network = path / "network.py"  # the source of the float network
        self.task = path / "task.py"  # that of a task in a file, as is
        self.data = path / "data.py"  # that of a data set which is a function
        self.log = path / "log.txt"  # what the console said, and every setting
        self.metrics = path / "metrics.csv"  # a line an epoch; its columns are in qdeploy.metrics
        self.scores = path / "scores.json"  # what the columns of metrics.csv mean
        self.last = path / "last.pt"  # the last finished epoch: what a resumed run starts from
        self.best = (
            path / "best.pt"
        )  # the best epoch by the task's first score, of equals the earlier
        self.survey = path / "images.json"  # of image files: those left out, and their size
        self.curves = path / "training.html"
        self.model = path / "model.onnx"  # the exported quantized network
        self.float_model = path / "float.onnx"  # the float network, for comparison
        self.reports = path / "report.json", path / "report.md", path / "report.html"

    @property
    def float_run(self) -> "RunFolder":
        """The nested run of the float baseline."""
        return RunFolder(self.path / "float")

    @property
    def all_files(self) -> tuple[Path, ...]:
        """Every file that a run may hold, without those of the nested run."""
        code = (self.network, self.task, self.data)
        notes = (self.log, self.metrics, self.scores, self.survey)
        training = (self.recipe, *code, *notes, self.last, self.best)
        return (*training, self.curves, *self._models(), *self.reports)

    def _models(self) -> tuple[Path, ...]:
        """With weights that lie beside large ones, and what LiteRT reads."""
        models = self.model, self.float_model
        weights = (
            file for model in models for file in self.path.glob(f"{model.name}.????????.data")
        )
        return (*models, *weights, self.model.with_suffix(".tflite"))


def recipe_file(run: RunFolder) -> Path:
    """The file of the recipe that a run began with. Raises QdeployError if there is none."""
    if not run.recipe.is_file():
        raise QdeployError(
            f"{run.path} is no run: it has no {run.recipe.name}; give a folder that `qdeploy train` "
            f"wrote, or start a run there: qdeploy train RECIPE -o {run.path}"
        )
    return run.recipe


def default_path(recipe: Recipe) -> Path:
    """`runs/<recipe>-<time>` below the working directory, for a run that was given no folder."""
    return Path("runs") / f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"


def create_run(
    path: Path, recipe: Recipe, *, resume: bool = False, force: bool = False
) -> RunFolder:
    """The folder of a run, made if it is missing, with the recipe in it.

    `resume` goes on with what is there, from the beginning if no epoch was finished. `force`
    removes the files of an earlier run and of its float baseline, and no others. Raises
    QdeployError if the folder holds something and neither was asked for, or cannot be written;
    what a run leaves that is killed while it writes its recipe, the first file, is nothing.
    """
    run = RunFolder(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        unfinished = temporary_path(run.recipe)
        if any(file != unfinished for file in path.iterdir()) and not (resume or force):
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
