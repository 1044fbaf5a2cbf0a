"""open_data: from a [data] section to what training sees."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published import cifar_archive, cifar_files, write_cifar_folder, write_mnist

from qdeploy.data import open as open_module
from qdeploy.data import open_data
from qdeploy.datasets import Dataset, LabelledImages
from qdeploy.errors import QdeployError
from qdeploy.recipe import DataSection


def test_digits_need_no_root():
    data = open_data(DataSection(dataset="digits", batch_size=64), None, False, "cpu", seed=0)
    assert (data.name, data.title) == ("digits", "scikit-learn digits")
    assert data.classes == tuple("0123456789")
    assert (data.input_shape, data.fit.crop) == ((1, 28, 28), 1)
    images = torch.cat([images for images, _ in data.train.epoch(0)])
    assert images.shape == (1437, 1, 28, 28)
    assert images.mean().item() == pytest.approx(0, abs=1e-3)
    assert images.std().item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_mnist_and_its_copies(tmp_path, name):
    train, _ = write_mnist(tmp_path / name)
    data = open_data(DataSection(dataset=name), tmp_path, False, "cpu", seed=0)
    assert (data.train.samples, data.test.samples, len(data.classes)) == (12, 5, 10)
    [(images, labels)] = data.train.epoch(0)
    assert sorted(labels.tolist()) == sorted(train[1])
    expected = (train[0].mean() / 255 - data.mean[0]) / data.std[0]
    assert images.mean().item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("packed", [True, False])
def test_cifar10(tmp_path, packed):
    files = cifar_files(records=2)
    (tmp_path / "cifar10").mkdir()
    if packed:
        (tmp_path / "cifar10" / "cifar-10-binary.tar.gz").write_bytes(cifar_archive(files))
    else:
        write_cifar_folder(tmp_path / "cifar10" / "cifar-10-batches-bin", files)
    section = DataSection(dataset="cifar10", batch_size=4, pad_crop=4, flip=True)
    data = open_data(section, tmp_path, False, "cpu", seed=0)
    assert data.input_shape == (3, 32, 32)
    assert [len(labels) for _, labels in data.train.epoch(0)] == [4, 4, 2]
    assert [len(labels) for _, labels in data.test.epoch(0)] == [2]
    assert data.classes[6] == "frog"


def test_folder(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (40, 30), "red").save(tmp_path / split / name / f"{number}.png")
    section = DataSection(dataset="folder", batch_size=2, image_size=24, workers=0)
    data = open_data(section, tmp_path, False, "cpu", seed=0)
    assert (data.title, data.classes) == (tmp_path.name, ("cat", "dog"))
    assert (data.input_shape, data.fit.crop) == ((3, 24, 24), 0.875)
    red = np.subtract([1, 0, 0], [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    for batches in (data.train, data.test):
        for images, _ in batches.epoch(0):
            np.testing.assert_allclose(images[1, :, 5, 5], red, rtol=1e-5)


def test_another_image_size_is_that_of_training_testing_and_export(tmp_path):
    write_mnist(tmp_path)
    section = DataSection(dataset="mnist", image_size=14)
    data = open_data(section, tmp_path, False, "cpu", seed=0)
    whole = open_data(DataSection(dataset="mnist"), tmp_path, False, "cpu", seed=0)
    assert data.input_shape == (1, 14, 14)
    for batches, full in [(data.train, whole.train), (data.test, whole.test)]:
        for (images, _), (larger, _) in zip(batches.epoch(0), full.epoch(0), strict=True):
            assert images.shape == (len(larger), 1, 14, 14)
            middle = larger[:, :, 4:24, 4:24].mean((2, 3))
            torch.testing.assert_close(
                images[:, :, 2:12, 2:12].mean((2, 3)), middle, atol=0.1, rtol=0
            )


def test_root_argument_beats_the_recipe_s_root(tmp_path):
    write_mnist(tmp_path / "right")
    section = DataSection(dataset="mnist", root=str(tmp_path / "right"))
    assert open_data(section, None, False, "cpu", seed=0).train.samples == 12
    with pytest.raises(QdeployError, match=f"Put them all into one of {tmp_path}/wrong/mnist"):
        open_data(section, tmp_path / "wrong", False, "cpu", seed=0)


def test_without_any_root_files_belong_into_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_mnist(Path("data/mnist"))
    assert open_data(DataSection(dataset="mnist"), None, False, "cpu", seed=0).train.samples == 12


def test_normalisation_of_the_recipe_is_used(tmp_path):
    write_mnist(tmp_path)
    section = DataSection(dataset="mnist", mean=[0.25], std=[0.5])
    data = open_data(section, tmp_path, False, "cpu", seed=0)
    default = open_data(DataSection(dataset="mnist"), tmp_path, False, "cpu", seed=0)
    [(images, _)], [(others, _)] = data.test.epoch(0), default.test.epoch(0)
    assert (data.mean, data.std) == ((0.25,), (0.5,))
    np.testing.assert_allclose(images * 0.5 + 0.25, others * 0.3081 + 0.1307, atol=1e-5)


def test_normalisation_for_other_channels_is_refused():
    section = DataSection(dataset="digits", mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(QdeployError, match=r"given 3 values, allowed: 1, .* channel of digits"):
        open_data(section, None, False, "cpu", seed=0)


def test_a_data_set_without_the_names_of_its_classes_is_refused(monkeypatch):
    images = LabelledImages(np.zeros((4, 1, 8, 8), np.uint8), np.zeros(4, np.int64))
    nameless = Dataset(read=lambda root: (images, images), mean=(0.5,), std=(0.5,), title="Shapes")
    monkeypatch.setattr(open_module, "find", lambda name: nameless)
    with pytest.raises(QdeployError, match=r"data set 'digits' names no classes; .* `classes`"):
        open_data(DataSection(dataset="digits"), None, False, "cpu", seed=0)


def test_a_data_set_whose_files_are_missing_says_which_and_what_to_do(tmp_path, monkeypatch):
    shapes = Dataset(
        read=lambda root: (np.load(root / "train.npy"), None),
        mean=(0.5,),
        std=(0.5,),
        title="Shapes",
    )
    monkeypatch.setattr(open_module, "find", lambda name: shapes)
    section = DataSection(dataset="digits")
    message = r"cannot read .*train\.npy: No such file.*--data-root"
    with pytest.raises(QdeployError, match=message):
        open_data(section, tmp_path, False, "cpu", seed=0)
