"""Evaluation multiplies in float32 whatever the user allows, and leaves the settings as they were."""

import pytest
import torch
from torch import nn
from torch.backends import cuda, cudnn

from qdeploy.layers.modes import full_float32


@pytest.fixture(params=["highest", "high", "medium"])
def allowed(request):
    """What torch.set_float32_matmul_precision allows to matrix products: float32, TF32, bfloat16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def settings():
    return torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.deterministic


def test_it_holds_for_the_block_alone(allowed):
    before = settings()
    with full_float32():
        assert settings() == ("highest", False, before[2])
        assert cuda.matmul.fp32_precision in ("ieee", "none")
    assert settings() == before


def test_an_error_in_the_block_takes_nothing_along(allowed):
    before = settings()
    with pytest.raises(ZeroDivisionError), full_float32():
        1 / 0  # noqa: B018
    assert settings() == before


def test_a_network_is_traced_within(allowed):
    """torch.export reads these settings, and raises where the older and the newer ones differ."""
    with full_float32():
        program = torch.export.export(nn.Sequential(nn.Conv1d(2, 3, 2)), (torch.ones(2, 2, 4),))
    assert len(program.state_dict) == 2


def test_the_newer_setting_is_left_to_the_user():
    cuda.matmul.fp32_precision = "tf32"
    try:
        with full_float32():
            assert not cudnn.allow_tf32
        assert cuda.matmul.fp32_precision == "tf32"
    finally:
        cuda.matmul.fp32_precision = "none"


CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_products_are_those_of_float64_to_the_last_bits(allowed, device):
    """TF32 is off by some 3e-4 of the largest here, bfloat16 by more."""
    x, w = torch.randn(2, 64, 64, 64, generator=torch.Generator().manual_seed(0)).split(1)
    with full_float32():
        convolved = torch.nn.functional.conv2d(x.to(device), w.to(device)[:, :, :3, :3])
        product = x.to(device) @ w.to(device)
    for found, expected in (
        (convolved, torch.nn.functional.conv2d(x.double(), w.double()[:, :, :3, :3])),
        (product, x.double() @ w.double()),
    ):
        assert (found.cpu() - expected).abs().max() < 1e-6 * expected.abs().max()
