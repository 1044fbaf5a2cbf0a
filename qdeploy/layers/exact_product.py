"""Products of integers, added up exactly by float kernels.

Float32 adds integers up exactly while no sum reaches 2^24. A weight whose sums may reach it is written
as smaller terms: without the number that all of it is a multiple of, or as digits to base 16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qdeploy.layers.product import Product

EXACT = 2**24
BASE = 16


class ExactProduct(nn.Module):
    """A layer's product with integers, which gives the exact sums: float32, or float64 if they are large.

    weight     int32 [out, ...], all of it multiples of `spread`
    bias       int32 [out]
    low, high  between which the whole numbers lie that the weight is multiplied with
    """

    bias: Tensor

    def __init__(
        self, product: Product, weight: Tensor, bias: Tensor, spread: int, low: int, high: int
    ) -> None:
        super().__init__()
        self.product = product
        self.register_buffer("bias", bias.to(torch.float64))
        self.numbers, terms = decomposed(weight, spread, low, high)
        for index, term in enumerate(terms):
            self.register_buffer(f"term_{index}", term.to(torch.float32))
        self.narrow = all(largest_sum(term, low, high) < EXACT for term in terms)
        self.largest = largest_sum(weight, low, high) + int(bias.abs().max())

    def forward(self, x: Tensor) -> Tensor:
        """x: whole numbers, float32."""
        kind = exact_type(self.narrow, x.device)
        if kind == torch.float32 and self.largest < EXACT:
            return self.product(x, self.get_buffer("term_0"), self.bias.to(kind))
        sums, x = self.product.over_outputs(self.bias, x), x.to(kind)
        for index, number in enumerate(self.numbers):
            products = self.product(x, self.get_buffer(f"term_{index}").to(kind), None)
            sums = torch.add(sums, products.to(torch.float64), alpha=number)
        return sums


def exact_type(narrow: bool, device: torch.device) -> torch.dtype:
    """The type that adds integers up exactly; narrow: no sum of some of them reaches 2^24.

    Elsewhere than on a CPU float32 may take shortcuts that round: TF32, Winograd's convolution.
    """
    return torch.float32 if narrow and device.type == "cpu" else torch.float64


def decomposed(weight: Tensor, spread: int, low: int, high: int) -> tuple[list[int], list[Tensor]]:
    """Numbers and terms whose products add up to the weight."""
    if largest_sum(weight, low, high) < EXACT:
        return [1], [weight]
    smaller = weight // spread
    if largest_sum(smaller, low, high) < EXACT:
        return [spread], [smaller]
    digits = (smaller + BASE // 2) // BASE
    return [BASE * spread, spread], [digits, smaller - BASE * digits]


def largest_sum(weight: Tensor, low: int, high: int) -> int:
    """The largest size that any of the products of one output may add up to, for low <= x <= high."""
    low, high = min(low, 0), max(high, 0)  # padding adds zeros
    rows = weight.to(torch.int64).flatten(1)
    positive, negative = rows.clamp(min=0).sum(1), -rows.clamp(max=0).sum(1)
    above, below = high * positive - low * negative, high * negative - low * positive
    return int(torch.maximum(above, below).max())
