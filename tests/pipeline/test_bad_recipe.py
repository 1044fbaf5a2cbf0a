"""What is wrong with a recipe or its data is said before there is a run folder."""

import re

import pytest
import torch
from command_line import RECIPE, content, fails
from published import write_mnist


def refused(folder, *arguments, code=1):
    before = content(folder)
    message = fails("train", *arguments, "-o", folder / "run", code=code)
    assert content(folder) == before
    assert not (folder / "run").exists()
    return message


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "train.epoch=3",
            r"unknown key train\.epoch\. Did you mean train\.epochs\? Allowed in \[tr",
        ),
        ("trian.epochs=3", r"unknown key trian\. Did you mean train\?"),
        ("train.epochs=many", "train.epochs: given 'many', allowed: a whole number"),
        ("calibrate.ranges=minmax", r"instead of training; remove it, or set train\.epochs = 0"),
        ("train.lr=-1", r"train\.lr: given -1, allowed: above 0"),
        ("train.epochs", "override 'train.epochs' cannot be read; allowed: section.key=value"),
        ("quantize.method=slub", r"unknown method 'slub'; .*Did you mean slb\?"),
        ("quantize.weight_bits=3", "'slb' has no weight_bits = 3; it can do 1, 2, 4"),
        ("quantize.act_bits=4", "'slb' has no act_bits = 4; it can do 8 or 'float'"),
        ("quantize.act_bits=9", "'slb' has no act_bits = 9; it can do 8 or 'float'"),
        ("quantize.act_bits=17", 'given 17, allowed: 1 to 16, or "float"'),
        ("train.epochs=0", "conv1 trains another one .*set calibrate.correct_bias to false"),
        ("quantize.options.t_factr=2", r"unknown key t_factr\. Did you mean t_factor\?"),
        ("quantize.options.t_factor=-2", "t_factor: given -2"),
        ("quantize.options.weight_bits=2", r"quantize.options has weight_bits.* in \[quantize\]"),
        ("quantize.options.model=2", "quantize.options has model, which no method takes"),
        ('quantize.layers."conv9*"="float"', "'conv9\\*' matches no layer; .*conv1, conv2, fc1"),
        ("quantize.layers.fc1.weight_bits=3", "'slb' has no weight_bits = 3"),
        ("model.network=lenet", r"unknown network 'lenet'\. Did you mean lenet5\?"),
        ("model.options.image_size=30", "raised ValueError: image_size is 28 or 32, not 30"),
        ("model.options.image_size=32", r"cannot take images of shape \[1, 28, 28\]"),
        ("model.options.in_channels=3", r"cannot take images of shape \[1, 28, 28\]"),
        ("model.options.num_classes=7", r"gives \[2, 7\] .*it must give \[2, 10\]"),
        ("model.options.depth=18", r"does not take options \{'depth': 18\}: .*num_classes"),
        ("model.weights=nowhere.pt", r"cannot read .*nowhere\.pt: No such file"),
        ("data.dataset=mist", "data.dataset: given 'mist', allowed: 'cifar10', 'digits', 'fash"),
        ("data.dataset=mist", "'folder', 'mnist'. Did you mean mnist?"),
        ("data.mean=[0.1]", "mean and std go together"),
        ("data.batch_size=1", "data.batch_size: given 1, allowed: 2 or more"),
    ],
)
def test_a_setting_that_cannot_be(tmp_path, setting, message):
    found = refused(tmp_path, RECIPE, "--set", setting)
    assert re.search(message, found), found


def test_the_mean_and_std_of_another_data_set(tmp_path):
    colours = ["--set", "data.mean=[0.5, 0.5, 0.5]", "--set", "data.std=[0.5, 0.5, 0.5]"]
    assert "given 3 values, allowed: 1" in refused(tmp_path, RECIPE, *colours)


def test_weights_of_another_network(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    message = refused(tmp_path, RECIPE, "--set", f"model.weights={tmp_path / 'other.pt'}")
    assert "does not fit LeNet5: missing: conv1.weight, " in message


def test_a_recipe_that_is_not_there(tmp_path):
    assert f"Did you mean {RECIPE}?" in refused(tmp_path, "lenet5-digits-slb-w1a9")
    assert "cannot read the recipe" in refused(tmp_path, tmp_path / "mine.toml")


def test_a_recipe_that_is_no_toml(tmp_path):
    (tmp_path / "mine.toml").write_text("[model\n")
    assert "mine.toml is not valid TOML" in refused(tmp_path, tmp_path / "mine.toml")


@pytest.mark.parametrize("epochs", ["-1", "ten"])
def test_epochs_that_cannot_be(tmp_path, epochs):
    assert "'--epochs'" in refused(tmp_path, RECIPE, "--epochs", epochs, code=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(tmp_path):
    message = refused(tmp_path, RECIPE, "--device", "cuda")
    assert "finds no CUDA device; check the driver" in message


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_run_folder_that_cannot_be_made(tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    message = fails("train", RECIPE, "-o", tmp_path / place)
    assert f"cannot use {tmp_path / place} as a run folder" in message
    assert content(tmp_path) == {tmp_path / "file": b"not a folder"}


class TestData:
    def given(self, folder):
        return ["lenet5-mnist-float", "--data-root", folder / "data"]

    def test_that_is_missing(self, tmp_path):
        message = refused(tmp_path, *self.given(tmp_path))
        assert "the files of MNIST are missing: train-images-idx3-ubyte.gz or" in message
        assert f"one of {tmp_path / 'data' / 'mnist'}" in message
        assert "--download" in message

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda whole: whole[:-1], "t10k-images-idx3-ubyte is damaged"),
            (lambda whole: b"\x00" * len(whole), "t10k-images-idx3-ubyte is damaged"),
            (lambda whole: b"", "t10k-images-idx3-ubyte is damaged"),
        ],
        ids=["short", "bad magic", "empty"],
    )
    def test_that_is_damaged(self, tmp_path, change, message):
        write_mnist(tmp_path / "data" / "mnist", zipped=False)
        file = tmp_path / "data" / "mnist" / "t10k-images-idx3-ubyte"
        file.write_bytes(change(file.read_bytes()))
        assert message in refused(tmp_path, *self.given(tmp_path))

    def test_that_is_of_another_shape(self, tmp_path):
        write_mnist(tmp_path / "data" / "mnist")
        message = refused(tmp_path, *self.given(tmp_path), "--set", "model.network=resnet20")
        assert "network 'resnet20' cannot take images of shape [1, 28, 28] of MNIST" in message
