"""Image to image: super-resolution, denoising, colouring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor
from torchmetrics import MeanAbsoluteError, Metric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from qdeploy.scores import Score
from qdeploy.tasks.regression import like, loss_named
from qdeploy.tasks.task import Task, shape_of


class ImageToImage(Task):
    """Images and targets of one shape, [N, C, H, W].

    loss         "l1", the mean absolute difference, or "l2"
    data_range   from the darkest to the brightest value that a target can have; what is outside of
                 0..data_range is clipped before PSNR and SSIM
    """

    def __init__(self, loss: Literal["l1", "l2"] = "l1", data_range: float = 1.0) -> None:
        self.difference = loss_named(loss)
        self.data_range = float(data_range)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.difference(outputs, like(outputs, targets))

    def metrics(self, classes: int) -> Mapping[Score, Metric]:
        bounds = (0.0, self.data_range)
        return {
            Score("psnr", "PSNR", "dB"): PeakSignalNoiseRatio(data_range=bounds),
            Score("ssim", "SSIM", ""): StructuralSimilarityIndexMeasure(data_range=bounds),
            Score("mae", "MAE", "", higher_is_better=False): MeanAbsoluteError(),
        }

    def misfit(self, outputs: Any, classes: int) -> str | None:
        if isinstance(outputs, Tensor) and outputs.ndim == 4:
            return None
        return (
            f"gives {shape_of(outputs)} for 2 inputs, and images are [2, channels, height, width]"
        )


TASK = ImageToImage
