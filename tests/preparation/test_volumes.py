"""Conv3d, ConvTranspose3d and BatchNorm3d on the whole way: trained, calibrated, converted, in the file."""

import functools

import numpy as np
import pytest
import torch
from exported_networks import export, outputs, run, spread
from networks import DEAD_SHIFT, build, images
from torch import nn

import qdeploy
from qdeploy.benchmark import placement
from qdeploy.layers.integer import IntegerLayer, IntegerNorm

SETTINGS = [("simqat", 8, 8), ("slb", 1, 8), ("lsq", 4, 4), ("int8_training", 8, 8)]
every_setting = pytest.mark.parametrize("settings", SETTINGS)


@functools.cache
def trained(settings):
    """Three steps from the float network, then calibrated."""
    method, weight_bits, act_bits = settings
    options = {"quant_delay": 0} if method == "slb" else {}
    prepared = qdeploy.prepare(
        build("volumes"), images(2), method, weight_bits, act_bits, **options
    )
    before = prepared.dilated.quantizer.latent.clone()
    optimizer = torch.optim.SGD(prepared.parameters(), 0.01)
    for step in range(3):
        prepared.train().set_progress(step, 5)  # slb commits in the third
        optimizer.zero_grad()
        prepared(images(16, step)).square().mean().backward()
        optimizer.step()
    assert not torch.equal(prepared.dilated.quantizer.latent, before)
    qdeploy.calibrate(prepared, [images(48, 7)])
    return prepared.eval()


@functools.cache
def exported(settings):
    return export(trained(settings))


@every_setting
def test_the_file_is_the_converted_network(settings):
    made = exported(settings)
    wanted = outputs(made.converted, images())
    for proto in (made.packed, made.int8):
        np.testing.assert_allclose(run(proto, images()), wanted, atol=1e-5 * spread(wanted), rtol=0)
    evaluated = outputs(made.prepared, images())
    assert np.abs(wanted - evaluated).mean() < 0.03 * spread(evaluated)
    assert spread(wanted) > 0.05


@pytest.mark.parametrize("correct_bias", [False, True])
def test_at_8_bits_the_file_is_nearly_the_float_network(correct_bias):
    network = build("volumes")
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm3d):
            norm.momentum = 1.0
    network.train()(images(48, 7))
    prepared = qdeploy.prepare(network.eval(), images(2), "simqat")
    batches = images(48, 7).split(16)
    qdeploy.calibrate(prepared, batches, "minmax", batch_norm=False, correct_bias=correct_bias)
    expected = outputs(network, images())
    found = run(export(prepared).packed, images())
    assert np.abs(found - expected).mean() < 0.08 * spread(expected)
    assert spread(expected) > 0.1


def test_bias_correction_restores_the_mean_of_every_channel():
    network = build("volumes").eval()
    means = {}
    for corrected in (True, False):
        prepared = qdeploy.prepare(network, images(2), "simqat", 3)
        options = {"batch_norm": False, "correct_bias": corrected}
        qdeploy.calibrate(prepared, [images(48)], "minmax", **options)
        layer = prepared.get_submodule("dilated")
        layer.register_forward_hook(
            lambda m, x, y, c=corrected: means.update({c: y.mean((0, 2, 3, 4))})
        )
        outputs(prepared, images(48))
    network.norm.register_forward_hook(
        lambda m, x, y: means.update({"float": y.mean((0, 2, 3, 4))})
    )
    outputs(network, images(48))
    torch.testing.assert_close(means[True], means["float"], atol=2e-5, rtol=0)
    assert (means[False] - means["float"]).abs().max() > 1e-3


def test_a_dead_channel_gives_its_shift():
    converted = exported(("simqat", 8, 8)).converted
    image = converted.get_submodule("activations.x")(3 * images())
    dead = converted.get_submodule("stem.0")(image.unsqueeze(1))[:, 1]
    assert trained(("simqat", 8, 8)).get_submodule("stem.0").norm.weight[1].abs() < 0.01
    assert (dead - DEAD_SHIFT).abs().max() < 0.05


def test_convolutions_run_in_integers_and_the_transposed_one_says_why_not(tmp_path):
    """ONNX Runtime's QLinearConv takes volumes; no runtime kernel transposes an integer convolution."""
    qdeploy.export(trained(("simqat", 8, 8)), tmp_path / "volumes.onnx", images(2))
    products = {p.layer: p for p in placement(tmp_path / "volumes.onnx", "cpu").products}
    assert {name for name, product in products.items() if product.integer} == {
        "stem.0", "grouped.0", "dilated", "last.2", "fc",
    }  # fmt: skip
    assert not products["up"].quantized  # its weight is made float once, at load
    assert products["up"].kernel == "ConvTranspose"


def test_a_norm_between_integers_becomes_a_convolution_of_volumes():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(),
        nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 3, 1), nn.Flatten(), nn.Linear(576, 5),
    )  # fmt: skip
    network.train()(images(48, 7))
    prepared = qdeploy.prepare(network.eval(), images(2), "simqat")
    qdeploy.calibrate(prepared, [images(48, 7)], batch_norm=False)
    made = export(prepared)
    norm = next(m for m in made.converted.modules() if isinstance(m, IntegerNorm))
    assert (norm.kind, norm.codes.shape) == ("BatchNorm3d", (4, 1, 1, 1, 1))
    expected = outputs(network, images())
    assert np.abs(run(made.packed, images()) - expected).max() < 0.05 * spread(expected)


@every_setting
def test_every_layer_of_volumes_holds_integers(settings):
    layers = dict(exported(settings).converted.named_modules())
    kinds = {name: m.kind for name, m in layers.items() if isinstance(m, IntegerLayer)}
    assert kinds == {
        "stem.0": "Conv3d", "grouped.0": "Conv3d", "dilated": "Conv3d", "up": "ConvTranspose3d",
        "last.2": "Conv3d", "fc": "Linear",
    }  # fmt: skip


UPSAMPLING = {
    "tiles": nn.ConvTranspose2d(8, 6, 2, 2),
    "dilated": nn.ConvTranspose2d(8, 6, 2, 2, dilation=2),
    "dilated one way": nn.ConvTranspose2d(8, 6, 2, 2, dilation=(1, 2)),
    "of volumes": nn.ConvTranspose3d(8, 6, 2, 2),
}


@pytest.mark.parametrize("name", UPSAMPLING)
def test_a_transposed_convolution_between_convolutions_is_that_of_torch(name):
    """The output pixels of neighbours meet where the kernel is dilated."""
    torch.manual_seed(0)
    up, volumes = UPSAMPLING[name], name == "of volumes"
    conv = nn.Conv3d if volumes else nn.Conv2d
    network = nn.Sequential(
        nn.Unflatten(1, (3, 1)) if volumes else nn.Identity(),
        conv(3, 8, 1), nn.ReLU(), up, nn.ReLU(), conv(6, 5, 1), nn.Flatten(2),
    ).eval()  # fmt: skip
    prepared = qdeploy.prepare(network, images(2), "simqat")
    qdeploy.calibrate(prepared, [images()], "minmax")
    expected = outputs(network, images())
    found = run(export(prepared).packed, images())
    assert np.abs(found - expected).max() < 0.04 * spread(expected)
