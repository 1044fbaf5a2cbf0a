"""Poolings whose windows follow the size of their input: in an ONNX file a window is a number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker

from qdeploy.errors import QdeployError

ADAPTIVE = "adaptive"  # in the name of a pooling of torch's that is given the size of its output


def refuse_fixed_windows(
    network: nn.Module, inputs: Sequence[Tensor], others: Sequence[Tensor]
) -> None:
    """Looks at every pooling of two runs, on inputs of two sizes.

    Errors: QdeployError that names a pooling with other windows in the second one, and an adaptive
    one to more than one value.
    """
    # A network that decides by size may pool more often at one of them.
    pairs = zip(poolings(network, inputs), poolings(network, others), strict=False)
    for (place, operator, given), (_, _, later) in pairs:
        if ADAPTIVE in operator and any(size != 1 for size in given[0]):
            what = f"{operator} to {'x'.join(map(str, given[0]))}"
        elif given != later:
            what = f"{operator} with a window computed of sizes"
        else:
            continue
        raise QdeployError(
            f"the file cannot take any size: {place} calls {what}, and windows are numbers in ONNX. Leave "
            "out dynamic, or pool to one value, F.adaptive_avg_pool2d(x, 1), or by windows of one size"
        )


def poolings(
    network: nn.Module, inputs: Sequence[Tensor]
) -> list[tuple[str, str, tuple[Any, ...]]]:
    """Where each pooling is called, by its module's name, what it is, and the numbers that it is given."""
    seen = _Poolings()
    with torch.no_grad(), seen.modules, seen:
        network(*(x.clone() for x in inputs))
    return seen.found


class _Poolings(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, tuple[Any, ...]]] = []
        self.modules = ModuleTracker()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__.lstrip("_")
        if "pool" in name:
            place = self.place()
            self.found.append((place, name, tuple(_numbers(args[1:]))))
        return func(*args, **(kwargs or {}))

    def place(self) -> str:
        """The innermost module's name; "forward" of the network's own."""
        names = (name.partition(".")[2] for name in self.modules.parents)
        return max(names, key=len).removeprefix("kernels.") or "forward"


def _numbers(given: Sequence[Any]) -> Iterator[Any]:
    return (tuple(one) if isinstance(one, list) else one for one in given)
