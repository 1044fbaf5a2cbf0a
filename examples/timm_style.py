"""qdeploy in the style of timm's train script: mixup, an averaged model, and the float network as teacher.

    python examples/timm_style.py

Weights and activations have 4 bits and learned steps (LSQ). What ships is the averaged model.
"""

from __future__ import annotations

import timm
import torch
from digits import batches, compared, digits, pretrained
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch.nn.functional import cross_entropy

import qdeploy


def main(epochs: int = 10, file: str = "digits.onnx") -> None:
    torch.manual_seed(0)
    train, test = digits()
    images, _ = test.tensors
    teacher = pretrained(timm.create_model("test_efficientnet", in_chans=1, num_classes=10), train)
    teacher.eval()

    prepared = qdeploy.prepare(teacher, images[:2], "lsq", weight_bits=4, act_bits=4).train()
    loader = batches(train)
    optimizer = create_optimizer_v2(prepared, opt="adamw", lr=0.003, weight_decay=0.02)
    schedule = CosineLRScheduler(optimizer, epochs * len(loader), t_in_epochs=False)
    mixup = Mixup(mixup_alpha=0.2, label_smoothing=0.1, num_classes=10)
    ema = ModelEmaV3(prepared, decay=0.95)
    loss_of = SoftTargetCrossEntropy()
    step = 0
    for epoch in range(epochs):
        prepared.set_progress(epoch, epochs)
        for x, labels in loader:
            x, targets = mixup(x, labels)
            logits = prepared(x)
            with torch.no_grad():
                taught = teacher(x).softmax(1)
            loss = loss_of(logits, targets) + cross_entropy(logits, taught)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            schedule.step_update(step)
            ema.update(prepared, step)
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}")

    shipped = ema.module
    qdeploy.calibrate(shipped, loader, batch_norm=True)  # statistics of the averaged weights
    qdeploy.export(shipped, file, images[:2])
    print(qdeploy.validate(shipped, file, images.split(60)))  # 0 codes differ
    print(compared(teacher, shipped, file, test))


if __name__ == "__main__":
    main()
