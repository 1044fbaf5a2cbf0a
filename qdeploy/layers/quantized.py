"""The one quantized layer: a product with a searched weight, a bias, and its BatchNorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qdeploy.grid import QTensor
from qdeploy.layers import folding
from qdeploy.layers.product import Product, WeightLayer, product_of
from qdeploy.layers.weight import WeightQuantizer


class QuantizedLayer(nn.Module):
    """A Conv or Linear, joined with the BatchNorm that follows it.

    fold        how the norm takes part in training: see layers/folding.py
    freeze_bn   training steps after which the folded ways use the running statistics; None: never
    product     what a method makes of the layer's product; None: the plain one
    """

    steps: Tensor

    def __init__(
        self,
        layer: WeightLayer,
        norm: folding.BatchNorm | None,
        quantizer: WeightQuantizer,
        fold: folding.Fold = "none",
        freeze_bn: int | None = None,
        product: Product | None = None,
    ) -> None:
        super().__init__()
        self.kind = type(layer).__name__
        self.product = product or product_of(layer)
        self.bias = layer.bias
        self.norm = norm
        self.quantizer = quantizer
        self.fold: folding.Fold = "none" if norm is None else fold
        self.freeze_bn = freeze_bn
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.fold == "none":
            return folding.separate(self, x)
        # Calibration re-estimates the norm's statistics with the weights in evaluation mode.
        assert self.norm is not None
        if not self.norm.training or (self.training and self._norm_is_frozen()):
            return folding.frozen(self, x)
        return folding.TRAINING[self.fold](self, x)

    def _norm_is_frozen(self) -> bool:
        if self.freeze_bn is None:
            return False
        self.steps += 1
        return bool(self.steps > self.freeze_bn)

    @torch.no_grad()
    def integers(self) -> tuple[QTensor, Tensor]:
        """The weight that ships and the float32 bias [out], the BatchNorm folded into both."""
        if self.norm is None:
            weight = self._collapsed(None)
            bias = torch.zeros(len(weight.scale)) if self.bias is None else self.bias
            return weight, bias.detach().cpu()
        gain, bias = folding.gain_of(self.norm), folding.shift_of(self.norm, self.bias).cpu()
        if self.fold == "none":
            return self._collapsed(None).fold(gain.cpu().numpy()), bias
        return self._collapsed(gain), bias

    def _collapsed(self, gain: Tensor | None) -> QTensor:
        collapsed = self.quantizer.collapse(self.quantizer.scaled_latent(gain))
        codes, scale, zero = (part.detach().cpu().numpy() for part in collapsed)
        return QTensor(codes, scale, zero, self.quantizer.grid)

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.product}, fold={self.fold}, freeze_bn={self.freeze_bn}"
