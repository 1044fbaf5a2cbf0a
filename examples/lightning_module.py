"""qdeploy in Lightning: 1-bit weights by search (SLB), and a callback that does all that quantization adds.

    python examples/lightning_module.py

With the package `lightning` in place of `pytorch_lightning`, import lightning.pytorch as pl.
"""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch
from digits import SmallNet, batches, compared, digits, pretrained
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import qdeploy


class Classification(pl.LightningModule):
    """An ordinary LightningModule; `model` may be a float network or a prepared one."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        super().__init__()
        self.model = model
        self.lr = lr

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        loss = cross_entropy(self.model(images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        hits = self.model(images).argmax(1) == labels
        self.log("top1", hits.float().mean(), prog_bar=True)

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class QdeployCallback(pl.Callback):
    """Takes the prepared network `module.model` through its schedule, and to a file in the end."""

    def __init__(self, file: str | Path) -> None:
        self.file = file

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        module.model.set_progress(trainer.current_epoch, trainer.max_epochs)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        loader = trainer.train_dataloader
        qdeploy.calibrate(module.model, loader)
        if trainer.is_global_zero:
            images, _ = next(iter(loader))
            qdeploy.export(module.model, self.file, images)


def main(epochs: int = 10, file: str = "digits.onnx") -> None:
    pl.seed_everything(0)
    train, test = digits()
    images, _ = test.tensors
    network = pretrained(SmallNet(), train)

    prepared = qdeploy.prepare(network, images[:2], "slb", weight_bits=1, quant_delay=50)
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=[QdeployCallback(file)],
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(
        Classification(prepared, lr=0.003), batches(train), DataLoader(test, batch_size=120)
    )

    print(qdeploy.validate(prepared, file, images.split(60)))  # 0 codes differ
    print(compared(network, prepared, file, test))


if __name__ == "__main__":
    main()
