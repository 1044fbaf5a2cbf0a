"""qdeploy in a loop of your own: 2-bit weights by search (SLB), under AdamW with a cosine schedule.

python examples/plain_torch.py
"""

from __future__ import annotations

import torch
from digits import SmallNet, batches, compared, digits, pretrained
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

import qdeploy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main(epochs: int = 10, file: str = "digits.onnx", autocast: bool = False) -> None:
    torch.manual_seed(0)
    train, test = digits()
    images, _ = test.tensors
    network = pretrained(SmallNet(), train)

    prepared = qdeploy.prepare(network, images[:2], "slb", weight_bits=2, quant_delay=50)
    prepared.to(DEVICE)
    loader = batches(train)
    optimizer = torch.optim.AdamW(prepared.parameters(), lr=0.003)
    schedule = CosineAnnealingLR(optimizer, epochs * len(loader))
    for epoch in range(epochs):
        prepared.set_progress(epoch, epochs)  # the search grows harder, and ends
        for x, labels in loader:
            with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
                loss = cross_entropy(prepared(x.to(DEVICE)), labels.to(DEVICE))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}")

    prepared.cpu()
    qdeploy.calibrate(prepared, loader)  # the ranges that the weights which ship give
    qdeploy.export(prepared, file, images[:2])
    print(qdeploy.validate(prepared, file, images.split(60)))  # 0 codes differ
    print(compared(network, prepared, file, test))


if __name__ == "__main__":
    main()
