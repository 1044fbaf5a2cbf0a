"""Image files before training: every bad one is found, size and splits are chosen, and all is kept."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from qdeploy.data import Survey, open_data
from qdeploy.errors import QdeployError
from qdeploy.recipe import DataSection


def write(path, size=(12, 10), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    """24 images to train on, 4 in val, 2 in test; in cat and dog."""
    for seed in range(24):
        write(tmp_path / "train" / ("cat", "dog")[seed % 2] / f"{seed:02}.png", seed=seed)
    for split, count in (("val", 4), ("test", 2)):
        for seed in range(count):
            write(tmp_path / split / ("cat", "dog")[seed % 2] / f"{seed}.png", seed=100 + seed)
    return tmp_path


def cut(path):
    """Leaves the header and a part of the picture."""
    path.write_bytes(path.read_bytes()[:120])


def opened(root, survey=None, seed=3, **given):
    section = DataSection(dataset="folder", batch_size=4, **{"workers": 0, **given})
    return open_data(section, root, False, "cpu", seed=seed, survey=survey)


class TestBadFiles:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_all_are_listed_at_once_the_first_ten_by_name(self, root, workers):
        for number in range(0, 24, 2):
            (root / f"train/cat/{number:02}.png").write_bytes(b"")
        (root / "val/dog/1.png").unlink()
        os.mkfifo(root / "val/dog/1.png")
        with pytest.raises(QdeployError) as caught:
            opened(root, workers=workers)
        first, *lines, more, advice = str(caught.value).splitlines()
        assert first == "13 of 30 files cannot be read:"
        assert [line.split(" cannot")[0] for line in lines] == [
            str(root / f"train/cat/{number:02}.png") for number in range(0, 20, 2)
        ]
        assert more == "and 3 more"
        assert 'data.on_bad_file = "skip"' in advice

    def test_the_header_is_read_or_the_full_image(self, root):
        cut(root / "train/dog/01.png")
        assert opened(root).train.samples == 24
        with pytest.raises(QdeployError, match=r"1 of 30 files cannot be read:\n.*dog/01\.png"):
            opened(root, scan="full")

    def test_skipped_files_are_named_and_left_out_everywhere(self, root):
        cut(root / "train/dog/01.png")
        cut(root / "val/cat/0.png")
        data = opened(root, scan="full", on_bad_file="skip")
        assert (data.train.samples, data.val.samples, data.test.samples) == (23, 3, 2)
        assert set(data.survey.skipped) == {"train/dog/01.png", "val/cat/0.png"}
        [line] = [note for note in data.notes if note.startswith("left out")]
        assert line.startswith("left out are 2 of 30 files:\n")
        assert "dog/01.png cannot be read" in line
        assert "Mend" not in line

    def test_a_class_of_which_no_file_is_left(self, root):
        for path in (root / "train/dog").iterdir():
            cut(path)
        with pytest.raises(QdeployError, match=r"no image of .*train/dog is left"):
            opened(root, scan="full", on_bad_file="skip")

    def test_a_known_survey_gives_the_same_batches_whatever_became_of_the_files(self, root):
        cut(root / "train/dog/01.png")
        began = opened(root, scan="full", on_bad_file="skip")
        write(root / "train/dog/01.png")  # mended meanwhile
        kept = Survey.from_json(began.survey.to_json())
        again = opened(root, scan="full", on_bad_file="skip", survey=kept)
        assert again.survey == began.survey
        for left, right in zip(began.train.epoch(2), again.train.epoch(2), strict=True):
            assert all(map(torch.equal, left, right))
        assert opened(root, on_bad_file="skip").train.samples == 24

    def test_the_listing_tells_when_files_come_or_go(self, root):
        began = opened(root).survey
        assert opened(root, began).survey.listing == began.listing
        write(root / "train/dog/more.png")
        assert opened(root, began).survey.listing != began.listing
        (root / "train/dog/more.png").unlink()
        (root / "train/cat/00.png").rename(root / "train/dog/00.png")
        assert opened(root, began).survey.listing != began.listing


class TestSize:
    @pytest.mark.parametrize(
        ("sizes", "size", "said"),
        [
            ([(40, 30)] * 3, 30, "image_size is 30: half of the 3 training images"),
            ([(40, 30), (50, 90), (60, 60)], 50, "a short side of 50 pixels or more"),
            (
                [(400, 300), (500, 400), (30, 30)],
                224,
                "image_size is 224, as ImageNet's: half of the 3",
            ),
        ],
    )
    def test_it_is_chosen_from_the_training_images(self, tmp_path, sizes, size, said):
        for number, wanted in enumerate(sizes):
            write(tmp_path / f"train/cat/{number}.png", wanted)
        write(tmp_path / "val/cat/1.png", (7, 7))
        data = opened(tmp_path)
        assert data.input_shape == (3, size, size)
        assert said in data.notes[0]
        [(images, _)] = data.test.epoch(0)
        assert images.shape == (1, 3, size, size)

    def test_the_recipe_s_size_wins_without_a_word(self, root):
        data = opened(root, image_size=6)
        assert (data.input_shape, data.survey.image_size) == ((3, 6, 6), 6)
        assert not any("image_size" in note for note in data.notes)

    def test_it_is_no_larger_than_what_the_centre_is_cut_from(self, root):
        data = opened(root, resize=8)
        assert (data.input_shape, data.fit.crop) == ((3, 8, 8), 1)
        assert data.notes[0].startswith("image_size is 8, as data.resize: half of the 24 training")

    def test_a_known_one_stays(self, root):
        began = replace(opened(root).survey, image_size=9)
        assert opened(root, began).input_shape == (3, 9, 9)


class TestSplits:
    def test_epochs_are_compared_on_val_and_files_on_test(self, root):
        data = opened(root)
        assert (data.val.samples, data.test.samples) == (4, 2)
        assert data.in_training().test is data.val
        assert (
            "epochs are tested on 4 validation images, exported files on 2 test images"
            in data.notes
        )

    @pytest.mark.parametrize("only", ["val", "test"])
    def test_one_of_them_is_for_both(self, root, only):
        other = {"val": "test", "test": "val"}[only]
        (root / other).rename(root.parent / f"{root.name}-{other}")
        data = opened(root)
        assert (data.val, data.test.samples) == (None, {"val": 4, "test": 2}[only])
        assert data.in_training() is data

    def test_a_share_is_drawn_of_each_class_from_the_seed(self, root):
        (root / "val").rename(root / "train/.val")
        parts = []
        for seed in (3, 3, 4):
            data = opened(root, val_share=0.25, seed=seed)
            train, val = data.train._images, data.val._images
            assert {*train.paths} | {*val.paths} == {*(root / "train").glob("[cd]*/*.png")}
            assert len(train.paths) + len(val.paths) == 24
            assert np.bincount(val.labels).tolist() == [3, 3]
            assert data.test.samples == 2
            parts.append(val.paths)
        assert parts[0] == parts[1] != parts[2]

    def test_of_a_root_with_classes_alone_it_is_for_both(self, root):
        data = opened(root / "train", val_share=0.5)
        assert (data.train.samples, data.val, data.test.samples) == (12, None, 12)

    @pytest.mark.parametrize(
        ("folder", "given", "message"),
        [
            (".", {"val_share": 0.1}, "has a validation set of 4 images; remove data.val_share"),
            ("train", {}, "nothing to test on; .*data.val_share = 0.1"),
            ("train", {"val_share": 0.97}, "0.97 of the 12 images of class 0 leaves none"),
        ],
    )
    def test_what_cannot_be(self, root, folder, given, message):
        with pytest.raises(QdeployError, match=message):
            opened(root / folder, **given)

    def test_arrays_are_parted_as_well(self):
        section = DataSection(dataset="digits", batch_size=64, val_share=0.2)
        data = open_data(section, None, False, "cpu", seed=0)
        train, val = (part._labels.bincount() for part in (data.train, data.val))
        assert val.tolist() == [round(0.2 * count) for count in (train + val).tolist()]
        assert (data.train.samples + data.val.samples, data.test.samples) == (1437, 360)
        assert data.survey is None
