"""Which layer gets which settings: globs, their order, and what is wrong with wrong ones."""

from dataclasses import replace

import pytest
from networks import build, images
from torch import nn

import qdeploy
from qdeploy import methods
from qdeploy.errors import QdeployError
from qdeploy.methods import Options
from qdeploy.preparation.settings import layer_settings

NAMES = ["stem.0", "conv1", "conv2", "projection", "same.0", "fc"]


def settings(
    layers=None, method="simqat", weight_bits=8, act_bits=8, network="residual", **options
):
    network = build(network)
    prepared = qdeploy.prepare(
        network, images(2), method, weight_bits, act_bits, layers, reduce_range=False, **options
    )
    return prepared.settings


def words(chosen):
    return {
        name: "float" if s is None else f"{s.method_name} w{s.weight_bits}a{s.act_bits}"
        for name, s in chosen.items()
    }


def test_layers_are_named_in_the_order_the_network_runs_them():
    assert list(settings()) == NAMES


def test_a_glob_can_leave_layers_in_float():
    found = words(settings({"*.0": "float"}))
    assert [name for name, word in found.items() if word == "float"] == ["stem.0", "same.0"]
    assert found["fc"] == "simqat w8a8"


def test_each_glob_refines_the_one_before():
    layers = {
        "conv*": {"weight_bits": 4, "options": {"ema_decay": 0.5}},
        "conv2": {"act_bits": 5, "options": {"weight_symmetric": False}},
    }
    found = settings(layers, ema_decay=0.9)
    assert words(found)["conv1"] == "simqat w4a8"
    assert words(found)["conv2"] == "simqat w4a5"
    assert found["conv2"].options.ema_decay == 0.5
    assert not found["conv2"].options.weight_symmetric
    assert found["conv1"].options.weight_symmetric
    assert found["fc"].options.ema_decay == 0.9


def test_the_order_decides_between_float_and_bits():
    assert words(settings({"conv*": "float", "conv2": {"weight_bits": 4}})) == {
        **dict.fromkeys(NAMES, "simqat w8a8"), "conv1": "float", "conv2": "simqat w4a8",
    }  # fmt: skip
    assert words(settings({"conv2": {"weight_bits": 4}, "conv*": "float"}))["conv2"] == "float"


def test_another_method_starts_from_its_own_options():
    found = settings({"conv1": {"method": "slb", "weight_bits": 2}}, fold="two-conv")
    assert words(found)["conv1"] == "slb w2a8"
    assert found["conv1"].options.t_end_time == 0.6
    assert found["conv2"].options.fold == "two-conv"


def test_first_and_last_in_float_wins_over_globs():
    found = words(settings({"*": {"weight_bits": 4}}, first_last_float=True))
    assert [name for name, word in found.items() if word == "float"] == ["stem.0", "fc"]
    assert found["conv1"] == "simqat w4a8"


def test_float_activations():
    for word in ("float", None):
        assert {s.act_bits for s in settings(act_bits=word).values()} == {None}
    assert words(settings({"fc": {"act_bits": "float"}}))["fc"] == "simqat w8aNone"


def test_slb_leaves_linear_layers_to_simqat():
    found = words(settings(method="slb", weight_bits=1))
    assert found == {**dict.fromkeys(NAMES, "slb w1a8"), "fc": "simqat w8a8"}
    assert words(settings(method="slb", weight_bits=1, linear=True))["fc"] == "slb w1a8"
    found = settings(method="slb", weight_bits=1, act_bits="float")
    assert found["fc"].act_bits is None


def test_the_layers_of_slb_are_searched_and_the_linear_ones_rounded():
    prepared = qdeploy.prepare(build("vector"), images(2), "slb", 1)
    grids = [layer.quantizer.grid for _, layer in prepared.quantized_layers()]
    assert [len(grid.codes) for grid in grids] == [128, 128]
    prepared = qdeploy.prepare(build("vector"), images(2), "slb", 1, linear=True)
    assert [layer.quantizer.grid.codes for _, layer in prepared.quantized_layers()] == [(-1, 1)] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": {"convv*": "float"}}, r"'convv\*' matches no layer.* stem\.0, conv1, conv2, "),
        ({"layers": {"fc": {"bits": 4}}}, r"'fc' is given \['bits'\].* method, weight_bits, act_"),
        ({"layers": {"fc": "int8"}}, r"'fc' is given 'int8'; allowed is 'float' or a table"),
        ({"weight_bits": 1}, r"'simqat' has no weight_bits = 1; it can do 2, 3, 4, 5, 6, 7, 8$"),
        ({"weight_bits": 8.0}, r"'simqat' has no weight_bits = 8.0"),
        ({"method": "slb", "weight_bits": True}, r"'slb' has no weight_bits = True"),
        ({"layers": ["fc"]}, r"layers: given \['fc'\], allowed: a table"),
        ({"layers": {"fc": None}}, r"'fc' is given None; allowed is 'float' or a table"),
        ({"method": "slb", "weight_bits": 1, "t_factor": float("inf")}, r"t_factor: given inf"),
        ({"act_bits": 9}, r"'simqat' has no act_bits = 9; .* 8 or 'float'$"),
        ({"act_bits": "flaot"}, r"'simqat' has no act_bits = 'flaot'; .* 8 or 'float'$"),
        ({"method": "slb", "weight_bits": 3}, r"'slb' has no weight_bits = 3; it can do 1, 2, 4$"),
        ({"layers": {"fc": {"weight_bits": 9}}}, r"'simqat' has no weight_bits = 9"),
        ({"layers": {"fc": {"method": "slb"}}}, r"'slb' has no weight_bits = 8"),
        ({"method": "simquat"}, r"unknown method 'simquat'.* Did you mean simqat\?"),
        ({"ema_decy": 0.9}, r"unknown key ema_decy\. Did you mean ema_decay\?"),
        ({"ema_decay": 2}, r"ema_decay: given 2, allowed: below 1"),
        ({"fold": "three-conv"}, r"fold: given 'three-conv', allowed: 'none', 'one-conv' or 'two-"),
        ({"layers": {"fc": {"options": {"fodl": "none"}}}}, r"unknown key fodl\. Did you mean fold\?"),
        (
            {"method": "slb", "weight_bits": 1, "t_start_time": 0.7},
            r"t_end_time \(0.6\) must not be before t_start_time \(0.7\)",
        ),
    ],
)  # fmt: skip
def test_wrong_settings_say_what_is_allowed(arguments, message):
    with pytest.raises(QdeployError, match=message):
        settings(**arguments)


def test_an_option_that_must_be_given_is_named(monkeypatch):
    class Required(Options):
        levels: int

    demanding = replace(methods.find("simqat"), options=Required)
    monkeypatch.setattr(methods, "find", lambda name: demanding)
    with pytest.raises(
        QdeployError, match=r"'simqat': levels is missing; it has no default, so it"
    ):
        layer_settings("simqat", 8, 8, {})


def test_globs_name_only_conv_and_linear_layers():
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    with pytest.raises(QdeployError, match="'1' matches no layer"):
        qdeploy.prepare(network, images(2), "simqat", layers={"1": "float"})
