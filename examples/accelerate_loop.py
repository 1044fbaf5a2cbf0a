"""qdeploy under Accelerate, on any number of devices and processes: 4-bit weights (SimQAT).

python examples/accelerate_loop.py
accelerate launch --num_processes 2 examples/accelerate_loop.py
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from digits import SmallNet, batches, compared, digits, pretrained
from torch.nn.functional import cross_entropy

import qdeploy


def main(epochs: int = 10, file: str = "digits.onnx") -> None:
    accelerator = Accelerator()
    set_seed(0)
    train, test = digits()
    images, _ = test.tensors
    network = pretrained(SmallNet(), train)

    prepared = qdeploy.prepare(network, images[:2], "simqat", weight_bits=4, act_bits=4)
    optimizer = torch.optim.AdamW(prepared.parameters(), lr=0.003)
    loader = batches(train)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    model, optimizer, loader, schedule = accelerator.prepare(prepared, optimizer, loader, schedule)
    for epoch in range(epochs):
        prepared.set_progress(epoch, epochs)
        for x, labels in loader:
            loss = cross_entropy(model(x), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
        accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.4f}")

    qdeploy.calibrate(prepared, loader)
    if accelerator.is_main_process:
        prepared.cpu()
        qdeploy.export(prepared, file, images[:2])
        print(qdeploy.validate(prepared, file, images.split(60)))  # 0 codes differ
        print(compared(network, prepared, file, test))


if __name__ == "__main__":
    main()
