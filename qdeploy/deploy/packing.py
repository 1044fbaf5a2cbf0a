"""Storing integer codes in as many bits as they need, with operators that ONNX Runtime folds at load.

No ONNX type holds 1-bit or ternary weights, and INT4 and INT2 lose the integer kernels. Here the
codes lie in a uint8 initialiser, and a few standard operators turn them back into what they were:
int8 in our own files, also uint8 or 4 bits in those of other tools. All their inputs are constants,
so the runtime computes them once, at load, and then runs its kernels as if the codes were in the file.

Two forms, both exact; `pack` takes the smaller one:

digits    each byte, or word of 16 bits, holds k digits of base n (n levels, n^k <= 256 or 65536): a
          byte 8 one-bit codes, 5 ternary, 4 two-bit, 2 four-bit; a word twice as many, or 5
          three-bit, 3 five-bit. Read back through a table [n^k, k] of all bytes or words, so any
          levels. Each costs a look into the table, so many codes lie in words.
windows   6 bits a code: 6 bytes hold 8 codes end to end. Read back as the two bytes that a code
          touches, shifted and masked. For evenly spaced levels.

Windows take long to load, and much memory (docs/inference.md). So codes of 7 bits stay as they are,
and those of 3 and 5 bits take a fifteenth more than they could.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from qdeploy.deploy.edits import constant

Codes = npt.NDArray[np.int8 | np.uint8]  # or of 4 bits, which NumPy itself does not name
Bytes = npt.NDArray[np.uint8 | np.uint16]

# Types of weights, and those in which packing computes them.
COMPUTED_AS = {
    ir.DataType.INT8: ir.DataType.INT8,
    ir.DataType.UINT8: ir.DataType.UINT8,
    ir.DataType.INT4: ir.DataType.INT8,
    ir.DataType.UINT4: ir.DataType.UINT8,
}


@dataclass(frozen=True)
class Digits:
    """Base-n digits, a group of them in each word of 8 or 16 bits, the first in the lowest place."""

    levels: tuple[int, ...]
    type: ir.DataType = ir.DataType.INT8
    word: int = 8

    @property
    def group(self) -> int:
        """How many codes are packed together."""
        return int(np.floor(self.word / np.log2(max(2, len(self.levels))) + 1e-9))

    def file_size(self, count: int) -> int:
        """Bytes in the file for `count` codes, with about 200 for the nodes."""
        return -(-count // self.group) * self.word // 8 + 200

    @property
    def shared_size(self) -> int:
        """Bytes of the nodes that make the table, for all weights of these levels together."""
        return 600 if self.is_two_bytes else 300

    @property
    def is_two_bytes(self) -> bool:
        """Whether a word holds the digits of two bytes, one behind the other."""
        return self.word == 16 and self.group % 2 == 0

    def pack(self, codes: Codes) -> Bytes:
        """uint8 or uint16 [ceil(count / k)]; the last word is filled up with the lowest level."""
        n, k = len(self.levels), self.group
        digits = np.searchsorted(self.levels, codes.ravel())
        padded = np.pad(digits, (0, -len(digits) % k)).reshape(-1, k)
        return (padded * n ** np.arange(k)).sum(1).astype(f"uint{self.word}")

    def shared_nodes(self, graph: ir.Graph) -> list[ir.Node]:
        """Makes the table [n^k, k] of the codes of every word at load: a seventh of its size in the file.

        That of words which hold two bytes each has any two rows of the table of bytes side by side.
        """
        if not self.is_two_bytes:
            return self._table(self.group, graph)
        half = self.group // 2
        rows = len(self.levels) ** half
        table = self._table(half, graph)
        column = ir.node(
            "Reshape", [table[-1].outputs[0], constant(graph, np.array([-1, 1, half]))]
        )
        square = constant(graph, np.array([rows, rows, half]))
        low, high = (ir.node("Expand", [x.outputs[0], square]) for x in (table[-1], column))
        joined = ir.node("Concat", [low.outputs[0], high.outputs[0]], {"axis": 2})
        flat = ir.node("Reshape", [joined.outputs[0], constant(graph, np.array([-1, self.group]))])
        return [*table, column, low, high, joined, flat]

    def _table(self, k: int, graph: ir.Graph) -> list[ir.Node]:
        """Makes the table [n^k, k] of the levels of all words of k digits, place by place."""
        n = len(self.levels)
        bounds = [constant(graph, np.int32(bound)) for bound in (0, n**k, 1)]
        words = ir.node("Range", bounds)
        places = constant(graph, (n ** np.arange(k, dtype=np.int32))[:, None])
        shifted = ir.node("Div", [words.outputs[0], places])
        digits = ir.node("Mod", [shifted.outputs[0], constant(graph, np.int32(n))])
        levels = constant(graph, np.asarray(self.levels, self.type.numpy()))
        codes = ir.node("Gather", [levels, digits.outputs[0]])
        return [words, shifted, digits, codes, ir.node("Transpose", [codes.outputs[0]])]

    def nodes(self, packed: ir.Value, shared: list[ir.Node], graph: ir.Graph) -> list[ir.Node]:
        index = ir.node("Cast", [packed], {"to": ir.DataType.INT32})
        return [index, ir.node("Gather", [shared[-1].outputs[0], index.outputs[0]])]


@dataclass(frozen=True)
class Windows:
    """`bits` a code, end to end: 8 codes in `bits` bytes. levels = first + step * (0 .. 2^bits - 1)."""

    bits: int
    first: int
    step: int
    type: ir.DataType = ir.DataType.INT8

    def file_size(self, count: int) -> int:
        """Bytes in the file for `count` codes, with about 700 for the nodes and their constants."""
        return -(-count // 8) * self.bits + 700

    shared_size = 0
    group = 8

    def pack(self, codes: Codes) -> Bytes:
        """uint8 [ceil(count / 8), bits]."""
        numbers = (codes.ravel().astype(np.int64) - self.first) // self.step
        rows = np.pad(numbers, (0, -len(numbers) % 8)).reshape(-1, 8)
        bits = rows[:, :, None] >> np.arange(self.bits) & 1
        return np.packbits(bits.reshape(len(rows), -1).astype(np.uint8), axis=1, bitorder="little")

    def shared_nodes(self, graph: ir.Graph) -> list[ir.Node]:
        return []

    def nodes(self, packed: ir.Value, shared: list[ir.Node], graph: ir.Graph) -> list[ir.Node]:
        byte, bit = np.divmod(self.bits * np.arange(8), 8)  # where each of the 8 codes starts
        cast = ir.node("Cast", [packed], {"to": ir.DataType.INT32})
        low = ir.node("Gather", [cast.outputs[0], constant(graph, byte)], {"axis": 1})
        next_byte = constant(graph, np.minimum(byte + 1, self.bits - 1))
        high = ir.node("Gather", [cast.outputs[0], next_byte], {"axis": 1})
        raised = ir.node("Mul", [high.outputs[0], constant(graph, np.int32(256))])
        window = ir.node("Add", [low.outputs[0], raised.outputs[0]])
        shifted = ir.node("Div", [window.outputs[0], constant(graph, (2**bit).astype(np.int32))])
        number = ir.node("Mod", [shifted.outputs[0], constant(graph, np.int32(2**self.bits))])
        scaled = ir.node("Mul", [number.outputs[0], constant(graph, np.int32(self.step))])
        code = ir.node("Add", [scaled.outputs[0], constant(graph, np.int32(self.first))])
        result = ir.node("Cast", [code.outputs[0]], {"to": self.type})
        return [cast, low, high, raised, window, shifted, number, scaled, code, result]


Packing = Digits | Windows

# Making a row of the table of words takes as long as so many looks into it.
LOOKS_A_ROW = 8


def plan(weights: Sequence[Codes]) -> list[Packing | None]:
    """The packing of each weight of a graph; None where it is smaller as it is."""
    chosen = [choose(codes) for codes in weights]
    counts: Counter[Packing | None] = Counter()
    for codes, packing in zip(weights, chosen, strict=True):
        counts[packing] += codes.size
    chosen = [in_words(packing, counts[packing]) for packing in chosen]
    saved: Counter[Packing] = Counter()
    for codes, packing in zip(weights, chosen, strict=True):
        if packing is not None:
            saved[packing] += saving(codes, packing)
    # A table is stored once for all weights of the same levels; together they must earn it.
    return [p if p is not None and saved[p] > p.shared_size else None for p in chosen]


def in_words(packing: Packing | None, count: int) -> Packing | None:
    """Bytes become words of 16 bits where `count` codes fill so many that their table earns its time."""
    if not isinstance(packing, Digits) or packing.word == 16:
        return packing
    wider = replace(packing, word=16)
    fits = wider.group == 2 * packing.group  # else a code would take more bits
    rows = len(wider.levels) ** wider.group
    return wider if fits and count > LOOKS_A_ROW * rows * wider.group else packing


def saving(codes: Codes, packing: Packing) -> int:
    """Bytes by which a weight gets smaller, without what it shares with others."""
    stored = math.ceil(codes.size * ir.DataType.from_numpy(codes.dtype).itemsize)
    return stored - packing.file_size(codes.size)


def choose(codes: Codes) -> Packing | None:
    """The smallest packing of one weight, without what it shares with others."""
    kind = COMPUTED_AS.get(ir.DataType.from_numpy(codes.dtype))
    if kind is None or not codes.size:
        return None
    levels = tuple(int(level) for level in np.unique(codes.astype(kind.numpy())))
    choices: list[Packing] = [Digits(levels, kind, word) for word in (8, 16) if len(levels) <= 40]
    windows = _windows(levels, kind)
    if windows is not None:
        choices.append(windows)
    best = max(choices, key=lambda packing: saving(codes, packing), default=None)
    return best if best is not None and saving(codes, best) > 0 else None


def _windows(levels: tuple[int, ...], kind: ir.DataType) -> Windows | None:
    steps = np.gcd.reduce(np.diff(levels)) if len(levels) > 1 else 1
    bits = max(1, ((levels[-1] - levels[0]) // int(steps)).bit_length())
    return Windows(bits, levels[0], int(steps), kind) if bits == 6 else None


# Bytes of the nodes that make zeros at load.
ZEROS_SIZE = 65


def pack(model: ir.Model) -> None:
    """Replaces each weight by its packed form, and zeros by their number, in place.

    Values and shapes stay the same. Precondition: simplified already; a simplifier would fold the
    packing back into int8.
    """
    graph = model.graph
    _pack_zeros(graph)
    first = graph[0]
    weights = [value for value in graph.initializers.values() if _is_weight(value)]
    shared, unpacking = unpacked(weights, graph)
    graph.insert_before(first, shared)
    for weight, nodes in unpacking.items():
        graph.insert_before(first, nodes)
        weight.replace_all_uses_with(nodes[-1].outputs[0])
        del graph.initializers[weight.name]  # type: ignore[arg-type]


def _pack_zeros(graph: ir.Graph) -> None:
    """The zero points of biases, int32 [out], are made at load where they are long."""
    for value in list(graph.initializers.values()):
        zeros = value.const_value
        if value.dtype != ir.DataType.INT32 or zeros is None or zeros.nbytes <= ZEROS_SIZE:
            continue
        if not zeros.numpy().any():
            shape = constant(graph, np.array(zeros.shape.numpy()))
            attributes = {"value": ir.tensor(np.zeros(1, np.int32))}
            made = ir.node("ConstantOfShape", [shape], attributes)
            made.outputs[0].type, made.outputs[0].shape = value.type, value.shape
            graph.insert_before(graph[0], made)
            value.replace_all_uses_with(made.outputs[0])
            del graph.initializers[value.name]  # type: ignore[arg-type]


def _is_weight(value: ir.Value) -> bool:
    """True for codes [out, ...]; zero points have one dimension."""
    return value.dtype in COMPUTED_AS and value.shape is not None and value.shape.rank() > 1


def unpacked(
    weights: Sequence[ir.Value], graph: ir.Graph
) -> tuple[list[ir.Node], dict[ir.Value, list[ir.Node]]]:
    """The nodes that make what weights share, and those that make each weight that is to be packed.

    Their constants are in the graph, they themselves not yet. The last of a weight's nodes gives it.
    """
    arrays = [weight.const_value.numpy() for weight in weights]  # type: ignore[union-attr]
    plans = plan(arrays)
    shared = {packing: packing.shared_nodes(graph) for packing in plans if packing}
    nodes = {
        weight: _nodes(weight, codes, packing, shared[packing], graph)
        for weight, codes, packing in zip(weights, arrays, plans, strict=True)
        if packing is not None
    }
    return [node for made in shared.values() for node in made], nodes


def _nodes(
    weight: ir.Value,
    codes: Codes,
    packing: Packing,
    shared: list[ir.Node],
    graph: ir.Graph,
) -> list[ir.Node]:
    """What computes the weight from its packed bytes."""
    packed = packing.pack(codes.astype(packing.type.numpy()))
    nodes = packing.nodes(constant(graph, packed), shared, graph)
    if codes.size % packing.group:  # the last group is filled up
        flat = ir.node("Reshape", [nodes[-1].outputs[0], constant(graph, np.array([-1]))])
        start, end = (constant(graph, np.array([bound])) for bound in (0, codes.size))
        nodes += [flat, ir.node("Slice", [flat.outputs[0], start, end])]
    shape = constant(graph, np.array(codes.shape))
    nodes.append(ir.node("Reshape", [nodes[-1].outputs[0], shape]))
    if weight.dtype != packing.type:
        nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], {"to": weight.dtype}))
    result = nodes[-1].outputs[0]
    result.type, result.shape = weight.type, weight.shape
    return nodes
