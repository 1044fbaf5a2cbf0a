"""Flags and counters in buffers, as numbers of the host."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Number = float | int | bool

_known = WeakTensorKeyDictionary()  # {buffer: (its version, its last number)}


def on_host(buffer: Tensor) -> Number:
    """The last number of a small buffer, read from its device only where the buffer has changed.

    Reading waits for the device. torch counts what is changed in place (a state that is loaded, a
    copy_), and a tensor in the buffer's place is another one; what is changed as `buffer.data` is
    noticed after `forget`. An inference tensor has no such count and is read each time. A graph that
    torch.compile makes ends here.
    """
    return _on_host_uncompiled(buffer) if torch.compiler.is_compiling() else _on_host(buffer)


def _on_host(buffer: Tensor) -> Number:
    if buffer.is_inference():
        return _read(buffer)
    version, number = _known.get(buffer, (None, 0))
    if version != buffer._version:
        number = _read(buffer)
        _known[buffer] = buffer._version, number
    return number


_on_host_uncompiled = torch.compiler.disable(_on_host)  # its wrapper takes longer than it does


@torch.compiler.disable
def set_both(buffer: Tensor, number: Number) -> None:
    """Fills a scalar buffer with a number that need not be read back."""
    buffer.fill_(number)
    if not buffer.is_inference():
        _known[buffer] = buffer._version, number


def forget(buffer: Tensor) -> None:
    """Lets the buffer be read when it is asked for next."""
    _known.pop(buffer, None)


def _read(buffer: Tensor) -> Number:
    number: Number = 0 if buffer.is_meta else buffer.detach().flatten()[-1].item()
    return number
