"""Checkpoints come back exactly, and everything else is refused."""

import os
import pickle
import resource
from pathlib import Path

import pytest
import torch
from tiny_runs import RECORD

from qdeploy.errors import QdeployError
from qdeploy.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def checkpoint() -> Checkpoint:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters(), betas=(0.5, 0.75))
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return Checkpoint(
        fingerprint="lenet5 by slb w1a8",
        history=[RECORD],
        state=layer.state_dict(),
        shipped={"mean": torch.ones(3)},
        optimizer=optimizer.state_dict(),
        scaler={"scale": 2.0},
    )


def test_it_comes_back_exactly(tmp_path: Path) -> None:
    saved = checkpoint()
    save_checkpoint(saved, tmp_path / "last.pt")
    loaded = load_checkpoint(tmp_path / "last.pt")

    assert (loaded.fingerprint, loaded.history, loaded.epoch) == (saved.fingerprint, [RECORD], 1)
    for name in ("state", "shipped", "scaler"):
        torch.testing.assert_close(getattr(loaded, name), getattr(saved, name), rtol=0, atol=0)
    assert loaded.optimizer["param_groups"] == saved.optimizer["param_groups"]
    torch.testing.assert_close(loaded.optimizer["state"], saved.optimizer["state"], rtol=0, atol=0)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(checkpoint(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(QdeployError, match=rf"{path} is truncated, or no file of tensors"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"epoch,steps\n", b"\x80\x02K\x05.", b"PK\x03\x04 zip?"])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    with pytest.raises(QdeployError, match=rf"{path} is "):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "content", [{"weight": torch.ones(1)}, torch.ones(1), {"version": 2, "scaler": {}}]
)
def test_tensors_that_are_no_checkpoint_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(QdeployError, match=r"is no checkpoint of this version.*give the last\.pt"):
        load_checkpoint(tmp_path / "last.pt")


class TouchesAFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x, protocol=2))]
)
def test_code_in_a_file_does_not_run(tmp_path: Path, save: object) -> None:
    save({"version": 2, "scaler": TouchesAFile(tmp_path / "touched")}, tmp_path / "last.pt")
    with pytest.raises(QdeployError, match="holds a whole network or other Python objects"):
        load_checkpoint(tmp_path / "last.pt")
    assert not (tmp_path / "touched").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(QdeployError, match=r"cannot read .*nowhere\.pt: No such file"):
        load_checkpoint(tmp_path / "nowhere.pt")


def test_a_disk_that_fills_is_named_and_the_old_checkpoint_stays(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(checkpoint(), path)
    old = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(QdeployError, match=rf"cannot write {path}: File too large"):
            save_checkpoint(checkpoint(), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["last.pt"]
