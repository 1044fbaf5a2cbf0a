"""Image folders: what is listed, and what is wrong with a folder."""

import os
from pathlib import Path

import pytest
from PIL import Image

from qdeploy.datasets.folder import ImageFolder, open_splits
from qdeploy.errors import QdeployError


def write_images(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)


def files(split: ImageFolder | None) -> list[tuple[str, int]] | None:
    if split is None:
        return None
    return [(path.name, label) for path, label in zip(split.paths, split.labels, strict=True)]


def test_classes_are_folders_by_name_and_files_in_order(tmp_path):
    write_images(tmp_path, "train/dog/b.png", "train/dog/deep/a.JPG", "train/cat/1.jpeg")
    write_images(tmp_path, "test/cat/1.png", "test/dog/2.png", "train/dog/._hidden.png")
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    (tmp_path / "train/.cache").mkdir()
    (tmp_path / "train/cat/folder.png").mkdir()
    train, val, test = open_splits(tmp_path)
    assert train.classes == test.classes == ("cat", "dog")
    assert files(train) == [("1.jpeg", 0), ("b.png", 1), ("a.JPG", 1)]
    assert val is None
    assert files(test) == [("1.png", 0), ("2.png", 1)]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
@pytest.mark.parametrize("tested", [True, False])
def test_validation_has_three_names_and_test_one(tmp_path, name, tested):
    write_images(tmp_path, "train/cat/1.png", "train/cat/2.png", f"{name}/cat/3.png")
    if tested:
        write_images(tmp_path, "test/cat/4.png")
    train, val, test = open_splits(tmp_path)
    assert (len(train.paths), files(val)) == (2, [("3.png", 0)])
    assert files(test) == ([("4.png", 0)] if tested else None)


def test_two_names_of_validation_at_once(tmp_path):
    write_images(tmp_path, "train/cat/1.png", "val/cat/3.png", "valid/cat/3.png")
    with pytest.raises(QdeployError, match=r"/val and .*/valid would both be for validation"):
        open_splits(tmp_path)


def test_a_test_folder_without_labels_is_none_beside_a_validation_folder(tmp_path):
    write_images(tmp_path, "train/cat/1.png", "train/cat/2.png", "val/cat/3.png", "test/4.png")
    assert files(open_splits(tmp_path)[2]) is None
    (tmp_path / "val").rename(tmp_path / "other")
    with pytest.raises(QdeployError, match="same classes; only one of them has cat"):
        open_splits(tmp_path)


def test_the_root_may_hold_the_classes(tmp_path):
    write_images(tmp_path, "dog/1.png", "cat/2.png", "cat/3.png")
    train, val, test = open_splits(tmp_path)
    assert (train.classes, val, test) == (("cat", "dog"), None, None)
    assert files(train) == [("2.png", 0), ("3.png", 0), ("1.png", 1)]


@pytest.mark.parametrize("there", [[], ["test/cat/1.png"], ["val/cat/1.png", "cat/2.png"]])
def test_no_training_folder(tmp_path, there):
    write_images(tmp_path, *there)
    with pytest.raises(QdeployError, match=f"{tmp_path} has no folder train;.*--data-root"):
        open_splits(tmp_path)


def test_classes_that_differ_are_named(tmp_path):
    write_images(tmp_path, "train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "val/cow/1.png")
    with pytest.raises(QdeployError, match="same classes; only one of them has cow, dog"):
        open_splits(tmp_path)


def test_class_without_images(tmp_path):
    write_images(tmp_path, "train/cat/1.png", "val/cat/1.png")
    (tmp_path / "train" / "dog").mkdir()
    with pytest.raises(QdeployError, match=r"train/dog holds no image; allowed are \.jpg"):
        open_splits(tmp_path)


def test_images_without_classes(tmp_path):
    write_images(tmp_path, "train/1.png", "train/2.png", "val/1.png")
    with pytest.raises(QdeployError, match="must hold two images or more, in a sub-folder"):
        open_splits(tmp_path)


def test_a_pipe_is_listed_to_be_found_bad_later(tmp_path):
    write_images(tmp_path, "train/cat/1.png")
    os.mkfifo(tmp_path / "train/cat/2.png")
    assert len(ImageFolder(tmp_path / "train").paths) == 2


def test_a_class_of_which_nothing_is_chosen(tmp_path):
    write_images(tmp_path, "dog/1.png", "cat/2.png", "cat/3.png")
    images = ImageFolder(tmp_path)
    assert files(images.chosen([1, 2])) == [("3.png", 0), ("1.png", 1)]
    with pytest.raises(QdeployError, match=r"no image of .*/dog is left to take"):
        images.chosen([0, 1])
