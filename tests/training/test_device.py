"""Which device a name means."""

import pytest
import torch

from qdeploy.errors import QdeployError
from qdeploy.training.device import pick_device


@pytest.mark.parametrize(
    ("name", "available", "expected"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_names(monkeypatch: pytest.MonkeyPatch, name: str, available: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert pick_device(name) == torch.device(expected)


def test_cuda_does_not_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(QdeployError, match=r"device cuda .* choose cpu or auto"):
        pick_device("cuda")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(QdeployError, match="unknown device 'tpu'; choose auto, cpu or cuda"):
        pick_device("tpu")
