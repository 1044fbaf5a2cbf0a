import numpy as np
import pytest
import torch
from float_layers import CASES, build
from torch import nn

from qdeploy.grid import Grid, QTensor, per_channel
from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.layers.weight import WeightQuantizer


class Halves(WeightQuantizer):
    """Codes -2..2 of half the channel's number each, with an uneven zero point; soft: twice that."""

    grid = Grid((-2, -1, 0, 1, 2))

    def __init__(self, weight):
        super().__init__()
        self.latent = nn.Parameter(weight.detach().clone())

    def relax(self, latent):
        return latent * 2

    def collapse(self, latent):
        codes = latent.detach().round().clamp(-2, 2).to(torch.int8)
        scale = torch.arange(1, len(codes) + 1) / 2
        return QTensor(codes, scale, torch.full((len(codes),), -1, dtype=torch.int8), self.grid)


def test_training_multiplies_by_the_relaxed_and_evaluation_by_the_collapsed_weight():
    layer, _, x = build("linear")
    quantized = QuantizedLayer(layer, None, Halves(layer.weight * 4))
    soft = quantized.train()(x)
    torch.testing.assert_close(soft, x @ (layer.weight * 8).T + layer.bias)

    scale = torch.tensor([0.5, 1, 1.5, 2, 2.5]).reshape(5, 1)
    shipped = ((layer.weight * 4).round().clamp(-2, 2) + 1) * scale
    torch.testing.assert_close(quantized.eval()(x), x @ shipped.T + layer.bias)


def test_the_gain_multiplies_the_latent_before_it_is_relaxed_or_collapsed():
    quantizer = Halves(torch.ones(3, 2))
    gain = torch.tensor([1.0, -0.5, 7.0])
    assert torch.equal(quantizer.train()(gain)[:, 0], gain * 2)
    codes = torch.tensor([1.0, 0.0, 2.0])  # 1, round(-0.5), clamp(7)
    assert torch.equal(quantizer.eval()(gain)[:, 1], (codes + 1) * torch.tensor([0.5, 1, 1.5]))


def test_evaluation_gives_the_weight_no_gradient():
    layer, _, x = build("linear")
    quantized = QuantizedLayer(layer, None, Halves(layer.weight)).eval()
    quantized(x).sum().backward()
    assert quantized.quantizer.latent.grad is None


def test_a_method_of_an_older_qdeploy_is_told_what_took_the_place_of_collapsed():
    with pytest.raises(ImportError, match=r"Collapsed is gone: import QTensor from qdeploy\.grid"):
        from qdeploy.layers.weight import Collapsed  # noqa: F401
    with pytest.raises(ImportError, match="cannot import name 'Colapsed'"):
        from qdeploy.layers.weight import Colapsed  # noqa: F401


def test_codes_that_are_not_on_the_grid_do_not_ship():
    class Astray(Halves):
        def collapse(self, latent):
            good = super().collapse(latent)
            return QTensor(good.codes + 3, good.scale, good.zero, self.grid)

    layer, _, _ = build("linear")
    with pytest.raises(ValueError, match=r"codes outside Grid.*: \[.*3"):
        QuantizedLayer(layer, None, Astray(layer.weight)).integers()


def test_per_channel_values_stand_over_the_first_axis():
    values = per_channel(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4))
    assert torch.equal((torch.ones(2, 3, 4) * values)[:, 2, 3], torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_norm", [False, True])
def test_integers_are_the_folded_codes_and_bias(case, with_norm):
    layer, norm, _ = build(case)
    quantized = QuantizedLayer(layer, norm if with_norm else None, Halves(layer.weight * 4))
    weight, bias = quantized.integers()

    own = (
        np.zeros(len(weight.scale)) if layer.bias is None else layer.bias.detach().double().numpy()
    )
    gain, shift = np.ones_like(own), own
    if with_norm:
        values = {k: v.detach().double().numpy() for k, v in norm.state_dict().items()}
        gain = values["weight"] / np.sqrt(values["running_var"] + norm.eps)
        shift = values["bias"] + gain * (own - values["running_mean"])
    codes = np.clip(np.rint(layer.weight.detach().numpy() * np.float32(4)), -2, 2) + 1.0
    column = (-1, *[1] * (codes.ndim - 1))
    wanted = codes * (gain * np.arange(1, len(gain) + 1) / 2).reshape(column)
    np.testing.assert_allclose(weight.dequantize(), wanted, rtol=1e-6)
    np.testing.assert_allclose(bias.numpy(), shift, rtol=1e-5, atol=1e-6)


def test_a_quantized_layer_keeps_the_float_layers_bias_and_norm():
    layer, norm, _ = build("conv2d-bias")
    quantized = QuantizedLayer(layer, norm, Halves(layer.weight))
    assert quantized.bias is layer.bias
    assert quantized.norm is norm
    assert [name for name, _ in quantized.named_parameters()] == ["weight", "bias"]
    assert quantized.quantizer.latent is quantized.weight


def test_every_setting_is_printed():
    layer, norm, _ = build("conv2d-bias")
    quantized = QuantizedLayer(layer, norm, Halves(layer.weight), "two-conv", freeze_bn=5)
    for setting in ("Conv2d", "stride=(2, 2)", "fold=two-conv", "freeze_bn=5"):
        assert setting in quantized.extra_repr()


def test_a_quantizer_has_to_say_how_it_relaxes_and_collapses():
    with pytest.raises(TypeError, match="abstract methods collapse, relax"):
        WeightQuantizer()
    assert Halves(torch.ones(1, 1)).searching is False
