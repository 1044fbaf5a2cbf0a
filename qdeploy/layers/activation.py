"""The activation quantizer: observes a tensor in training, ends as scale, zero point and grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qdeploy import processes
from qdeploy.errors import QdeployError
from qdeploy.grid import SIGN, Grid
from qdeploy.layers.fake_quantize import (
    fake_quantize,
    fake_sign,
    gate_range,
    range_on,
    sign_of,
)
from qdeploy.layers.precision import in_float32
from qdeploy.layers.transparent import MayBeTransparent

NO_DATA = (
    "an activation quantizer has seen no data, so it has no range: train the prepared "
    "network, or call qdeploy.calibrate(prepared, batches) with a few batches"
)


class ActivationQuantizer(MayBeTransparent, nn.Module, ABC):
    """Rounds one activation tensor, per tensor, to unsigned codes.

    A method subclasses it and writes `qparams`, `observe` if its range is measured, and `relax`
    if training is to see more than a straight-through rounding. All activations are stored as
    uint8 (9 bits and more as uint16), also the symmetric ones (zero point in the middle): the
    integer kernels of ONNX Runtime's CPU provider want it so.

    quant_delay: training steps before the rounding starts. Evaluation always rounds: what is
    evaluated is what is shipped. `steps` is a buffer, so the count survives a resume.
    """

    steps: Tensor
    decays: Mapping[
        str, float
    ] = {}  # weight decay of its parameters by name; others are left to the rule
    does_relu = False  # whether it took over the ReLU in front of it
    places = 1  # how many tensors of one batch it sees in turn: those that a concat joins, say
    _is_set = False

    def __init__(self, grid: Grid, quant_delay: int = 0) -> None:
        super().__init__()
        self.grid = grid
        self.quant_delay = quant_delay
        self.calibrating = False
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, float32 scalars; the zero point is an integer on the grid."""

    def observe(self, x: Tensor) -> None:
        """Sees a batch in training and calibration."""

    def observe_relu_of(self, x: Tensor) -> None:
        """Observes relu(x); a subclass may do that for less."""
        self.observe(x.relu())

    @property
    def observing(self) -> bool:
        """Whether `observe` has anything left to do."""
        return True

    @property
    def has_seen_data(self) -> bool:
        """Whether training or calibration has left something in it."""
        return bool(getattr(self, "batches", 0))

    def reset(self) -> None:
        """Forgets what was observed."""

    @contextmanager
    def calibration(self) -> Iterator[None]:
        """Inside the block it observes in evaluation mode too: anew, and as plain means."""
        self.reset()
        self.calibrating = True
        try:
            yield
        finally:
            self.calibrating = False

    @in_float32
    def forward(self, x: Tensor) -> Tensor:
        does_relu = self.does_relu and self.training
        if self.transparent:
            return x.relu() if does_relu else x
        if (self.training or self.calibrating) and self.observing:
            (self.observe_relu_of if does_relu else self.observe)(x.detach())
        if not self.training:
            return self.round(x)
        if self.quant_delay:
            self.steps += 1
            if self.steps <= self.quant_delay:
                return x.relu() if does_relu else x
        return self.relax(x)

    @property
    def can_take_over_relu(self) -> bool:
        """Whether `relax` does the same with x as with relu(x), gradients included.

        That is so where the range starts at 0. False is always right, and costs a ReLU.
        """
        return False

    def take_over_relu(self) -> None:
        """From now on training gives it what stands in front of the ReLU (see `DeferredReLU`).

        Only where `can_take_over_relu`. `observe` still sees what the ReLU gives.
        """
        self.does_relu = True

    def relax(self, x: Tensor) -> Tensor:
        """What training computes with: the values of `round`, with a gradient."""
        return self.round(x)

    def round(self, x: Tensor) -> Tensor:
        """What ships: x on the grid, the gradient straight through inside its range."""
        scale, zero = self.qparams()
        return fake_quantize(x, scale, zero, self.grid.lowest, self.grid.highest)

    def _latched(self, flag: Tensor) -> bool:
        """Whether a buffer is set that then stays so: reads the device until it is, not at every step."""
        self._is_set = self._is_set or bool(flag)
        return self._is_set

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._is_set = False


@contextmanager
def calibration(network: nn.Module) -> Iterator[None]:
    """`ActivationQuantizer.calibration` for each of the network's."""
    with ExitStack() as stack:
        for module in network.modules():
            if isinstance(module, ActivationQuantizer):
                stack.enter_context(module.calibration())
        yield


class DeferredReLU(nn.Module):
    """A ReLU that training leaves to the quantizer behind it, which clips at 0 as well.

    replaced   the user's module, whose quantizers it keeps; hooks on it see what a ReLU gives
    """

    def __init__(self, replaced: nn.Module | None = None) -> None:
        super().__init__()
        for name, quantizer in () if replaced is None else replaced.named_children():
            self.add_module(name, quantizer)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and not self._is_hooked() else x.relu()

    def _is_hooked(self) -> bool:
        hooks = self._forward_pre_hooks, self._forward_hooks, self._backward_pre_hooks
        return any((*hooks, self._backward_hooks))


class SignActivation(ActivationQuantizer):
    """-1 or +1, see `fake_sign`."""

    def __init__(self) -> None:
        super().__init__(SIGN)
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def qparams(self) -> tuple[Tensor, Tensor]:
        assert isinstance(self.scale, Tensor)
        return self.scale, 128 * self.scale

    def relax(self, x: Tensor) -> Tensor:
        return fake_sign(x)

    def round(self, x: Tensor) -> Tensor:
        return sign_of(x)


def as_stored(x: Tensor) -> Tensor:
    """x with its axes in the order of its memory, so that a reduction need not copy it."""
    stored_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x.permute(0, 2, 3, 1) if stored_last else x


class MovingRange(ActivationQuantizer):
    """Range from a moving average of each batch's minimum and maximum (Jacob et al., CVPR 2018).

    In a run of several processes the batch is that of all of them. Of tensors that share the
    quantizer it takes the range of them all.

    The average starts as a plain mean of the batches seen and turns into an exponential one
    with `decay` after 1 / (1 - decay) batches, so that it is right from the first batch on. In
    calibration it stays a plain mean.
    """

    minimum: Tensor
    maximum: Tensor
    batches: Tensor

    def __init__(
        self,
        bits: int,
        *,
        symmetric: bool = False,
        narrow_range: bool = False,
        decay: float = 0.999,
        quant_delay: int = 0,
    ) -> None:
        super().__init__(Grid.unsigned(bits, narrow_range), quant_delay)
        self.bits = bits
        self.symmetric = symmetric
        self.decay = decay
        self.register_buffer("minimum", torch.zeros(()))
        self.register_buffer("maximum", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self._in_batch: list[tuple[Tensor, Tensor]] = []  # ranges so far, of fewer than all places

    @property
    def can_take_over_relu(self) -> bool:
        return not self.symmetric

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        self._average(*self.extremes(as_stored(x)))

    @torch.no_grad()
    def observe_relu_of(self, x: Tensor) -> None:
        low, high = self.extremes(as_stored(x))
        self._average(low.relu(), high.relu())

    def _average(self, low: Tensor, high: Tensor) -> None:
        low, high = self.over_batch(low, high)
        before = self.minimum, self.maximum
        if self._in_batch:  # the average has this batch already, without this tensor
            before = self._in_batch[-1]
            low, high = torch.minimum(low, before[0]), torch.maximum(high, before[1])
        else:
            self.batches += 1
        slowest = 0 if self.calibrating else 1 - self.decay
        weight = (1 / self.batches.to(torch.float32)).clamp(min=slowest)
        self.minimum += weight * (low - before[0])
        self.maximum += weight * (high - before[1])
        self._in_batch.append((low, high))
        if len(self._in_batch) == self.places:
            self._in_batch.clear()

    def extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Minimum and maximum of this process's batch."""
        return torch.aminmax(x)

    def over_batch(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """What the average takes in: the extremes of the batch of all processes."""
        return processes.extremes(low, high)

    def reset(self) -> None:
        for buffer in (self.minimum, self.maximum, self.batches):
            buffer.zero_()
        self._is_set = False
        self._in_batch.clear()

    def qparams(self) -> tuple[Tensor, Tensor]:
        if not self._latched(self.batches):
            raise QdeployError(NO_DATA)
        return self.qparams_of(self.minimum, self.maximum)

    def qparams_of(self, minimum: Tensor, maximum: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of any range, or of ranges of any shape."""
        return range_on(self.grid, minimum, maximum, self.symmetric)

    @property
    def is_finite(self) -> bool:
        return bool(self.minimum.isfinite() & self.maximum.isfinite())

    def extra_repr(self) -> str:
        return (
            f"bits={self.bits}, symmetric={self.symmetric}, grid={self.grid}, "
            f"decay={self.decay}, quant_delay={self.quant_delay}"
        )


class GateRange(MovingRange):
    """The range of what a hardswish reads: -3 and 3 are on the grid, so that its gate is a clamp of codes."""

    can_take_over_relu = False  # its range reaches below 0

    def qparams(self) -> tuple[Tensor, Tensor]:
        return gate_range(*super().qparams(), self.grid.lowest, self.grid.highest)
