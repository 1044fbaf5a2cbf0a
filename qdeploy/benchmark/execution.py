"""What ONNX Runtime made of a file: operators, providers, kernels, and coverage."""

import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import onnx

from qdeploy.benchmark.coverage import coverage, products_of
from qdeploy.benchmark.graph import Graph, is_foreign
from qdeploy.benchmark.inputs import Shapes
from qdeploy.benchmark.profile import kernels_of, labelled, run_profiled
from qdeploy.benchmark.runtime import Session, open_session
from qdeploy.onnx_file import read
from qdeploy.record import Placement


def placement(
    model: Path,
    provider: str = "auto",
    file: str | None = None,
    threads: int = 1,
    batch: int = 1,
    shapes: Shapes | None = None,
) -> Placement:
    """Loads `model` once more, runs it on `batch` samples, reads what ONNX Runtime made of it.

    `file` is its label; `shapes`: {input: shape}, where it leaves sizes open.
    Errors: as open_session has them.
    """
    source = read(model)
    graph = Graph(source, model.parent)
    engines = provider == "tensorrt"  # they cannot be looked into or written to a file
    with tempfile.TemporaryDirectory() as folder:
        optimized = None if engines else Path(folder) / "optimized.onnx"
        session = open_session(
            labelled(source), provider, threads, optimized, Path(folder) / "profile", model.parent
        )
        operators = _count(read(optimized).graph.node) if optimized else None
        ran = kernels_of(run_profiled(session, batch, shapes), graph)
    products = () if engines else products_of(graph, ran)
    return Placement(
        file or model.name,
        operators,
        _providers(session),
        tuple(kernel for kernel, _ in ran),
        products,
        None if engines else coverage(products),
    )


def _providers(session: Session) -> dict[str, dict[str, int]] | None:
    if not hasattr(session.inference, "get_provider_graph_assignment_info"):
        return None
    counts: dict[str, Counter[str]] = {}
    for part in session.inference.get_provider_graph_assignment_info():
        counts.setdefault(part.ep_name, Counter()).update(_count(part.get_nodes()))
    return {provider: dict(operators) for provider, operators in counts.items()}


def _count(nodes: Iterable[onnx.NodeProto]) -> dict[str, int]:
    """{operator: count}, the most frequent first; ONNX Runtime's own nodes have the same fields."""
    names = (f"{n.domain}::{n.op_type}" if is_foreign(n.domain) else n.op_type for n in nodes)
    return dict(Counter(names).most_common())
