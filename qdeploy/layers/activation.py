"""The activation quantizer: observes a tensor in training, ends as scale, zero point and grid."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

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
from qdeploy.layers.host import forget, on_host
from qdeploy.layers.modes import delayed, recomputing
from qdeploy.layers.precision import in_float32
from qdeploy.layers.snapshot import snapshot
from qdeploy.layers.transparent import MayBeTransparent

NO_DATA = (
    "an activation quantizer has seen no data, so it has no range: train the prepared "
    "network, or call qdeploy.calibrate(prepared, batches) with a few batches"
)

UNROUNDED = (
    "the network is evaluated before its activation quantizers have seen data: without a range they round "
    "nothing yet, and what ships will differ. Train it, or call qdeploy.calibrate(prepared, batches) "
    "with a few batches"
)


class Notice:
    """A warning that a network gives once."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.given = False

    @torch.compiler.disable
    def give(self) -> None:
        if not self.given:
            self.given = True
            warnings.warn(self.text, stacklevel=3)


class ActivationQuantizer(MayBeTransparent, nn.Module, ABC):
    """Rounds one activation tensor, per tensor, to unsigned codes.

    A method subclasses it and writes `qparams`, `observe` and `has_range` if its range is measured,
    and `relax` if training is to see more than a straight-through rounding. All activations are
    stored as uint8 (9 bits and more as uint16), also the symmetric ones (zero point in the middle):
    the integer kernels of ONNX Runtime's CPU provider want it so.

    quant_delay: training steps before the rounding starts. Evaluation always rounds: what is
    evaluated is what is shipped. Only where nothing was seen yet it passes x as it is, with a warning.
    `steps` is a buffer, so the count survives a resume.
    """

    steps: Tensor
    decays: Mapping[str, float] = {}  # of its own parameters by name, see `parameter_groups`
    does_relu = False  # whether it took over the ReLU in front of it
    flags: tuple[str, ...] = ()  # buffers that `is_set` is asked about
    places = 1  # how many tensors of one batch it sees in turn: those that a concat joins, say

    def __init__(self, grid: Grid, quant_delay: int = 0) -> None:
        super().__init__()
        self.grid = grid
        self.quant_delay = quant_delay
        self.calibrating = False
        self.unrounded = Notice(UNROUNDED)
        self._place = 0  # where in its batch the next tensor stands
        self._set: set[str] = set()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, float32 scalars; the zero point is an integer on the grid.

        Errors: QdeployError(NO_DATA) if there is no range.
        """

    def observe(self, x: Tensor) -> None:
        """Sees a batch in training and calibration."""

    def observe_relu_of(self, x: Tensor) -> None:
        """Observes relu(x); a subclass may do that for less."""
        self.observe(x.relu())

    def observe_nothing(self, x: Tensor) -> None:
        """Takes part in what processes exchange about a batch, of which this one has no values."""

    @property
    def observing(self) -> bool:
        """Whether `observe` has anything left to do."""
        return True

    @property
    def has_range(self) -> bool:
        """Whether there is something to round to."""
        return True

    def reset(self) -> None:
        """Forgets what was observed."""

    def share(self) -> None:
        """Joins what each process observed in calibration; all of them call it, in the end."""
        for buffer in self.buffers(recurse=False):
            if buffer.is_floating_point():
                buffer.copy_(processes.mean(buffer))

    @contextmanager
    def calibration(self) -> Iterator[None]:
        """Inside the block it observes in evaluation mode too: anew, and as plain means."""
        self.reset()
        self.calibrating, self._place = True, 0
        try:
            yield
        finally:
            self.calibrating = False

    def train(self, mode: bool = True) -> Self:
        self._place = 0  # also where an error cut a batch off
        if mode != self.training:
            self._look_again()
        return super().train(mode)

    def _look_again(self) -> None:
        """Reads flags and counters anew: an average or a restored state may have come as `buffer.data`.

        Compiled code then need not ask.
        """
        for buffer in self.buffers(recurse=False):
            forget(buffer)
        for name in self.flags:
            self.is_set(name)

    @in_float32
    def forward(self, x: Tensor) -> Tensor:
        if self.transparent:
            return self._passed(x)
        begins_batch = self._place == 0
        if (self.training or self.calibrating) and not recomputing():
            self._see(x)
        if not self.has_range:
            self.unrounded.give()
            return self._passed(x)
        if not self.training:
            return self.round(x)
        if not self.quant_delay:
            return self.relax(x)
        return delayed(
            self.steps, self.quant_delay, self._passed(x), lambda: self.relax(x), begins_batch
        )

    def _see(self, x: Tensor) -> None:
        if self.observing:
            x = x.detach()
            if not x.numel():
                if processes.count() > 1:
                    self.observe_nothing(x)
            elif self.does_relu and self.training:
                self.observe_relu_of(x)
            else:
                self.observe(x)
        self._place = (self._place + 1) % self.places

    def _passed(self, x: Tensor) -> Tensor:
        """x as it is, or its ReLU where that was taken over."""
        return x.relu() if self.does_relu and self.training else x

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
        return self.rounded(x, *self.qparams())

    def rounded(self, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return fake_quantize(x, scale, zero, self.grid.lowest, self.grid.highest)

    def is_set(self, name: str) -> bool:
        """Whether a buffer of `flags`, or its last number, is above 0; for what then stays so.

        Compiled code is made for the answer, and asks again only once a state was loaded. In training
        it never asks, since its graph would end there: what it does not know counts as not set.
        """
        known = name in self._set or self.training
        if not (torch.compiler.is_compiling() and known):
            found = on_host(getattr(self, name)) > 0
            (self._set.add if found else self._set.discard)(name)
        return name in self._set

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._set.clear()


def parameters_beside_quantizers(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module but those that activation quantizers inside of it learn."""
    parts = (part for part in module.modules() if not isinstance(part, ActivationQuantizer))
    return [parameter for part in parts for parameter in part.parameters(recurse=False)]


def one_notice(network: nn.Module) -> None:
    """Lets the network's quantizers warn once for all of them."""
    notice = Notice(UNROUNDED)
    for module in network.modules():
        if isinstance(module, ActivationQuantizer):
            module.unrounded = notice


@contextmanager
def calibration(network: nn.Module) -> Iterator[None]:
    """`ActivationQuantizer.calibration` for each of the network's."""
    with ExitStack() as stack:
        for module in network.modules():
            if isinstance(module, ActivationQuantizer):
                stack.enter_context(module.calibration())
        yield


class DeferredReLU(nn.ReLU):
    """A ReLU that training leaves to the quantizer behind it, which clips at 0 as well.

    Only the graph of training calls it so; called by anybody else, or hooked, it is a ReLU.

    replaced   the user's module, whose quantizers it keeps
    """

    def __init__(self, replaced: nn.Module | None = None) -> None:
        super().__init__()
        for name, quantizer in () if replaced is None else replaced.named_children():
            self.add_module(name, quantizer)

    def forward(self, x: Tensor, deferred: bool = False) -> Tensor:
        deferred = deferred and self.training and not self._is_hooked()
        return x if deferred else x.relu()

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


def extremes_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum, scalars; inf and -inf where x is empty."""
    if not x.numel():
        nothing = x.new_tensor(torch.inf)
        return nothing, -nothing
    return torch.aminmax(x)


class MovingRange(ActivationQuantizer):
    """Range from a moving average of each batch's minimum and maximum (Jacob et al., CVPR 2018).

    In a run of several processes the batch is that of all of them. Of tensors that share the
    quantizer it takes the range of them all.

    The average starts as a plain mean of the batches seen and turns into an exponential one
    with `decay` after 1 / (1 - decay) batches, so that it is right from the first batch on. In
    calibration it stays a plain mean.

    average    [3]: of minimum, maximum and the number 1. Both are read divided by the last, which is 0
               before the first batch and then 1: so a copy that averages states (EMA) from the start
               on has the average of the ranges, as Adam corrects its moments
    batches    how many batches are in it
    left_out   how many are not, since they had values that are not finite
    """

    flags = ("average",)
    average: Tensor
    batches: Tensor
    left_out: Tensor

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
        self.register_buffer("average", torch.zeros(3))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.register_buffer("left_out", torch.zeros((), dtype=torch.int64))
        # Of several places: the state before this batch, and the range of its tensors so far.
        self._before: list[Tensor] = []
        self._so_far: tuple[Tensor, Tensor] | None = None

    @property
    def can_take_over_relu(self) -> bool:
        return not self.symmetric

    @property
    def minimum(self) -> Tensor:
        return self.range()[0]

    @property
    def maximum(self) -> Tensor:
        return self.range()[1]

    def range(self) -> tuple[Tensor, Tensor]:
        """Minimum and maximum, scalars; 0 and 0 before anything was seen."""
        average = snapshot(self.average) if self.training else self.average
        low, high, share = average.unbind()
        share = share.clamp(min=torch.finfo(share.dtype).tiny)
        return low / share, high / share

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        self.average.copy_(torch.stack([low, high, torch.ones_like(low)]))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        self._take_in(*self.extremes(as_stored(x)))

    @torch.no_grad()
    def observe_relu_of(self, x: Tensor) -> None:
        low, high = self.extremes(as_stored(x))
        self._take_in(low.relu(), high.relu())

    def observe_nothing(self, x: Tensor) -> None:
        self.observe(x)

    def _take_in(self, low: Tensor, high: Tensor) -> None:
        low, high = self.over_batch(low, high)
        if self.places > 1:
            low, high = self._with_places_before(low, high)
        width = high - low  # -inf where no process had values
        finite = width.abs() < torch.inf
        self.batches += finite
        self.left_out += ~(width < torch.inf)
        slowest = 0 if self.calibrating else 1 - self.decay
        weight = self.batches.reciprocal().clamp_(min=slowest).to(self.average.dtype)
        new = torch.stack([low, high, torch.ones_like(low)]).to(self.average.dtype)
        self.average.copy_(torch.where(finite, self.average.lerp(new, weight), self.average))

    def _with_places_before(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The range of the batch's tensors so far, for an average that has none of them yet."""
        state = [self.average, self.batches, self.left_out]
        if self._place == 0 or self._so_far is None:
            self._before = [now.clone() for now in state]
        else:
            for now, before in zip(state, self._before, strict=True):
                now.copy_(before)
            low = torch.minimum(low, self._so_far[0])
            high = torch.maximum(high, self._so_far[1])
        self._so_far = low, high
        return low, high

    def extremes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Minimum and maximum of this process's batch."""
        return extremes_of(x)

    def over_batch(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """What the average takes in: the extremes of the batch of all processes.

        Where their data is uneven, of this process: DDP then gives all of them the buffers of one.
        """
        return (low, high) if processes.uneven() else processes.extremes(low, high)

    def share(self) -> None:
        processes.pool([self.average], self.batches)
        self.left_out.copy_(processes.total(self.left_out))

    def reset(self) -> None:
        for buffer in (self.average, self.batches, self.left_out):
            buffer.zero_()
        self._so_far = None

    @property
    def has_range(self) -> bool:
        return self.training or self.is_set("average")  # training has just seen a batch

    def relax(self, x: Tensor) -> Tensor:
        return self.rounded(x, *self.grid_of_range())

    def qparams(self) -> tuple[Tensor, Tensor]:
        if not self.is_set("average"):
            raise QdeployError(NO_DATA)
        return self.grid_of_range()

    def grid_of_range(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, without asking the device whether anything was seen."""
        return self.qparams_of(*self.range())

    def qparams_of(self, minimum: Tensor, maximum: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of any range, or of ranges of any shape."""
        return range_on(self.grid, minimum, maximum, self.symmetric)

    def extra_repr(self) -> str:
        return (
            f"bits={self.bits}, symmetric={self.symmetric}, grid={self.grid}, "
            f"decay={self.decay}, quant_delay={self.quant_delay}"
        )


class GateRange(MovingRange):
    """The range of what a hardswish reads: -3 and 3 are on the grid, so that its gate is a clamp of codes."""

    can_take_over_relu = False  # its range reaches below 0

    def grid_of_range(self) -> tuple[Tensor, Tensor]:
        return gate_range(*super().grid_of_range(), self.grid.lowest, self.grid.highest)
