"""The file, in ONNX Runtime, beside the networks it came from, on the whole test set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from qdeploy.benchmark.runtime import Images
from qdeploy.layers.modes import full_float32
from qdeploy.proof.tensors import ComparedNetwork
from qdeploy.record import Accuracy, Agreement

Logits = npt.NDArray[np.float32]
Classifier = Callable[[Tensor], Logits]


@dataclass(frozen=True)
class Predictions:
    """Logits [N, classes] of each contestant, and the labels [N]."""

    logits: dict[str, Logits]
    labels: npt.NDArray[np.int64]

    def accuracy(self, name: str) -> Accuracy | None:
        """Top-1, and top-5 where there are more than five classes; None if it did not take part."""
        if name not in self.logits:
            return None
        ranked = np.argsort(-self.logits[name], axis=1, kind="stable")[:, :5]
        hits = ranked == self.labels[:, None]
        enough = self.logits[name].shape[1] > 5
        return Accuracy(float(hits[:, 0].mean()), float(hits.any(1).mean()) if enough else None)

    def agreement(self, a: str, b: str) -> Agreement:
        difference = np.abs(self.logits[a] - self.logits[b])
        same = self.logits[a].argmax(1) == self.logits[b].argmax(1)
        return Agreement(
            top1=float(same.mean()),
            max_logit_difference=float(difference.max()),
            mean_logit_difference=float(difference.mean()),
            samples=len(self.labels),
        )


def predict(
    classifiers: dict[str, Classifier], batches: Iterable[tuple[Tensor, Tensor]]
) -> Predictions:
    """Every classifier on the same batches ([N, C, H, W], [N]), which are read once."""
    logits: dict[str, list[Logits]] = {name: [] for name in classifiers}
    labels: list[npt.NDArray[np.int64]] = []
    for images, truth in batches:
        labels.append(truth.cpu().numpy())
        for name, classify in classifiers.items():
            logits[name].append(classify(images))
    return Predictions(
        {name: np.concatenate(parts) for name, parts in logits.items()}, np.concatenate(labels)
    )


def of_network(network: nn.Module, device: torch.device | str) -> Classifier:
    """A torch network in evaluation mode."""
    network = network.eval().to(device)

    @torch.inference_mode()
    def classify(images: Tensor) -> Logits:
        with full_float32():
            logits: Logits = network(images.to(device)).float().cpu().numpy()
        return logits

    return classify


def of_compared(
    network: ComparedNetwork, pixels: Callable[[Tensor], Tensor] | None = None
) -> Classifier:
    """The integers in PyTorch, compared with their file on the way; pixels: see `of_runtime`."""

    def classify(images: Tensor) -> Logits:
        fed = None if pixels is None else [pixels(images.cpu()).numpy()]
        logits: Logits = network([images], fed)[0].float().cpu().numpy()
        return logits

    return classify


def of_runtime(
    run: Callable[[Images], Logits], pixels: Callable[[Tensor], Tensor] | None = None
) -> Classifier:
    """An ONNX file in a runtime.

    pixels: makes uint8 images of normalised ones, for a file that takes those
    """

    def classify(images: Tensor) -> Logits:
        images = images.cpu() if pixels is None else pixels(images.cpu())
        return run(images.numpy())

    return classify
