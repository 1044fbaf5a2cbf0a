"""Which devices a run gets, and in which precision it multiplies."""

import pytest
import torch

from qdeploy.errors import QdeployError
from qdeploy.training.launch import open_fabric


def launched_by_torchrun(monkeypatch: pytest.MonkeyPatch, here: int, everywhere: int) -> None:
    environment = {
        "TORCHELASTIC_RUN_ID": "1",
        "LOCAL_WORLD_SIZE": str(here),
        "WORLD_SIZE": str(everywhere),
        "RANK": "0",
        "LOCAL_RANK": "0",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_one_process_unless_asked_for_more() -> None:
    assert open_fabric("cpu").world_size == 1
    fabric = open_fabric("cpu", devices=3, num_nodes=2)
    assert (fabric.strategy.num_processes, fabric.strategy.num_nodes) == (3, 2)


@pytest.mark.parametrize("asked", [(None, None), (4, None), (4, 2)])
def test_torchrun_says_how_many(
    monkeypatch: pytest.MonkeyPatch, asked: tuple[int | None, int | None]
) -> None:
    launched_by_torchrun(monkeypatch, here=4, everywhere=8)
    fabric = open_fabric("cpu", *asked)
    assert (fabric.strategy.num_processes, fabric.strategy.num_nodes) == (4, 2)


@pytest.mark.parametrize("asked", [(2, None), (None, 1), (8, 1)])
def test_other_numbers_than_torchruns_are_refused(
    monkeypatch: pytest.MonkeyPatch, asked: tuple[int | None, int | None]
) -> None:
    launched_by_torchrun(monkeypatch, here=4, everywhere=8)
    with pytest.raises(QdeployError, match="torchrun started 4 processes on each of 2 machines"):
        open_fabric("cpu", *asked)


def test_more_gpus_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(QdeployError, match=r"--devices 3 .* this machine has 2 CUDA devices"):
        open_fabric("cuda", devices=3)


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(QdeployError, match=r'"fp16" needs a GPU; on a CPU choose "bf16" or "32"'):
        open_fabric("cpu", precision="fp16")
