"""export: an ONNX file as small as its bits, for stock ONNX Runtime."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxsim
import torch
from torch import Tensor, fx, nn

from qdeploy.deploy import names, passes
from qdeploy.deploy.batch_axes import doubled, said_axes
from qdeploy.deploy.check_open import check_open
from qdeploy.deploy.ends import Ends, end_names
from qdeploy.deploy.fixed_windows import refuse_fixed_windows
from qdeploy.deploy.metadata import Normalisation, file_metadata, versions
from qdeploy.deploy.open_axes import (
    BATCH,
    Dynamic,
    OpenAxes,
    asked_axes,
    with_batch,
)
from qdeploy.deploy.opset import lower_opset
from qdeploy.deploy.other_sizes import sizes_to_prove
from qdeploy.deploy.packing import pack
from qdeploy.deploy.pixels import checked_normalisation, take_pixels
from qdeploy.deploy.runtime_check import check_in_runtime
from qdeploy.deploy.seal import seal
from qdeploy.deploy.size_check import checked_sizes, copied_to_cpu
from qdeploy.deploy.target import find_target, onnx_path, write_for
from qdeploy.deploy.translations import TRANSLATIONS
from qdeploy.deploy.wide_weights import part_zero_points, readers_of_wide_weights
from qdeploy.errors import QdeployError
from qdeploy.layers.integer import IntegerActivation, IntegerLayer
from qdeploy.onnx_file import fits_one_file
from qdeploy.preparation.convert import convert
from qdeploy.preparation.graph import called_module, needed_values
from qdeploy.preparation.inside import holds_prepared
from qdeploy.preparation.sizes import decisions
from qdeploy.preparation.trace import Inputs, as_inputs, described

# What the graph is made in; the file gets the lowest opset that it needs.
OPSET, IR_VERSION = 21, 10


def export(
    prepared_or_converted: nn.Module,
    path: str | Path,
    example_input: Inputs,
    packing: bool = True,
    metadata: Mapping[str, str] | None = None,
    *,
    target: str = "cpu",
    uint8_input: Normalisation | None = None,
    normalisation: Normalisation | None = None,
    classes: Sequence[str] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    readable: bool = False,
    dynamic: Dynamic | None = None,
    batch_axes: Mapping[str, int | None] | None = None,
) -> Path:
    """Writes a network as ONNX, with an open batch on the axes where it has one.

    Takes what `prepare` or `convert` returned, alone or inside another module, or a plain float
    network. packing=False leaves the codes as int8. The file has the lowest opset that its operators
    need, is written whole or not at all, and has its weights beside it if it is larger than protobuf's
    2 GiB. A target whose runtime reads another kind of file gets that beside it, under the same name;
    returned is the file that the target's runtime reads.

    metadata       more entries for the file, beside versions, normalisation and classes
    target         the runtime that the file is for, by the name of its module in targets/
    uint8_input    mean and std per channel, of pixels scaled to 0..1: the file then takes uint8
                   images and normalises them itself
    normalisation  the same two for a file that takes normalised images: noted for those who run it
    classes        their names, in the order of the outputs: noted as well
    input_names    "input" by default, and of several as the arguments of forward are called
    output_names   "logits" by default, and of several their keys or numbers
    readable       call every node and value after the network's modules, as is done anyway where the
                   weights are large beside the names
    dynamic        axes that are open as well: ["height", "width"] of the only input, ["length"] of
                   sequences, or {input: {axis: name}}. The file is then run in ONNX Runtime on three
                   sizes before it is written, and is an error where one differs from the network
    batch_axes     {input: the axis on which its batch lies, None for what all samples share}, where
                   that is not to be found out

    Errors: QdeployError for an example input that the network does not take, a network that
    torch.onnx cannot export, or that the target lacks; for options that do not fit; and if the target has a
    runtime of its own that is not installed, or that computes something else from the file.
    """
    given = prepared_or_converted
    if not isinstance(given, nn.Module):
        raise QdeployError(f"export takes a network, not {getattr(given, '__name__', given)}")
    pixels = checked_normalisation(uint8_input, "uint8_input")
    normalisation = pixels or checked_normalisation(normalisation, "normalisation")
    entries = file_metadata(classes, normalisation, versions()) | dict(metadata or {})
    runtime = find_target(target)
    place = onnx_path(runtime, Path(path))
    network = convert(given) if holds_prepared(given) else given
    ends = input_names, output_names
    model = to_onnx(network, example_input, *ends, target, dynamic, batch_axes)
    if pixels is not None:
        take_pixels(model, *pixels)
    file = finished(model, packing and runtime.packs, entries, readable)
    example = as_inputs(example_input)
    sizes = checked_sizes(file, network, runtime, example, pixels)
    for inputs in [one.inputs for one in sizes] or [example]:
        check_in_runtime(file, runtime, inputs)
    return write_for(runtime, file, place)


def to_onnx(
    network: nn.Module,
    example_input: Inputs,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    target: str = "cpu",
    dynamic: Dynamic | None = None,
    batch_axes: Mapping[str, int | None] | None = None,
) -> ir.Model:
    """The exported, simplified and cleaned graph for a target, int8 codes not yet packed.

    The network stays as it is: a copy goes to the CPU and is adapted to the target. Names and open
    axes are as `export` has them.
    """
    runtime = find_target(target)
    network, inputs = copied_to_cpu(network, as_inputs(example_input))
    check_floats(inputs)
    for layer in network.modules():
        if isinstance(layer, IntegerLayer) and not runtime.in_rows:
            layer.in_rows = False
    ends = end_names(network, inputs, input_names, output_names)
    asked = asked_axes(dynamic, ends.inputs, inputs)
    batch = said_axes(batch_axes or {}, ends.inputs, network, inputs, asked)
    if not any(axis is not None for axis in batch):
        _warn_of_closed_batch(network, inputs)
    axes = with_batch(asked, batch)
    others: Sequence[Tensor] = doubled(inputs, batch)
    if any(asked):
        others = sizes_to_prove(network, inputs, axes)[-1].inputs
        refuse_fixed_windows(network, inputs, others)
        _warn_of_decisions(network)
    traced = _exported(network, inputs, ends, axes)
    check_open(traced, network, inputs, axes, others)
    names.layer_names(traced)
    exported = _simplified(traced)
    runtime.rewrite(exported)
    return exported


def quantizer_names(network: fx.GraphModule) -> list[str]:
    """The nodes of a converted network that round, in the order it runs them; none of a float one.

    Without those whose values no output needs: where the size alone is asked for, the exporter drops them.
    """
    needed = needed_values(network)
    calls = ((node, called_module(node, network)) for node in network.graph.nodes if node in needed)
    return [node.name for node, module in calls if isinstance(module, IntegerActivation)]


def check_floats(inputs: Sequence[Tensor]) -> None:
    """A quantizer would take bytes, and the layer that reads its codes would not."""
    if any(x.dtype == torch.uint8 for x in inputs):
        raise QdeployError(
            f"export takes an example input as the network does, not {described(inputs)}: give it "
            "normalised float32 images. For a file that takes uint8, add uint8_input=(mean, std)"
        )


def finished(
    model: ir.Model, packing: bool, metadata: Mapping[str, str], readable: bool = False
) -> onnx.ModelProto:
    """A copy of the graph, packed or not, as a checked and sealed protobuf."""
    return finished_with_tensors(model, packing, metadata, readable)[0]


def finished_with_tensors(
    model: ir.Model, packing: bool, metadata: Mapping[str, str], readable: bool = False
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """`finished`, and {quantizer of the converted network: the tensor of its codes in the file}."""
    model = model.clone()
    wide = readers_of_wide_weights(model)
    if packing:
        pack(model)
    passes.share_initialisers(model)
    part_zero_points(wide)
    for rewrite in passes.AFTER_PACKING:
        rewrite(model)
    tensors = names.name_all(model, readable)
    model.producer_name, model.producer_version = "qdeploy", None
    model.graph.name = "qdeploy"
    model.metadata_props.update(metadata)
    proto = ir.to_proto(model)
    proto.graph.ClearField("value_info")
    if fits_one_file(proto):  # else the checker wants a path, see write
        lower_opset(proto)
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    seal(proto)
    return proto, tensors


def _warn_of_closed_batch(network: nn.Module, inputs: Sequence[Tensor]) -> None:
    warnings.warn(
        f"{type(network).__name__} counts on the number of samples in a batch: the file takes as many "
        f"as the example input has, {described(inputs)}",
        stacklevel=3,
    )


def _warn_of_decisions(network: nn.Module) -> None:
    if places := decisions(network):
        warnings.warn(
            "the file does at every size what the network does at the example's, also where the network "
            f"itself refuses a size or would decide otherwise:{';'.join(places)}",
            stacklevel=3,
        )


def _exported(network: nn.Module, inputs: Sequence[Tensor], ends: Ends, axes: OpenAxes) -> ir.Model:
    inputs = tuple(map(_without_ones, inputs, axes))
    # The file takes batches of one; before 2.13 torch may not.
    dims = {
        name: torch.export.Dim(name, min=2 if name == BATCH else None)
        for named in axes
        for name in named.values()
    }
    with _quiet():
        try:
            program = torch.onnx.export(
                network,
                tuple(inputs),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=tuple(
                    {axis: dims[name] for axis, name in named.items()} for named in axes
                ),
                input_names=ends.inputs,
                output_names=ends.outputs,
                custom_translation_table=TRANSLATIONS,
                verbose=False,
                optimize=False,
            )
            assert program is not None
            if isinstance(network, fx.GraphModule):
                names.tensor_names(program.model, quantizer_names(network))
            program.optimize()
            _call(program.model.graph, ends)
        except Exception as error:
            raise QdeployError(
                f"torch.onnx cannot export {type(network).__name__}: {error}"
            ) from error
    return program.model


def _without_ones(x: Tensor, named: Mapping[int, str]) -> Tensor:
    """Twice as long where an open axis has one entry: a size of one would be taken for a constant."""
    for axis in named:
        x = x if x.shape[axis] > 1 else torch.cat([x, x], axis)
    return x


def _call(graph: ir.Graph, ends: Ends) -> None:
    """torch.onnx gives other names to what is an input and an output, or two outputs."""
    for values, names_of_ends in ((graph.inputs, ends.inputs), (graph.outputs, ends.outputs)):
        for value, name in zip(values, names_of_ends, strict=True):
            value.name = name


def _simplified(model: ir.Model) -> ir.Model:
    model.ir_version = IR_VERSION
    with _quiet():
        proto, same = onnxsim.simplify(ir.to_proto(model))
    if not same:
        raise QdeployError("onnxsim changed what the exported network computes; please report it")
    return ir.from_proto(proto)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress lines and its warnings about itself."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
