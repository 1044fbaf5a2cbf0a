"""What tools/compare_training.py compares: ways to train one network, one call a step.

Every way has the same float network, batch, loss and optimizer.
"""

from __future__ import annotations

import json
import resource
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from contenders import Call, Load
from torch import nn
from torch.nn.functional import cross_entropy

import qdeploy
from qdeploy.recipe import TrainSection
from qdeploy.training.device import channels_last
from qdeploy.training.optimizer import make_optimizer

CLASSES = 10
SETTINGS = TrainSection(epochs=1, optimizer="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4)


def float_nchw(network: str, shape: tuple[int, ...], threads: int) -> Call:
    return step_of(_float_network(network, threads), images_of(shape), torch.contiguous_format)


def float_channels_last(network: str, shape: tuple[int, ...], threads: int) -> Call:
    return step_of(_float_network(network, threads), images_of(shape))


def ours(given: str, shape: tuple[int, ...], threads: int) -> Call:
    """given: "NETWORK METHOD WEIGHT_BITS ACT_BITS"."""
    network, _, quantization = given.partition(" ")
    images = images_of(shape)
    return step_of(prepared_for(network, quantization, images, threads), images)


def prepared_for(network: str, given: str, images: torch.Tensor, threads: int = 1) -> nn.Module:
    """A network of the zoo as it is trained; given: "METHOD WEIGHT_BITS ACT_BITS" or "float"."""
    if given == "float":
        return _float_network(network, threads)
    method, weight_bits, act_bits = given.split()
    binary = act_bits == "1"
    options: dict[str, Any] = {"quant_delay": 0} if method == "slb" else {}
    prepared = qdeploy.prepare(
        _float_network(network, threads, norm_first=binary),
        images[:2],
        method,
        int(weight_bits),
        int(act_bits),
        first_last_float=binary,
        **options,
    )
    prepared.set_progress(0, 10)
    return prepared


def torch_ao(network: str, shape: tuple[int, ...], threads: int) -> Call:
    """FX graph mode, the default QAT configuration for x86."""
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    images = images_of(shape)
    model = _float_network(network, threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = prepare_qat_fx(model, get_default_qat_qconfig_mapping("x86"), (images[:2],))
    return step_of(model, images)


def brevitas(network: str, shape: tuple[int, ...], threads: int) -> Call:
    """Its FX flow for weights and activations of 8 bits, past the steps that collect ranges."""
    from brevitas.graph.quantize import preprocess_for_quantize, quantize

    images = images_of(shape)
    model = preprocess_for_quantize(_float_network(network, threads).eval(), merge_bn=False)
    model = quantize(model)
    for module in model.modules():
        if hasattr(module, "collect_stats_steps"):
            module.collect_stats_steps = 1
    return step_of(model, images)


def _float_network(network: str, threads: int, norm_first: bool = False) -> nn.Module:
    """network: a name of the zoo, perhaps with its options as JSON behind a space."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    name, _, options = network.partition(" ")
    given = json.loads(options or "{}") | ({"norm_first": True} if norm_first else {})
    return qdeploy.load_network(name, {"num_classes": CLASSES, **given}).train()


def images_of(shape: tuple[int, ...]) -> torch.Tensor:
    values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(values)


def step_of(
    model: nn.Module,
    images: torch.Tensor,
    layout: torch.memory_format = torch.channels_last,
    precision: str = "32",
    compiled: bool = False,
) -> Callable[[], float]:
    """A step of the optimizer a call, on the GPU where there is one; gives the loss."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).train()
    if layout is torch.channels_last:
        model = channels_last(model)
    images = images.to(device).contiguous(memory_format=layout)
    labels = torch.arange(len(images), device=device) % CLASSES
    optimizer = make_optimizer(model, SETTINGS)
    called = torch.compile(model) if compiled else model

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = cross_entropy(called(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()  # waits for the device

    return step


def peak_mb(load: Load, model: str, shape: tuple[int, ...], threads: int) -> float:
    """What three steps add at most to the memory that the libraries take, in MB."""
    if torch.cuda.is_available():
        step = load(model, shape, threads)
        for _ in range(3):
            step()
        return torch.cuda.max_memory_allocated() / 1e6
    _warm_up()
    before = _most_mb()
    step = load(model, shape, threads)
    for _ in range(3):
        step()
    return _most_mb() - before


def _most_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _warm_up() -> None:
    """A step of a small network: what torch takes once is not the network's."""
    layer = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    layer(torch.randn(2, 3, 16, 16)).sum().backward()
