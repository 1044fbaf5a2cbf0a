"""validate: the proof of a file for a network, data and loop of one's own."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from pydantic import TypeAdapter
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from qdeploy.benchmark.machine import this_machine
from qdeploy.deploy.export import finished_with_tensors, to_onnx
from qdeploy.deploy.open_axes import OpenAxes, as_in, names_of, open_axes_of
from qdeploy.deploy.other_sizes import Sized, size_in_words, sizes_to_prove
from qdeploy.errors import QdeployError
from qdeploy.onnx_file import read
from qdeploy.preparation.convert import convert
from qdeploy.preparation.prepared import PreparedNetwork
from qdeploy.preparation.trace import Inputs, as_inputs
from qdeploy.proof.tensors import Array, ComparedNetwork
from qdeploy.record import Exactness


@dataclass(frozen=True)
class OutputDifference:
    """One output of the file against that of the integers in PyTorch.

    largest  difference of two values; 0.0 where they are equal bit for bit.
    size     of the largest value.
    """

    name: str
    largest: float
    size: float

    def __str__(self) -> str:
        if self.largest == 0:
            return f"{self.name}: equal bit for bit"
        return f"{self.name}: differs by {self.largest:.3g} at most, of {self.size:.3g}"


@dataclass(frozen=True)
class Validation:
    """What `validate` found; `print` it, or take its JSON.

    sizes   of the axes that the file leaves open, such as "24x16"; () where all are fixed
    """

    file: str
    processor: str
    outputs: tuple[OutputDifference, ...]
    exactness: Exactness
    sizes: tuple[str, ...] = ()

    def __str__(self) -> str:
        header = f"{self.file} on {self.processor}, {self.exactness.samples:,} inputs"
        sizes = [f"sizes: {', '.join(self.sizes)}"] if self.sizes else []
        return "\n".join([header, *sizes, str(self.exactness), *map(str, self.outputs)])

    def to_json(self) -> str:
        return TypeAdapter(Validation).dump_json(self, indent=2).decode()


def validate(
    network: nn.Module,
    file: str | Path,
    batches: Iterable[Inputs],
    provider: str = "auto",
) -> Validation:
    """Compares a file with the network that it was exported from: every code and every output.

    network   what `prepare` or `convert` returned; runs where it is
    file      what `export` wrote for the target "cpu", of that network and no uint8_input
    batches   the inputs to compare on: tensors, or tuples for a forward of several. Where the file
              leaves sizes open, the first one is taken in a smaller and in a larger size as well
    provider  where ONNX Runtime runs the file: "auto", "cpu", "cuda"

    Errors: QdeployError for a file that the network does not export to, and for no batches.
    """
    integers = what_ships(network, "validate")
    compared: ComparedNetwork | None = None
    found: dict[str, OutputDifference] = {}
    sizes: dict[str, None] = {}
    file = Path(file)
    axes = open_axes_of(read(file))
    for one in with_other_sizes(batches, integers, axes):
        if compared is None:
            model = onnx.load(file)
            tensors = tensors_of(file, model, exported_again(model, integers, one.inputs))
            compared = ComparedNetwork(integers, model, tensors, provider)
            names = [value.name for value in model.graph.output]
        sizes[one.size] = None
        outputs, in_file = compared(one.inputs)
        for name, ours, other in zip(names, pytree.tree_leaves(outputs), in_file, strict=True):
            found[name] = difference(name, ours.detach().cpu().numpy(), other, found.get(name))
    if compared is None:
        raise QdeployError("validate was given no batches; give the inputs to compare on")
    proven = tuple(filter(None, sizes))
    differences = tuple(found.values())
    return Validation(str(file), this_machine().cpu, differences, compared.result(), proven)


def what_ships(network: nn.Module, verb: str) -> fx.GraphModule:
    """The integers of a prepared or converted network, copied, on its device.

    Errors: QdeployError for another network, naming who asked (`verb`).
    """
    integers = convert(network) if isinstance(network, PreparedNetwork) else copy.deepcopy(network)
    if not isinstance(integers, fx.GraphModule):
        raise QdeployError(
            f"{verb} takes what qdeploy.prepare or convert returned, not {type(network).__name__}"
        )
    return integers.to(next(network.buffers()).device)


def with_other_sizes(
    batches: Iterable[Inputs], integers: fx.GraphModule, axes: OpenAxes
) -> Iterator[Sized]:
    """The batches; the first one in a smaller and in a larger size too, where sizes are open."""
    device = next(integers.buffers()).device
    for number, batch in enumerate(batches):
        inputs = tuple(x.to(device) for x in as_inputs(batch))
        if number == 0 and names_of(axes):
            yield from sizes_to_prove(integers.eval(), inputs, axes)
        else:
            yield Sized(size_in_words(inputs, axes), inputs)


def exported_again(
    model: onnx.ModelProto, integers: fx.GraphModule, inputs: Sequence[Tensor]
) -> ir.Model:
    """The graph of the network with the names and open axes of a file, codes not yet packed."""
    return to_onnx(integers, tuple(inputs), **as_in(model))


def tensors_of(file: Path, model: onnx.ModelProto, graph: ir.Model) -> dict[str, str]:
    """Where a file's model holds the codes of each quantizer.

    graph   of the network, exported again. Errors: QdeployError if the file is of another one
    """
    for packing, readable in itertools.product((True, False), (False, True)):
        again, tensors = finished_with_tensors(graph, packing, {}, readable)
        if again.graph == model.graph:
            return tensors
    raise QdeployError(
        f"{file} is not what this network exports to for the target cpu: it was trained or calibrated "
        "since, exported for another target or with uint8_input, or by another version. Export it again"
    )


def difference(
    name: str, ours: Array, other: Array, before: OutputDifference | None
) -> OutputDifference:
    """The largest of this batch and of those before."""
    ours, other = (values.astype(np.float64) for values in (ours, other))
    largest, size = float(np.abs(ours - other).max()), float(np.abs(ours).max())
    if before is not None:
        largest, size = max(largest, before.largest), max(size, before.size)
    return OutputDifference(name, largest, size)
