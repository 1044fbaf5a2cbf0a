"""Image folders: what is listed, and what is wrong with a folder."""

from pathlib import Path

import pytest
from PIL import Image

from qdeploy.datasets.folder import open_splits
from qdeploy.errors import QdeployError


def write_images(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)


@pytest.mark.parametrize("split", ["val", "test"])
def test_classes_are_folders_by_name_and_files_in_order(tmp_path, split):
    write_images(tmp_path, "train/dog/b.png", "train/dog/deep/a.JPG", "train/cat/1.jpeg")
    write_images(tmp_path, f"{split}/cat/1.png", f"{split}/dog/2.png")
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    (tmp_path / "train/.cache").mkdir()
    train, test = open_splits(tmp_path)
    assert train.classes == test.classes == ("cat", "dog")
    assert [path.name for path in train.paths] == ["1.jpeg", "b.png", "a.JPG"]
    assert train.labels == [0, 1, 1]
    assert test.labels == [0, 1]


def test_no_training_folder(tmp_path):
    with pytest.raises(QdeployError, match=f"{tmp_path} has no folder train;.*--data-root"):
        open_splits(tmp_path)


def test_no_test_folder(tmp_path):
    write_images(tmp_path, "train/cat/1.png", "train/dog/1.png")
    with pytest.raises(QdeployError, match="has no folder val or test"):
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
