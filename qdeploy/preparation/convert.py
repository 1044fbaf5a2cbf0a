"""convert: the search stops and the integers are kept."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import overload

import torch
from torch import Tensor, fx, nn

from qdeploy.grid import SIGN, Grid, QTensor
from qdeploy.layers.activation import ActivationQuantizer
from qdeploy.layers.bias import finest_multiples
from qdeploy.layers.integer import IntegerActivation, IntegerLayer, IntegerNorm, IntegerSign
from qdeploy.layers.norm import BATCH_NORMS, BatchNorm, gain_of, shift_of
from qdeploy.layers.product import Convolution
from qdeploy.layers.quantized import QuantizedLayer
from qdeploy.layers.recurrent import IntegerRecurrent, Recurrent
from qdeploy.preparation.equal_calls import merge_equal_calls
from qdeploy.preparation.graph import (
    called_module,
    float_inputs,
    insert_after,
    is_tuple,
    module_calls,
    only_reader,
    replace,
    shape_of,
)
from qdeploy.preparation.inside import unwrapped, with_prepared_replaced
from qdeploy.preparation.integer_kernels import onto_kernels, source_activation
from qdeploy.preparation.left_out import warn_of_left_out
from qdeploy.preparation.prepared import PreparedNetwork, graph_module
from qdeploy.preparation.quantizer_placement import is_mover
from qdeploy.preparation.read_weights import as_constants
from qdeploy.preparation.vocabulary import is_clip, is_relu, operator_of
from qdeploy.preparation.whole import check_whole


@overload
def convert(prepared: PreparedNetwork) -> fx.GraphModule: ...
@overload
def convert(prepared: nn.Module) -> nn.Module: ...
def convert(prepared: nn.Module) -> nn.Module:
    """The integer network: int8 codes, one scale a channel, int32 biases; no trace of the method.

    Works on a copy, in evaluation mode on the CPU. Of another module that holds prepared networks,
    such as a Sequential with a softmax behind one, it is a copy with their integers inside.

    Errors: QdeployError if activations were never observed, nothing is prepared, or FSDP has spread the
    weights over processes.
    """
    network = unwrapped(prepared)
    check_whole(network)
    warn_of_left_out(network)
    if isinstance(network, PreparedNetwork):
        if network.searching:
            warnings.warn(still_searching(network), stacklevel=2)
        return integers_of(network)
    return with_prepared_replaced(network, integers_of).cpu().eval()


def integers_of(prepared: PreparedNetwork) -> fx.GraphModule:
    """The integers of today, also while a search goes on."""
    network = graph_module(copy.deepcopy(prepared).cpu().eval())
    as_constants(network)
    leaky_relus(network)
    integer_activations(network)
    without_silent_operators(network)
    merge_equal_calls(network)
    requantize_after_movers(network)
    one_name_a_place(network)
    integer_layers(network)
    integer_norms(network)
    onto_kernels(network)
    network.graph.lint()
    network.recompile()
    return network


def still_searching(prepared: PreparedNetwork) -> str:
    stand = ", ".join(f"{name} {value:.3g}" for name, value in prepared.progress.items())
    return (
        f"the search for weights is not over ({stand}): what ships is the likeliest weight so far, and "
        "the network has trained with others. Train to the end; a loop of your own calls "
        "prepared.set_progress(epoch, epochs) before every epoch, counted from 0"
    )


def leaky_relus(network: fx.GraphModule) -> None:
    """Makes a PReLU of one slope, and an RReLU, the LeakyReLU that it is now: that has an integer kernel."""
    for name in module_calls(network):
        module = network.get_submodule(name)
        if (slope := only_slope(module)) is not None:
            leaky = nn.LeakyReLU(slope)
            for own, quantizer in module.named_children():
                leaky.add_module(own, quantizer)
            network.set_submodule(name, leaky)


def only_slope(module: nn.Module) -> float | None:
    """What it multiplies every negative value by, once training has ended; None of other modules."""
    if isinstance(module, nn.RReLU):  # which draws its slopes in training alone
        return (module.lower + module.upper) / 2
    single = isinstance(module, nn.PReLU) and module.weight.numel() == 1
    return module.weight.item() if single else None  # type: ignore[operator]


def integer_activations(network: fx.GraphModule) -> None:
    """Each stands by itself from now on: the module whose output it rounds may become another."""
    for name, calls in module_calls(network).items():
        module = network.get_submodule(name)
        if isinstance(module, ActivationQuantizer):
            integer = IntegerSign if module.grid == SIGN else IntegerActivation
            place = f"activations.{calls[0].all_input_nodes[0].name}"
            network.add_submodule(place, integer(*module.qparams(), module.grid))
            for call in calls:
                call.target = place
            network.delete_submodule(name)


def without_silent_operators(network: fx.GraphModule) -> None:
    for node in list(network.graph.nodes):
        if operator_of(node, network).silent:
            replace(node, node.all_input_nodes[0])


def requantize_after_movers(network: fx.GraphModule) -> None:
    """Quantizes what a mover (pooling by maximum, flatten, concat) gives, on the grid it read.

    The values are on that grid already. Saying so again lets the runtime move codes, not floats.
    """
    for node in list(network.graph.nodes):
        if not is_mover(node, network) or is_tuple(node):
            continue
        quantizers = [source_activation(source, network) for source in float_inputs(node)]
        first = quantizers[0]
        if first and all(quantizer and quantizer.step == first.step for quantizer in quantizers):
            moved = IntegerActivation(first.scale, first.zero, first.grid, saturates=False)
            network.add_submodule(f"moved.{node.name}", moved)
            insert_after(node, f"moved.{node.name}", network)


def one_name_a_place(network: fx.GraphModule) -> None:
    """Calls a layer or a norm by another name at each place: each reads values of another step."""
    for name, (_, *others) in module_calls(network).items():
        module = network.get_submodule(name)
        if not isinstance(module, (QuantizedLayer, Recurrent, *BATCH_NORMS)):
            continue
        taken = {taken for taken, _ in network.named_modules(remove_duplicate=False)}
        numbered = (f"{name}_{number}" for number in itertools.count(2))
        for node in others:
            node.target = next(other for other in numbered if other not in taken)
            network.add_submodule(node.target, module)


def integer_layers(network: fx.GraphModule) -> None:
    for node in network.graph.nodes:
        layer = called_module(node, network)
        if isinstance(layer, Recurrent):
            network.set_submodule(str(node.target), IntegerRecurrent(layer))
        if not isinstance(layer, QuantizedLayer):
            continue
        source = source_activation(node.all_input_nodes[0], network)
        product, weight, bias = layer.product.shipped.for_integer_kernel(*layer.integers())
        integers = product.has_integer_kernel and weight.codes.dtype == torch.int8
        if not integers or (source and not source.has_8_bits):
            source = None
        thresholds = thresholds_behind(node, network)
        converted = IntegerLayer(layer.kind, product, weight, bias, source, thresholds)
        network.add_submodule(node.target, converted)


def thresholds_behind(node: fx.Node, network: fx.GraphModule) -> Tensor | None:
    """Where the code changes to which a layer's output is rounded, if that is all that reads it."""
    rectified = False
    while reader := only_reader(node):
        module = called_module(reader, network)
        if isinstance(module, IntegerActivation):
            # Of 16 bits there are too many to mind, and one step of them is nothing.
            return module.thresholds(rectified) if module.has_8_bits else None
        if not is_relu(reader, network):
            return None
        node, rectified = reader, True
    return None


def integer_norms(network: fx.GraphModule) -> None:
    """Makes each BatchNorm between integer tensors a convolution of one weight a channel.

    One weight with a scale of its own is exact, and such a convolution has an integer kernel.
    """
    for node in list(network.graph.nodes):
        norm = called_module(node, network)
        if type(norm) not in BATCH_NORMS or len(shape_of(node)) < 3:
            continue
        assert isinstance(norm, BatchNorm)
        if norm.running_var is None:  # normalises by its own batch, also here
            continue
        source = source_activation(node.all_input_nodes[0], network)
        if source is None or not source.has_8_bits or not is_rounded(node, network):
            continue
        gain, bias = gain_of(norm).detach(), shift_of(norm, None).detach()
        dimensions = len(shape_of(node)) - 2
        multiples = finest_multiples(bias / (gain.abs() * source.scale))
        codes = torch.where(gain < 0, -multiples, multiples).reshape(-1, 1, *[1] * dimensions)
        weight = QTensor.symmetric(codes, gain.abs() / multiples, Grid.signed(8))
        product = Convolution.depthwise(len(gain), dimensions)
        name = type(norm).__name__
        network.set_submodule(str(node.target), IntegerNorm(name, product, weight, bias, source))


def is_rounded(node: fx.Node, network: fx.GraphModule) -> bool:
    """Whether all that reads the value rounds it, perhaps behind a ReLU, to more than a sign."""
    reader = only_reader(node)
    if reader is not None and is_clip(reader, network):
        return is_rounded(reader, network)
    return {type(called_module(user, network)) for user in node.users} == {IntegerActivation}
