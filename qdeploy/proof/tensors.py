"""The file's codes against those of the integers in PyTorch, tensor by tensor.

Each tensor is judged for itself: behind it PyTorch goes on with the file's codes, so that a code that
differs makes no others differ. Where none does, that is PyTorch's own run.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from qdeploy.benchmark.runtime import open_session
from qdeploy.deploy.other_sizes import Sized
from qdeploy.layers.integer import IntegerActivation
from qdeploy.layers.kernels import Step
from qdeploy.layers.modes import full_float32
from qdeploy.preparation.graph import Interpreter, called_module, float_inputs
from qdeploy.preparation.integer_kernels import comes_from_kernels
from qdeploy.preparation.vocabulary import is_clip
from qdeploy.record import Exactness, ProvenSize, TensorDifference

Array = npt.NDArray[Any]


class ComparedNetwork:
    """The integers in PyTorch, run beside their file; counts the codes that differ.

    integers  what `convert` returned, on its device
    file      what it was exported to
    tensors   {quantizer of the integers: the tensor of its codes in the file}
    """

    def __init__(
        self,
        integers: fx.GraphModule,
        file: onnx.ModelProto,
        tensors: Mapping[str, str],
        provider: str = "auto",
    ) -> None:
        self.integers = integers.eval()
        images = {value.name for value in file.graph.input}
        there = {name: tensor for name, tensor in tensors.items() if tensor not in images}
        self.tensors = {name: there[name] for name in tensors_to_compare(integers, there)}
        self.counts = {name: Count() for name in self.tensors}
        self.outputs = len(file.graph.output)
        self.session = open_session(with_outputs(file, self.tensors.values()), provider)
        self.samples = 0

    @torch.inference_mode()
    def __call__(
        self, tensors: Sequence[Tensor], fed: Sequence[Array] | None = None
    ) -> tuple[Any, list[Array]]:
        """What the integers give of a batch, and the outputs of the file.

        fed   what the file is given, if it takes something else than the network
        """
        outputs, codes = self.run_file([x.cpu().numpy() for x in tensors] if fed is None else fed)
        device = next(self.integers.buffers()).device
        given = [x.to(device) for x in tensors]
        judge = Judge(self.integers, codes, self.counts)
        self.samples += len(given[0])
        with full_float32():
            result = judge.run(*given)
            return result if judge.all_equal else self.integers(*given), outputs

    def at(self, one: Sized, fed: Sequence[Array] | None = None) -> ProvenSize:
        """What a batch of one size gives; its codes count in the result as well."""
        before = self.result()
        outputs, in_file = self(one.inputs, fed)
        after = self.result()
        return ProvenSize(
            size=one.size,
            inputs=len(one.inputs[0]),
            codes=after.compared - before.compared,
            differing=after.differing - before.differing,
            largest=largest_difference(outputs, in_file),
        )

    def run_file(self, fed: Sequence[Array]) -> tuple[list[Array], dict[str, Array]]:
        """The file's own outputs, and {quantizer: its codes}."""
        names = (value.name for value in self.session.inference.get_inputs())
        found = self.session.run_on(dict(zip(names, fed, strict=True)))
        outputs, codes = found[: self.outputs], found[self.outputs :]
        return outputs, dict(zip(self.tensors, codes, strict=True))

    def result(self) -> Exactness:
        """What was counted so far."""
        from_kernels = comes_from_kernels(self.integers)
        return Exactness(
            samples=self.samples,
            provider=self.session.providers[0],
            tensors=tuple(
                TensorDifference(
                    name=label(name, self.integers),
                    elements=count.elements,
                    max_steps=count.max_steps,
                    differing=count.differing,
                    integer=from_kernels[name],
                )
                for name, count in self.counts.items()
            ),
        )


def largest_difference(outputs: Any, in_file: Sequence[Array]) -> float:
    """Of two values of any output."""
    pairs = zip(pytree.tree_leaves(outputs), in_file, strict=True)
    return max(float(np.abs(ours.float().cpu().numpy() - found).max()) for ours, found in pairs)


@dataclass
class Count:
    """Of one tensor over all batches."""

    elements: int = 0
    differing: int = 0
    max_steps: int = 0


class Judge(Interpreter):
    """Runs the integers on a batch, and on the file's codes from each tensor on that it has judged."""

    def __init__(
        self, network: fx.GraphModule, codes: Mapping[str, Array], counts: Mapping[str, Count]
    ) -> None:
        super().__init__(network)
        self.codes = codes
        self.counts = counts
        self.all_equal = True

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name not in self.codes:
            return value
        quantizer: Any = self.fetch_attr(str(n.target))
        return self.judged(value, self.codes[n.name], quantizer.step, self.counts[n.name])

    def judged(self, value: Tensor, in_file: Array, step: Step, count: Count) -> Tensor:
        """The file's values of the tensor, once they are compared."""
        codes = torch.from_numpy(in_file.astype(np.float32)).to(value.device)
        found = codes.sub_(step.zero).mul_(step.scale).reshape(value.shape)
        count.elements += value.numel()
        if not torch.equal(value, found):
            steps = ((value - found) / step.scale).round().abs()
            count.differing += int((steps > 0).sum())
            count.max_steps = max(count.max_steps, int(steps.max()))
            self.all_equal = False
        return found


def with_outputs(file: onnx.ModelProto, tensors: Iterable[str]) -> bytes:
    """The file with these tensors as outputs behind its own; ONNX Runtime finds their types."""
    copy = onnx.ModelProto()
    copy.CopyFrom(file)
    copy.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in tensors)
    return copy.SerializeToString()


def tensors_to_compare(integers: fx.GraphModule, there: Container[str]) -> list[str]:
    """The quantizers, in the order of the graph, whose codes the file holds.

    Of values that were only moved, those whose source it does not hold: it pads codes, say.
    """
    found: list[str] = []
    known: set[fx.Node] = set()  # compared, or moved from what is
    for node in integers.graph.nodes:
        quantizer = called_module(node, integers)
        if not isinstance(quantizer, IntegerActivation) or node.name not in there:
            continue
        if quantizer.saturates or not known.issuperset(float_inputs(node.all_input_nodes[0])):
            found.append(node.name)
        known.add(node)
    return found


def label(name: str, network: fx.GraphModule) -> str:
    """A quantized tensor in the user's words: the layer that made it, and its ReLU."""
    node = next(node for node in network.graph.nodes if node.name == name).all_input_nodes[0]
    if is_clip(node, network):
        return f"{_maker(node.all_input_nodes[0])}, {node.name}"
    return _maker(node)


def _maker(node: fx.Node) -> str:
    if node.op not in ("call_module", "placeholder"):
        return node.name
    return str(node.target).removeprefix("kernels.")
