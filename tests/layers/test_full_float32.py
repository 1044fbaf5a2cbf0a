"""Whatever a user allows, evaluation multiplies in float32, and leaves the user's settings as they were."""

import pytest
import torch
from torch.backends import cuda, cudnn

from qdeploy.layers.modes import OPERATORS, full_float32

ALLOWED = {
    "nothing": lambda: None,
    "TF32": lambda: torch.set_float32_matmul_precision("high"),
    "bfloat16": lambda: torch.set_float32_matmul_precision("medium"),
    "TF32, by the older flags": lambda: setattr(cuda.matmul, "allow_tf32", True),
    "TF32 everywhere": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "float32 in convolutions": lambda: setattr(cudnn.conv, "fp32_precision", "ieee"),
}


@pytest.fixture(params=ALLOWED)
def allowed(request):
    """The settings of each operator after a user's call, which is taken back afterwards."""
    before = torch.backends.fp32_precision, [one.fp32_precision for one in OPERATORS]
    ALLOWED[request.param]()
    yield [one.fp32_precision for one in OPERATORS]
    torch.set_float32_matmul_precision("highest")
    torch.backends.fp32_precision = before[0]
    for one, precision in zip(OPERATORS, before[1], strict=True):
        one.fp32_precision = precision


def test_it_holds_for_the_block_alone(allowed):
    with full_float32():
        assert {one.fp32_precision for one in OPERATORS} == {"ieee"}
    assert [one.fp32_precision for one in OPERATORS] == allowed


def test_an_error_in_the_block_takes_nothing_along(allowed):
    with pytest.raises(ZeroDivisionError), full_float32():
        1 / 0  # noqa: B018
    assert [one.fp32_precision for one in OPERATORS] == allowed


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
