"""Mixed precision: products in 16 bits, everything that decides on integers in float32."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import build, images
from tiny_runs import tiny_data, tiny_fit, tiny_network
from torch import Tensor, nn

import qdeploy
from qdeploy.layers.activation import ActivationQuantizer
from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.layers.weight import WeightQuantizer
from qdeploy.tasks import Classification
from qdeploy.training.evaluate import evaluate
from qdeploy.training.launch import open_fabric

METHODS = [
    ("simqat", 8, {}),
    ("simqat", 4, {"fold": "one-conv"}),
    ("simqat", 4, {"fold": "two-conv"}),
    ("slb", 1, {"quant_delay": 0}),
    ("slb", 2, {"quant_delay": 0}),
]


def prepared(method: str, bits: int, options: dict) -> nn.Module:
    network = qdeploy.prepare(build("residual"), images(4), method, bits, 8, **options)
    return network.train()


def seen_by(network: nn.Module, kind: type[nn.Module]) -> list[tuple[nn.Module, tuple, Tensor]]:
    """Module, inputs and output of every call of a module of that kind, once it is called."""
    calls: list[tuple[nn.Module, tuple, Tensor]] = []
    for module in network.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda *call: calls.append(call))
    return calls


def normed(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Input and output of every call of a BatchNorm: its layer runs it, and hooks on it are refused."""
    calls: list[tuple[Tensor, Tensor]] = []

    def recorded(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def forward_and_record(x: Tensor) -> Tensor:
            calls.append((x, forward(x)))
            return calls[-1][1]

        return forward_and_record

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.forward = recorded(module.forward)  # type: ignore[method-assign]
    return calls


def trained_step(network: nn.Module, low: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        logits: Tensor = network(images(16))
    logits.float().square().mean().backward()
    return logits


@pytest.mark.parametrize("method", METHODS, ids=str)
class TestTheQuantizers:
    def test_weights_are_bitwise_those_of_float32(self, method: tuple) -> None:
        low, full = prepared(*method), prepared(*method)
        in_low, in_full = seen_by(low, WeightQuantizer), seen_by(full, WeightQuantizer)
        trained_step(low, low=True)
        trained_step(full, low=False)
        assert len(in_low) == len(in_full) > 4
        first, expected = in_low[0][2], in_full[0][2]  # later gains follow the statistics
        torch.testing.assert_close(first, expected, rtol=0, atol=0)
        for module, inputs, weight in list(in_low):  # a call adds to it
            again = module(*inputs)
            torch.testing.assert_close(weight, again, rtol=0, atol=0)  # also checks the type

    def test_activations_stand_on_the_float32_grid(self, method: tuple) -> None:
        network = prepared(*method)
        calls = seen_by(network, ActivationQuantizer)
        trained_step(network, low=True)
        assert len(calls) > 6
        for module, (x,), y in calls:
            scale, zero = (part.numpy() for part in module.qparams())
            low, high = module.grid.lowest, module.grid.highest
            codes = np.clip(np.rint(x.detach().float().numpy() / scale) + zero, low, high)
            assert y.dtype == torch.float32
            np.testing.assert_array_equal(y.detach().numpy(), (codes - zero) * scale)

    def test_norms_see_float32_and_products_are_16_bit(self, method: tuple) -> None:
        network = prepared(*method)
        norms = normed(network)
        layers = seen_by(network, QuantizedLayer)
        trained_step(network, low=True)
        assert len(norms) >= 4
        assert all(x.dtype == y.dtype == torch.float32 for x, y in norms)
        head, (x,), y = layers[-1]  # the Linear at the end has no norm
        assert torch.equal(y, y.bfloat16().float())
        assert not torch.equal(y, head(x))


@pytest.mark.parametrize("method", [("simqat", 8), ("slb", 1)])
def test_training_in_bf16(tmp_path: Path, method: tuple[str, int]) -> None:
    network = qdeploy.prepare(tiny_network(), torch.zeros(2, 1, 4, 4), *method)
    calls = seen_by(network, ActivationQuantizer)
    result = tiny_fit(network, tmp_path, epochs=10, fabric=open_fabric("cpu", precision="bf16"))

    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    assert result[-1].train["loss"] < 0.8 * result[0].train["loss"]
    image = next(iter(tiny_data().train.epoch(0)))[0]
    assert torch.equal(calls[0][1][0], image), "the image was rounded before its quantizer"
    # In float32: no Fabric around the network.
    assert result[-1].test == evaluate(network, tiny_data().test.epoch(0), Classification(), 4)


def test_products_differ_from_those_of_float32(tmp_path: Path) -> None:
    losses = [
        tiny_fit(tiny_network(), tmp_path / name, fabric=open_fabric("cpu", precision=name))[
            -1
        ].train["loss"]
        for name in ("32", "bf16")
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
