"""The two nouns: the integers a quantized tensor may hold, and a tensor of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """The finite, ascending set of integers a quantized tensor may hold.

    `Grid((-1, 1))` is 1 bit, `Grid((-1, 0, 1))` ternary, `Grid.signed(8)` is -128..127.
    """

    codes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.codes or any(a >= b for a, b in zip(self.codes, self.codes[1:], strict=False)):
            raise ValueError(f"a grid needs one or more ascending integers, not {self.codes}")

    @classmethod
    def signed(cls, bits: int, narrow: bool = False) -> Grid:
        """-2^(bits-1) .. 2^(bits-1) - 1; `narrow` leaves out the lowest, so that it is symmetric."""
        half = 1 << (bits - 1)
        return cls(tuple(range(-half + narrow, half)))

    @classmethod
    def unsigned(cls, bits: int, narrow: bool = False) -> Grid:
        """0 .. 2^bits - 1; `narrow` leaves out the lowest."""
        return cls(tuple(range(int(narrow), 1 << bits)))

    @classmethod
    def odd(cls, bits: int) -> Grid:
        """The odd integers -(2^bits - 1) .. 2^bits - 1: evenly spaced levels without a zero."""
        top = (1 << bits) - 1
        return cls(tuple(range(-top, top + 1, 2)))

    @property
    def lowest(self) -> int:
        return self.codes[0]

    @property
    def highest(self) -> int:
        return self.codes[-1]

    @property
    def bits(self) -> int:
        """Bits that tell the codes apart."""
        return max(1, (len(self.codes) - 1).bit_length())

    @property
    def storage(self) -> torch.dtype:
        """The type of weight codes: int8, or int16 where they do not fit."""
        for kind in (torch.int8, torch.int16):
            limits = torch.iinfo(kind)
            if limits.min <= self.lowest and self.highest <= limits.max:
                return kind
        raise ValueError(f"{self} does not fit int16")

    @property
    def symmetric(self) -> bool:
        return self.codes == tuple(-code for code in reversed(self.codes))

    def spread(self, factor: int) -> Grid:
        """The grid with every code multiplied by a positive integer."""
        return Grid(tuple(code * factor for code in self.codes))

    def __repr__(self) -> str:
        if len(self.codes) <= 4:
            return f"Grid{self.codes}"
        step = self.codes[1] - self.codes[0]
        return f"Grid({self.lowest}..{self.highest}" + (f" by {step})" if step > 1 else ")")


# The uint8 codes of -1 and +1 around the zero point 128, for activations that become signs.
SIGN = Grid((127, 129))


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """values [out] shaped to broadcast over like [out, ...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def dequantized(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """(code - zero) * scale as float32 [out, ...], bitwise what ONNX DequantizeLinear gives.

    codes int8, 16 or 32 [out, ...]; scale float32, zero like codes, [out] each.
    """
    centred = codes.to(torch.int32) - per_channel(zero, codes).to(torch.int32)
    return centred.to(torch.float32) * per_channel(scale, codes)


@dataclass(frozen=True)
class QTensor:
    """Integer codes times one positive scale per output channel: value = (code - zero) * scale.

    codes  int8 [out, ...], on the grid; int16 for a grid that does not fit int8
    scale  float32 [out]
    zero   [out], of the codes' type: the code of the value 0; all zeros unless the method is
           asymmetric

    Whether every code is on the grid is not looked at here, since training makes a tensor of
    each weight at every step; `checked` does it.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    grid: Grid

    def __post_init__(self) -> None:
        if self.codes.dtype != self.grid.storage:
            raise ValueError(
                f"{self.grid} is stored as {self.grid.storage}, not {self.codes.dtype}"
            )

    @classmethod
    def symmetric(cls, codes: Tensor, scale: Tensor, grid: Grid) -> QTensor:
        """Codes [out, ...] of any type whose zero is 0, and one scale or one for each channel."""
        stored = codes.to(grid.storage)
        return cls(stored, scale.expand(len(stored)), stored.new_zeros(len(stored)), grid)

    def checked(self) -> QTensor:
        """The tensor itself. Errors: ValueError if a code is not on the grid."""
        found = self.codes.unique().tolist()
        if outside := sorted(set(found) - set(self.grid.codes)):
            raise ValueError(f"codes outside {self.grid}: {outside}")
        return self

    def cpu(self) -> QTensor:
        """The same without gradients, on the CPU."""
        codes, scale, zero = (part.detach().cpu() for part in (self.codes, self.scale, self.zero))
        return QTensor(codes, scale, zero, self.grid)

    def dequantize(self) -> Tensor:
        """The float32 values, [out, ...]."""
        return dequantized(self.codes, self.scale, self.zero)

    def fold(self, gain: Tensor) -> QTensor:
        """The tensor times `gain` (float32, [out]) without quantizing again.

        The gain's absolute value goes into the scale. A negative gain flips the channel's codes: to
        -code on a symmetric grid, and elsewhere to the mirror image lowest + highest - code, which
        moves the zero as well.
        """
        offset = 0 if self.grid.symmetric else self.grid.lowest + self.grid.highest

        def flipped(codes: Tensor) -> Tensor:
            mirrored = (offset - codes.to(torch.int32)).to(codes.dtype)
            return torch.where(per_channel(gain < 0, codes), mirrored, codes)

        return QTensor(flipped(self.codes), self.scale * gain.abs(), flipped(self.zero), self.grid)

    def spread(self, factor: int) -> QTensor:
        """The same values on codes multiplied by a positive integer, with a scale that much smaller.

        Errors: ValueError if the larger codes do not fit the type of these.
        """
        codes, zero = self.codes * factor, self.zero * factor
        return QTensor(codes, self.scale / factor, zero, self.grid.spread(factor))
