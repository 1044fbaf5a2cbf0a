"""Which axes of a file's inputs are open, and their names there: the batch, and what is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from torch import Tensor

from qdeploy.errors import QdeployError

BATCH = "batch"
# What the last axes of an input of so many are called, behind batch and channels.
NAMES = {3: ("length",), 4: ("height", "width"), 5: ("depth", "height", "width")}

Dynamic = Sequence[str] | Mapping[str, Mapping[int, str]]
OpenAxes = tuple[dict[int, str], ...]  # of each input: {axis: its name}


def asked_axes(dynamic: Dynamic | None, names: Sequence[str], inputs: Sequence[Tensor]) -> OpenAxes:
    """The axes that the user asks for, beside the batch.

    dynamic   names of the last axes of the only input, such as ["height", "width"]; or
              {input: {axis: name}}, where axes of one name have one size
    names     of the inputs

    Errors: QdeployError for an input, an axis or a name that there is not, and for sizes that differ.
    """
    if not dynamic:
        return tuple({} for _ in names)
    if not isinstance(dynamic, Mapping):
        dynamic = {names[0]: _by_name(dynamic, names, inputs)}
    by_input = dict(zip(names, inputs, strict=True))
    for name, axes in dynamic.items():
        if name not in by_input or not isinstance(axes, Mapping):
            raise _refused(dynamic, f"{{input: {{axis: name}}}} of {', '.join(names)}")
        for axis, called in axes.items():
            _check_axis(dynamic, axis, called, name, by_input[name])
    found = tuple(
        {axis % x.ndim: called for axis, called in dynamic.get(name, {}).items()}
        for name, x in by_input.items()
    )
    _check_sizes(found, inputs)
    return found


def with_batch(asked: OpenAxes, batch: Sequence[int | None]) -> OpenAxes:
    """The same with the batch axis of each input."""
    pairs = zip(asked, batch, strict=True)
    return tuple({**axes} if axis is None else {axis: BATCH, **axes} for axes, axis in pairs)


def open_axes_of(model: onnx.ModelProto) -> OpenAxes:
    """Those of a file's inputs."""
    shapes = (value.type.tensor_type.shape.dim for value in model.graph.input)
    return tuple(
        {axis: size.dim_param for axis, size in enumerate(shape) if size.dim_param}
        for shape in shapes
    )


def as_in(model: onnx.ModelProto) -> dict[str, Any]:
    """The options of `export` that give a network the names and the open axes of a file."""
    takes, gives = (
        [value.name for value in ends] for ends in (model.graph.input, model.graph.output)
    )
    named = dict(zip(takes, open_axes_of(model), strict=True))
    batch = {
        name: next((a for a, n in own.items() if n == BATCH), None) for name, own in named.items()
    }
    sizes = {name: {a: n for a, n in own.items() if n != BATCH} for name, own in named.items()}
    return {"input_names": takes, "output_names": gives, "dynamic": sizes, "batch_axes": batch}


def names_of(axes: OpenAxes) -> list[str]:
    """Of the open axes, without the batch."""
    return list(dict.fromkeys(name for each in axes for name in each.values() if name != BATCH))


def _by_name(
    given: Sequence[str], names: Sequence[str], inputs: Sequence[Tensor]
) -> dict[int, str]:
    """{axis: name} of the only input."""
    if len(names) > 1:
        raise _refused(
            given,
            f"for a network of several inputs {{input: {{axis: name}}}} of {', '.join(names)}",
        )
    known = NAMES.get(inputs[0].ndim, ())
    if isinstance(given, str) or not set(given) <= set(known):
        allowed = f"a list of {', '.join(known)}" if known else "{input: {axis: name}}"
        raise _refused(given, f"for an input of {inputs[0].ndim} axes {allowed}")
    return {inputs[0].ndim - len(known) + known.index(name): name for name in given}


def _check_axis(dynamic: Dynamic, axis: Any, called: Any, name: str, x: Tensor) -> None:
    if not isinstance(axis, int) or not -x.ndim <= axis < x.ndim:
        raise _refused(
            dynamic, f"axes of {name}, which is {[*x.shape]}: {', '.join(map(str, range(x.ndim)))}"
        )
    if not isinstance(called, str) or not called.isidentifier():
        raise _refused(dynamic, "names of letters, digits and _")
    if called == BATCH:
        raise _refused(
            dynamic,
            f"any other name than {BATCH}: the batch is open anyway, and batch_axes says where it lies",
        )


def _check_sizes(found: OpenAxes, inputs: Sequence[Tensor]) -> None:
    sizes: dict[str, int] = {}
    for axes, x in zip(found, inputs, strict=True):
        for axis, called in axes.items():
            if sizes.setdefault(called, x.shape[axis]) != x.shape[axis]:
                raise QdeployError(
                    f"dynamic calls axes of {sizes[called]} and of {x.shape[axis]} {called}, and axes of one "
                    "name have one size; give each a name of its own"
                )


def _refused(given: object, allowed: str) -> QdeployError:
    return QdeployError(f"dynamic is {given!r}; allowed: {allowed}")
