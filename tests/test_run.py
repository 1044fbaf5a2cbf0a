"""Making, resuming and refusing run folders."""

import re
from pathlib import Path

import pytest
from tiny_runs import recipe

from qdeploy.errors import QdeployError
from qdeploy.recipe import Recipe
from qdeploy.run import RunFolder, create_run, default_path


def test_a_new_run_holds_its_recipe(tmp_path: Path) -> None:
    run = create_run(tmp_path / "runs" / "new", recipe())
    assert Recipe.load(run.recipe) == recipe()
    assert [file.name for file in run.path.iterdir()] == ["recipe.toml"]


def test_the_default_path_has_the_recipe_and_the_time() -> None:
    assert re.fullmatch(r"runs/tiny-\d{8}-\d{6}", default_path(recipe()).as_posix())


def test_the_files_are_those_of_the_architecture() -> None:
    text = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text()
    listed = text.partition("### A run folder")[2].partition("(a nested run")[0]
    names = set(re.findall(r"\b[\w-]+\.[a-z]+\b", listed))
    assert {file.name for file in RunFolder(Path()).all_files} == names
    assert RunFolder(Path("run")).float_run.path == Path("run/float")


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    assert create_run(tmp_path, recipe()).recipe.exists()


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(QdeployError, match=rf"{tmp_path} is not empty; --resume .* --force"):
        create_run(tmp_path, recipe())
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_killed_while_it_wrote_its_first_file_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml.tmp").write_text("name = ")
    run = create_run(tmp_path, recipe())
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.toml"]
    assert Recipe.load(run.recipe) == recipe()


def test_resume_keeps_everything(tmp_path: Path) -> None:
    run = create_run(tmp_path, recipe())
    run.last.write_text("checkpoint")
    create_run(tmp_path, recipe(), resume=True)
    assert run.last.read_text() == "checkpoint"


def test_force_removes_the_old_run_and_nothing_else(tmp_path: Path) -> None:
    run = create_run(tmp_path, recipe())
    create_run(run.float_run.path, recipe())
    beside = tmp_path / "model.onnx.0123abcd.data", tmp_path / "model.tflite"
    for file in (*run.all_files, *run.float_run.all_files, *beside, tmp_path / "thesis.tex"):
        file.write_text("old")

    create_run(tmp_path, recipe(), force=True)

    left = {file for file in tmp_path.rglob("*") if file.is_file()}
    assert left == {run.recipe, tmp_path / "thesis.tex"}
    assert Recipe.load(run.recipe) == recipe()


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_path_that_cannot_be_a_folder_is_named(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(QdeployError, match=rf"cannot use {tmp_path / path} as a run folder"):
        create_run(tmp_path / path, recipe())
    assert (tmp_path / "file").read_text() == "not a folder"


def test_a_folder_that_refuses_files_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied")

    given = recipe()
    monkeypatch.setattr(Path, "open", refuse)  # the tests may run as root, whom nothing refuses
    with pytest.raises(QdeployError, match=r"cannot write .*recipe\.toml: Permission denied"):
        create_run(tmp_path / "run", given)
