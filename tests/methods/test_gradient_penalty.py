"""The gradient of a gradient (create_graph=True) is that of the same rounding written with detach().

A gradient penalty asks for it: L = sum((dy/dx)^2), and then dL/dw.
"""

import pytest
import torch
from networks import build, images
from torch import Tensor, nn

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.layers.fake_quantize import fake_quantize, fake_sign
from qdeploy.methods import ActivationSite, WeightSite, find
from qdeploy.methods.lsq import learned_step
from qdeploy.methods.slb import SlbWeight
from qdeploy.methods.xnor import binarize


def values(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def detached(rounded: Tensor, smooth: Tensor) -> Tensor:
    return smooth + (rounded - smooth).detach()


def penalised(function, *inputs: Tensor) -> list[Tensor]:
    """y, dy/dx of every input, and the gradient of a penalty of those, which is not linear in them.

    The inputs first pass a product of their own, as what a layer reads does, so that there is a
    gradient of the penalty by each of them.
    """
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = function(*(leaf * leaf.abs() for leaf in leaves))
    upstream = values(*y.shape, seed=9)
    first = torch.autograd.grad((y.square() * upstream).sum(), leaves, create_graph=True)
    penalty = sum((g.square().sum() + g.sum() for g in first), torch.zeros(()))
    return [y, *first, *torch.autograd.grad(penalty, leaves)]


def assert_same_penalty(ours, reference, *inputs: Tensor) -> None:
    found, wanted = penalised(ours, *inputs), penalised(reference, *inputs)
    assert all(part.any() for part in wanted)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def clipped(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(x, low), high)


def test_fake_quantize() -> None:
    scale, zero = torch.tensor(0.1), torch.tensor(7.0)

    def reference(x: Tensor) -> Tensor:
        inside = x.clamp(-7 * scale, 8 * scale)
        return detached((inside / scale).round() * scale, inside)

    assert_same_penalty(lambda x: fake_quantize(x, scale, zero, 0, 15), reference, values(40))


def test_fake_quantize_by_channels() -> None:
    scale, zero = torch.tensor([[0.1], [0.2]]), torch.zeros(2, 1)

    def reference(x: Tensor) -> Tensor:
        inside = clipped(x, -8 * scale, 7 * scale)
        return detached((inside / scale).round() * scale, inside)

    assert_same_penalty(lambda x: fake_quantize(x, scale, zero, -8, 7), reference, values(2, 30))


def test_fake_sign() -> None:
    def reference(x: Tensor) -> Tensor:
        inside = x.clamp(-1, 1)
        return detached(torch.where(x >= 0, 1.0, -1.0), inside)

    # The square of a sign is 1: its gradient needs a factor that is not a sign.
    assert_same_penalty(
        lambda x: fake_sign(x) * x, lambda x: reference(x) * x, values(40, spread=1.1)
    )


@pytest.mark.parametrize("shape", [(1,), (2, 1)])
def test_lsq(shape: tuple[int, ...]) -> None:
    grid, sharing = qdeploy.grid.Grid.signed(3), 16
    g = 1 / (sharing * grid.highest) ** 0.5

    def reference(v: Tensor, s: Tensor) -> Tensor:
        s = detached(s, g * s)  # the gradient of s is scaled by g
        r = (v / s).clamp(grid.lowest, grid.highest)
        return s * detached(r.round(), r)

    step = 0.5 + values(*shape, spread=0.01).abs()
    assert_same_penalty(
        lambda v, s: learned_step(v, s, grid, 0, sharing), reference, values(2, 30), step
    )


@pytest.mark.parametrize("nonnegative", [True, False])
def test_pact(nonnegative: bool) -> None:
    pact = find("pact")
    made = pact.activation(ActivationSite(nonnegative), 3, pact.options(alpha=1.0)).train()

    def ours(x: Tensor, alpha: Tensor) -> Tensor:
        del made._parameters["alpha"]
        made._parameters["alpha"] = alpha
        return made(x)

    def reference(x: Tensor, alpha: Tensor) -> Tensor:
        inside = clipped(x, torch.zeros(()) if nonnegative else -alpha, alpha)
        step = alpha / (7 if nonnegative else 3)
        return detached((inside / step).round() * step, inside)

    assert_same_penalty(ours, reference, values(60), made.alpha.detach())


def test_xnor() -> None:
    def reference(w: Tensor) -> Tensor:
        inside = w.clamp(-1, 1)
        return detached(torch.where(w >= 0, 1.0, -1.0), inside) * w.abs().mean(1, keepdim=True)

    assert_same_penalty(lambda w: binarize(w, "paper"), reference, values(3, 20, spread=1.1))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_slb_is_smooth(bits: int) -> None:
    slb = find("slb")
    site = WeightSite(values(2, 2, 1, 2, spread=0.5).double(), normalized=False)
    made = slb.weight(site, bits, slb.options(t_start_val=1.5))
    assert isinstance(made, SlbWeight)
    upstream = values(2, 2, 1, 2).double().requires_grad_()
    assert torch.autograd.gradgradcheck(made.relax, made.latent, upstream)


def smooth(method: str, bits: int, **options: object) -> tuple[nn.Module, Tensor]:
    prepared = qdeploy.prepare(build("plain"), images(2), method, bits, 8, **options)
    prepared.train()(images(4))  # activations have their ranges
    return prepared, images(4).requires_grad_()


WORKS = [
    *[("simqat", 4), ("slb", 1), ("slb", 2), ("lsq", 4), ("ternary", 2), ("xnor", 1)],
    *[("dorefa", 1), ("dorefa", 4), ("pact", 4)],
]


@pytest.mark.parametrize(("method", "bits"), WORKS)
def test_a_penalty_of_two_forwards_trains_every_weight(method: str, bits: int) -> None:
    """As in a WGAN: the loss of one batch and the penalty of another, in one backward pass."""
    options = {"quant_delay": 0, "linear": True} if method == "slb" else {}
    prepared, x = smooth(method, bits, **options)
    loss = prepared(images(4, seed=1)).mean()
    (to_x,) = torch.autograd.grad(prepared(x).square().sum(), x, create_graph=True)
    (loss + to_x.square().sum()).backward()
    for _, layer in prepared.quantized_layers():
        gradient = layer.quantizer.latent.grad
        assert gradient.isfinite().all()
        assert gradient.any()


@pytest.mark.parametrize(
    ("method", "options", "way_out"),
    [
        ("dorefa", {"grad_bits": 6}, "dorefa with grad_bits = 6 rounds .* set grad_bits = 32"),
        ("int8_training", {}, "int8_training rounds .* choose another method"),
        ("int8_training", {"range_norm": False}, "int8_training rounds .* choose another method"),
    ],
)
def test_gradients_rounded_at_random_have_none(method: str, options: dict, way_out: str) -> None:
    prepared, x = smooth(method, 8, **options)
    y = prepared(x).square().sum()
    with pytest.raises(QdeployError, match=way_out):
        torch.autograd.grad(y, x, create_graph=True)
