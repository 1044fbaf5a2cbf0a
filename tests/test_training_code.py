"""docs/training-code.md: its blocks run, one after the other, as they stand there."""

import copy
import re
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import qdeploy

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "training-code.md"


@pytest.mark.filterwarnings("error")
def test_the_blocks_of_code_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples"), *sys.path])
    from digits import SmallNet, digits

    torch.manual_seed(0)
    images, labels = digits()[0][:128]
    names = {
        "AveragedModel": AveragedModel,
        "checkpoint": checkpoint,
        "copy": copy,
        "cross_entropy": cross_entropy,
        "epochs": 2,
        "get_ema_multi_avg_fn": get_ema_multi_avg_fn,
        "images": images[:64],
        "labels": labels[:64],
        "loader": DataLoader(TensorDataset(images, labels), batch_size=64),
        "mse_loss": mse_loss,
        "network": SmallNet(),
        "qdeploy": qdeploy,
        "torch": torch,
    }
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 10
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
