import pytest
import torch
from torch import nn

from qdeploy.layers.product import product_of

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
