"""How many codes of LiteRT files differ from ONNX Runtime's: results/litert.json.

    python tools/litert_codes.py

Small networks of tests/, with every activation made an output, on 256 images: in LiteRT's default
(XNNPACK on the CPU) and in its own kernels, which compute in fixed point as its delegates for phones do.
tools/tables.py makes the table of docs/compatibility.md of the file.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from ai_edge_litert import interpreter
from onnx import helper, numpy_helper

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))

import exported_networks  # type: ignore[import-not-found]  # noqa: E402
import networks  # type: ignore[import-not-found]  # noqa: E402

import qdeploy  # noqa: E402
from qdeploy.deploy.export import finished, to_onnx  # noqa: E402
from qdeploy.deploy.litert.operators import translated  # noqa: E402

NETWORKS = "plain", "residual", "inverted_residual"
WIDTHS = {"W8A8": ("simqat", 8, 8), "W4A8": ("lsq", 4, 8), "W4A4": ("lsq", 4, 4)}
KERNELS = {
    "XNNPACK": interpreter.OpResolverType.AUTO,
    "own": interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
}
IMAGES = networks.images(256).numpy()


def main() -> None:
    versions = {name: metadata.version(name) for name in ("ai-edge-litert", "torch")}
    rows = [row(name, width) for name in NETWORKS for width in WIDTHS]
    found = {"versions": versions | {"onnxruntime": onnxruntime.__version__}, "rows": rows}
    (ROOT / "results" / "litert.json").write_text(json.dumps(found, indent=1) + "\n")


def row(name: str, width: str) -> dict[str, Any]:
    prepared = exported_networks.calibrated_by(networks.build(name), *WIDTHS[width])
    graph = to_onnx(qdeploy.convert(prepared), networks.images(2), target="litert")
    model, steps = tapped(finished(graph, False, {}))
    names = [one.name for one in model.graph.output]
    options = {"providers": ["CPUExecutionProvider"]}
    session = onnxruntime.InferenceSession(model.SerializeToString(), **options)
    expected = session.run(None, {"input": IMAGES})
    row: dict[str, Any] = {"network": name, "width": width}
    for kernels, resolver in KERNELS.items():
        codes = [
            np.rint(np.abs(values - reference) / steps[name])
            for name, values, reference in zip(names, run(model, resolver), expected, strict=True)
            if name in steps
        ]
        row["codes"] = sum(one.size for one in codes)
        row[kernels] = {
            "differing": sum(int(np.count_nonzero(one)) for one in codes),
            "steps": max(int(one.max()) for one in codes),
        }
    return row


def tapped(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, float]]:
    """The network with all its rounded values as outputs, and their steps."""
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    steps = {
        node.output[0]: float(constants[node.input[1]])
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] not in constants
    }
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in steps)
    return onnx.shape_inference.infer_shapes(model), steps


def run(model: onnx.ModelProto, resolver: Any) -> list[Any]:
    network = interpreter.Interpreter(
        model_content=translated(model), experimental_op_resolver_type=resolver
    )
    images = np.ascontiguousarray(np.moveaxis(IMAGES, 1, -1))
    index = network.get_input_details()[0]["index"]
    network.resize_tensor_input(index, images.shape)
    network.allocate_tensors()
    network.set_tensor(index, images)
    network.invoke()
    outputs = (network.get_tensor(one["index"]) for one in network.get_output_details())
    return [np.moveaxis(one, -1, 1) if one.ndim == 4 else one for one in outputs]


if __name__ == "__main__":
    main()
