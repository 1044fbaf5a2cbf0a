"""The two nouns: the integers a quantized tensor may hold, and a tensor of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray


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
    def storage(self) -> np.dtype[Any]:
        """The type of weight codes: int8, or int16 where they do not fit."""
        fitting = [t for t in (np.int8, np.int16) if self._fits(np.iinfo(t))]
        if not fitting:
            raise ValueError(f"{self} does not fit int16")
        return np.dtype(fitting[0])

    def _fits(self, limits: np.iinfo[Any]) -> bool:
        return bool(limits.min <= self.lowest and self.highest <= limits.max)

    @property
    def symmetric(self) -> bool:
        return all(-code in self._members for code in self.codes)

    @cached_property
    def _members(self) -> frozenset[int]:
        return frozenset(self.codes)

    def holds(self, codes: Array) -> bool:
        """True if every element of `codes` is on the grid."""
        return bool(np.isin(codes, self.codes).all())

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


@dataclass(frozen=True)
class QTensor:
    """Integer codes times one positive scale per output channel: value = (code - zero) * scale.

    codes  int8, [out, ...], on the grid; int16 for a grid that does not fit int8
    scale  float32, [out]
    zero   [out], of the codes' type: the code of the value 0; all zeros unless the method is
           asymmetric
    """

    codes: Array
    scale: Array
    zero: Array
    grid: Grid

    def __post_init__(self) -> None:
        if self.codes.dtype != self.grid.storage:
            raise ValueError(
                f"{self.grid} is stored as {self.grid.storage}, not {self.codes.dtype}"
            )
        if not self.grid.holds(self.codes):
            raise ValueError(
                f"codes outside {self.grid}: {np.setdiff1d(self.codes, self.grid.codes)}"
            )

    def _column(self, per_channel: Array) -> Array:
        return per_channel.reshape(-1, *[1] * (self.codes.ndim - 1))

    def dequantize(self) -> Array:
        """The float32 values, [out, ...]."""
        centred = self.codes.astype(np.int32) - self._column(self.zero).astype(np.int32)
        return centred.astype(np.float32) * self._column(self.scale)

    def fold(self, gain: Array) -> QTensor:
        """The tensor times `gain` (float32, [out]) without quantizing again.

        The gain's absolute value goes into the scale. A negative gain flips the channel's codes: to
        -code on a symmetric grid, and elsewhere to the mirror image lowest + highest - code, which
        moves the zero as well.
        """
        flip = self._column(gain < 0)
        offset = 0 if self.grid.symmetric else self.grid.lowest + self.grid.highest
        codes = np.where(flip, offset - self.codes.astype(np.int32), self.codes)
        zero = np.where(gain < 0, offset - self.zero.astype(np.int32), self.zero)
        scale = self.scale * np.abs(gain)
        kind = self.codes.dtype
        return QTensor(codes.astype(kind), scale.astype(np.float32), zero.astype(kind), self.grid)

    def spread(self, factor: int) -> QTensor:
        """The same values on codes multiplied by an integer: a finer step for the int32 bias."""
        kind = self.codes.dtype
        return QTensor(
            (self.codes * kind.type(factor)).astype(kind),
            (self.scale / np.float32(factor)).astype(np.float32),
            (self.zero * kind.type(factor)).astype(kind),
            self.grid.spread(factor),
        )
