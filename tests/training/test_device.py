"""Which device a name means."""

import pytest
import torch
from networks import build, images

from qdeploy.errors import QdeployError
from qdeploy.training.device import channels_last, determinism, pick_device


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


def deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic


@pytest.mark.parametrize("wanted", [True, False])
def test_determinism_is_for_the_block_alone(wanted: bool) -> None:
    with determinism(wanted):
        assert deterministic() == (wanted, wanted)
    assert deterministic() == (False, False)


def test_a_users_own_choice_is_there_again_after_the_block() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with determinism(True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_weights_are_stored_channels_last_and_compute_the_same() -> None:
    network, x = build("residual").eval(), images(4)
    expected = network(x)
    network = channels_last(network)
    kernels = [p for p in network.parameters() if p.ndim == 4]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    torch.testing.assert_close(network(x.contiguous(memory_format=torch.channels_last)), expected)
