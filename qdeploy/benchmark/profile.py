"""What ONNX Runtime ran, kernel by kernel, and how long each took: from its own profile.

Fusions rename nodes, values and weights, but the name of a fused node holds that of the node it
began with. So a copy of the file is run in which node number 7 is called "#7#". Only the blocked
float kernels are called after a value instead, and are found by that.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qdeploy.benchmark.graph import Graph
from qdeploy.benchmark.inputs import Shapes, random_inputs
from qdeploy.benchmark.latency import WARM_UP_RUNS, run_in_turns
from qdeploy.benchmark.providers import CPU
from qdeploy.benchmark.runtime import Session
from qdeploy.record import Kernel

ROUNDS = 50
SECONDS = 0.5

SUFFIX = "_kernel_time"
LABEL = re.compile(r"#(\d+)#")
BLOCKED = re.compile(r"(.+)_nchwc(?:_token_\d+)?$")


def labelled(model: onnx.ModelProto) -> bytes:
    """The network with nodes named by their numbers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for index, node in enumerate(copy.graph.node):
        node.name = f"#{index}#"
    return copy.SerializeToString()


def origin(name: str, graph: Graph) -> int | None:
    """The number of the file's node that a kernel of this name began with."""
    label = LABEL.search(name)
    if label is not None:
        return int(label[1])
    blocked = BLOCKED.match(name)
    return graph.product_before(blocked[1]) if blocked is not None else None


Runs = dict[str, list[dict[str, Any]]]


def run_profiled(session: Session, batch: int, shapes: Shapes | None = None) -> Runs:
    """Runs a session that was opened with a profile: {kernel's name: its events, run by run}."""
    inputs = random_inputs(session.inference, batch, shapes)
    run_in_turns([lambda: session.run_on(inputs)], ROUNDS, SECONDS)
    events = json.loads(Path(session.inference.end_profiling()).read_text())
    kernels: Runs = {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(SUFFIX):
            kernels.setdefault(event["name"].removesuffix(SUFFIX), []).append(event)
    return {name: runs[WARM_UP_RUNS:] for name, runs in kernels.items()}


def kernels_of(runs: Runs, graph: Graph) -> list[tuple[Kernel, int | None]]:
    """Each kernel in the order of execution, with the number of the node it began with."""
    times = [float(np.median([event["dur"] for event in events])) for events in runs.values()]
    whole = sum(times) or 1.0
    names = graph.names()
    found = []
    for (name, events), time in zip(runs.items(), times, strict=True):
        event, place = events[0]["args"], origin(name, graph)
        kernel = Kernel(
            layer=None if place is None else names[place],
            operator=event["op_name"],
            provider=event["provider"],
            reads=_first_type(event["input_type_shape"]),
            writes=_first_type(event["output_type_shape"]),
            ms=time / 1e3,
            share=time / whole if event["provider"] == CPU else None,
        )
        found.append((kernel, place))
    return found


def _first_type(tensors: list[dict[str, list[int]]]) -> str:
    return next(iter(tensors[0]), "") if tensors else ""
