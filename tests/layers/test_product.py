from pathlib import Path

import pytest
import torch
from torch import nn

import qdeploy
from qdeploy.layers.product import product_of, weight_of

LAYERS = {
    "plain": lambda: (nn.Conv2d(3, 5, 3), (3, 8, 8)),
    "strided": lambda: (nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 2)), (4, 9, 7)),
    "groups": lambda: (nn.Conv2d(6, 9, 3, groups=3, dilation=(1, 2)), (6, 9, 9)),
    "same": lambda: (nn.Conv2d(3, 5, (4, 3), padding="same", dilation=2), (3, 9, 8)),
    "valid": lambda: (nn.Conv2d(3, 5, 3, padding="valid"), (3, 8, 8)),
    "reflect": lambda: (nn.Conv2d(3, 5, 3, padding=(2, 1), padding_mode="reflect"), (3, 8, 7)),
    "circular": lambda: (nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular"), (3, 8, 7)),
    "replicate-same": lambda: (
        nn.Conv2d(3, 5, (4, 3), padding="same", padding_mode="replicate"),
        (3, 8, 7),
    ),
    "conv1d": lambda: (nn.Conv1d(4, 6, 3, stride=2, padding=2, groups=2), (4, 11)),
    "conv1d-reflect": lambda: (nn.Conv1d(4, 6, 5, padding=2, padding_mode="reflect"), (4, 11)),
    "conv3d": lambda: (
        nn.Conv3d(4, 6, (1, 3, 2), (1, 2, 1), (0, 1, 2), (1, 1, 2), groups=2),
        (4, 3, 6, 5),
    ),
    "conv3d-replicate": lambda: (
        nn.Conv3d(3, 5, 3, padding=(1, 0, 2), padding_mode="replicate"),
        (3, 4, 5, 6),
    ),
    "linear": lambda: (nn.Linear(7, 3), (7,)),
    "linear-of-sequences": lambda: (nn.Linear(7, 3), (5, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_product_multiplies_as_its_layer_does(name):
    torch.manual_seed(0)
    layer, shape = LAYERS[name]()
    x = torch.randn(2, *shape)
    y = product_of(layer)(x, layer.weight, layer.bias)
    torch.testing.assert_close(y, layer(x), rtol=0, atol=0)


TRANSPOSED = {
    "1d": lambda: (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, groups=2), (4, 7)),
    "2d": lambda: (nn.ConvTranspose2d(4, 5, 3, 2, 1, (1, 0), dilation=(1, 2)), (4, 5, 6)),
    "3d": lambda: (nn.ConvTranspose3d(6, 9, (1, 2, 3), (1, 2, 2), 0, 0, 3), (6, 3, 4, 5)),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_a_transposed_convolution_takes_its_weight_with_output_channels_first(name):
    torch.manual_seed(0)
    layer, shape = TRANSPOSED[name]()
    x, weight = torch.randn(2, *shape), weight_of(layer)
    assert weight.shape == (
        layer.out_channels,
        layer.in_channels // layer.groups,
        *layer.kernel_size,
    )
    y = product_of(layer)(x, weight, layer.bias)
    torch.testing.assert_close(y, layer(x), rtol=0, atol=0)
    with torch.no_grad():  # each output channel has a row of the weight of its own
        changed = product_of(layer)(
            x, weight * (torch.arange(len(weight)) == 2).view(-1, *[1] * (x.ndim - 1)), None
        )
    assert [bool(channel.any()) for channel in changed.movedim(1, 0)] == [
        i == 2 for i in range(len(weight))
    ]


@pytest.mark.parametrize("name", LAYERS | TRANSPOSED)
def test_a_product_knows_the_axis_of_its_output_channels(name):
    layer, shape = (LAYERS | TRANSPOSED)[name]()
    product, x = product_of(layer), torch.randn(2, *shape)
    bias = torch.arange(float(len(layer.bias)))
    y = product(x, torch.zeros_like(weight_of(layer)), bias)
    assert torch.equal(
        y.movedim(product.channel_axis, -1), bias.expand_as(y.movedim(product.channel_axis, -1))
    )


@pytest.mark.parametrize("name", LAYERS)
def test_a_product_works_without_a_bias(name):
    layer, shape = LAYERS[name]()
    nn.init.zeros_(layer.bias)
    x = torch.randn(2, *shape)
    y = product_of(layer)(x, layer.weight, None)
    torch.testing.assert_close(y, layer(x))


def test_a_product_keeps_no_weight_of_its_own():
    layer = nn.Conv2d(3, 5, 3)
    product = product_of(layer)
    nn.init.zeros_(layer.weight)
    x, weight = torch.randn(1, 3, 4, 4), torch.ones(5, 3, 3, 3)
    wanted = x.unfold(2, 3, 1).unfold(3, 3, 1).sum((1, 4, 5))
    torch.testing.assert_close(product(x, weight, None)[:, 2], wanted)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (
            nn.Conv2d(3, 3, 3, 2, 1, 1, 3),
            "stride=(2, 2), padding=(1, 1), dilation=(1, 1), groups=3",
        ),
        (nn.Conv1d(3, 3, 3, padding=1, padding_mode="circular"), "groups=1, circular"),
        (nn.Linear(3, 3), "linear"),
    ],
)
def test_a_product_prints_its_geometry(layer, text):
    assert repr(product_of(layer)).endswith(text)


def test_a_kind_of_layer_costs_three_files():
    """The products, the norms that fold into them, and Range BN name each kind; no other file does."""
    package = Path(qdeploy.__file__).parent
    naming = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if any(name in file.read_text() for name in ("Conv3d", "ConvTranspose3d", "BatchNorm3d"))
    }
    assert naming == {"layers/product.py", "layers/norm.py", "layers/range_norm.py"}
