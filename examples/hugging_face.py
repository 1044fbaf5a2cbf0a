"""qdeploy under Hugging Face's Trainer: weights and activations of 4 bits with learned steps (LSQ).

python examples/hugging_face.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from digits import SmallNet, batches, compared, digits, pretrained
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    EvalPrediction,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

import qdeploy


class ForClassification(nn.Module):
    """What Trainer asks of a network: arguments by name, the loss beside the logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.network(pixel_values)
        if labels is None:
            return {"logits": logits}
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class SetProgress(TrainerCallback):
    """Tells the prepared network where the training stands, which searches (SLB) go by."""

    def __init__(self, prepared: nn.Module) -> None:
        self.prepared = prepared

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.prepared.set_progress(round(state.epoch), round(args.num_train_epochs))


def collate(examples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    images, labels = zip(*examples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.stack(labels)}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"top1": float(np.mean(prediction.predictions.argmax(1) == prediction.label_ids))}


def main(epochs: int = 10, file: str = "digits.onnx", folder: str = "runs/hugging_face") -> None:
    set_seed(0)
    train, test = digits()
    images, _ = test.tensors
    network = pretrained(SmallNet(), train)

    prepared = qdeploy.prepare(network, images[:2], "lsq", weight_bits=4, act_bits=4)
    arguments = TrainingArguments(
        folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=64,
        learning_rate=0.003,
        lr_scheduler_type="cosine",
        eval_strategy="epoch",
        report_to="none",
    )
    trainer = Trainer(
        ForClassification(prepared),
        arguments,
        collate,
        train,
        test,
        compute_metrics=accuracy,
        callbacks=[SetProgress(prepared)],
    )
    trainer.train()

    prepared.cpu()
    qdeploy.calibrate(prepared, batches(train))
    qdeploy.export(prepared, file, images[:2])
    print(qdeploy.validate(prepared, file, images.split(60)))  # 0 codes differ
    print(compared(network, prepared, file, test))


if __name__ == "__main__":
    main()
