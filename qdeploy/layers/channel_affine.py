"""A gain and a shift for each channel: a frozen BatchNorm, or the scale of a layer's output."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class ChannelAffine(_BatchNorm):
    """y * weight + bias, [C] each: a BatchNorm whose statistics stay 0 and 1, so that it folds as one.

    axis        of the channels in y
    A parameter stays one and trains on; a tensor is kept as a buffer.
    """

    def __init__(self, weight: Tensor, bias: Tensor, axis: int) -> None:
        super().__init__(len(weight), eps=0.0)
        self.axis = axis
        for name, value in (("weight", weight), ("bias", bias)):
            if not isinstance(value, nn.Parameter):
                delattr(self, name)
                self.register_buffer(name, value.detach().clone())
            else:
                setattr(self, name, nn.Parameter(value.detach().clone(), value.requires_grad))
        super().train(False)

    def train(self, mode: bool = True) -> Self:
        return self

    def forward(self, y: Tensor) -> Tensor:
        shape = [1] * y.ndim
        shape[self.axis] = -1
        return y * self.weight.reshape(shape) + self.bias.reshape(shape)
