"""Sums of products of integers, against numpy's whole numbers, up to where int32 ends."""

import numpy as np
import pytest
import torch

from qdeploy.layers.exact_product import ExactProduct, decomposed, largest_sum
from qdeploy.layers.product import Convolution, MatrixProduct


def integers(low, high, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=generator)


# One term; without the spread; in digits; too large even for these.
CASES = {
    "small": (20, 1, 8),
    "spread": (700, 64, 1),
    "digits": (700, 1, 120),
    "float64": (20000, 1, 120),
}


@pytest.mark.parametrize("case", CASES)
def test_linear(case):
    inner, spread, top = CASES[case]
    weight = integers(-top, top, 5, inner) * spread
    weight[0] = top * spread  # every product adds to the sum
    bias, x = integers(-(2**24), 2**24, 5, seed=1), integers(0, 255, 7, inner, seed=2)
    x[0] = 255
    product = ExactProduct(MatrixProduct(), weight.int(), bias.int(), spread, 0, 255)
    expected = x.numpy() @ weight.numpy().T + bias.numpy()
    found = product(x.float())
    assert np.array_equal(found.to(torch.int64).numpy(), expected)
    assert product.largest >= np.abs(expected - bias.numpy()).max()


def test_float32_is_enough_for_few_inputs():
    weight, bias = integers(-8, 8, 5, 20).int(), torch.zeros(5, dtype=torch.int32)
    assert (
        ExactProduct(MatrixProduct(), weight, bias, 1, 0, 255)(torch.ones(1, 20)).dtype
        == torch.float32
    )


def test_convolution_in_digits():
    weight, bias = integers(-128, 127, 4, 512, 3, 3).int(), integers(-9, 9, 4, seed=1).int()
    x = integers(-100, 155, 1, 512, 5, 5, seed=2)
    plain = Convolution((1, 1), (1, 1), (1, 1), 1, "zeros", (1, 1, 1, 1))
    found = ExactProduct(plain, weight, bias, 1, -100, 155)(x.float())
    assert torch.equal(found, plain(x.double(), weight.double(), bias.double()))
    assert len(decomposed(weight, 1, -100, 155)[0]) == 2


def test_the_largest_sum_is_that_of_the_worst_inputs():
    weight = torch.tensor([[3, -2, 0], [-1, -1, -1]])
    assert largest_sum(weight, 0, 255) == 3 * 255
    assert largest_sum(weight, -100, 155) == 3 * 155 + 2 * 100
    assert largest_sum(weight, 5, 10) == 30, "padding adds zeros"
