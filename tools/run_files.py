"""Runs files in one runtime, for tools/try_runtimes.py, by the Python of an environment with it and numpy.

    python run_files.py RUNTIME OUTPUT '{"option": ...}' CASE...

A case is a folder with model.onnx and inputs.json. For each, OUTPUT/CASE gets the outputs as float32 bytes,
and stdout one line of JSON: their shapes, how many products ran in integers and in float if the runtime
tells, or the error.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np

TOLD = ("layerType", "runtimePrecision")  # what OpenVINO says of each kernel


def onnxruntime(
    model: str, feeds: dict[str, Any], folder: str, **options: Any
) -> tuple[list[Any], dict[str, int] | None]:
    """Leaves the graph as ONNX Runtime runs it in `folder`, for the caller to count its kernels."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    settings.optimized_model_filepath = os.path.join(folder, "optimized.onnx")
    for key, value in options.items():
        settings.add_session_config_entry(key, value)
    session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    return session.run(None, feeds), None


def openvino(
    model: str, feeds: dict[str, Any], folder: str, **options: Any
) -> tuple[list[Any], dict[str, int] | None]:
    import openvino as ov

    core = ov.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, **options}
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    kernels = {"integer": 0, "float": 0}
    for node in compiled.get_runtime_model().get_ops():
        info = {key: value.astype(str) for key, value in node.get_rt_info().items() if key in TOLD}
        if info.get("layerType") in ("Convolution", "Deconvolution", "FullyConnected", "MatMul"):
            integer = info.get("runtimePrecision", "") in ("i8", "u8")
            kernels["integer" if integer else "float"] += 1
    found = compiled(feeds)
    return [found[output] for output in compiled.outputs], kernels


def reference(
    model: str, feeds: dict[str, Any], folder: str
) -> tuple[list[Any], dict[str, int] | None]:
    import onnx
    from onnx.reference import ReferenceEvaluator

    newest = onnx.load(model)
    # The evaluator has DequantizeLinear from 19 on; files of qdeploy mean the same up to 21.
    newest.opset_import[0].version = 21
    return list(ReferenceEvaluator(newest).run(None, feeds)), None


def opencv(
    model: str, feeds: dict[str, Any], folder: str
) -> tuple[list[Any], dict[str, int] | None]:
    import cv2

    network = cv2.dnn.readNetFromONNX(model)
    for name, value in feeds.items():
        network.setInput(value, name)
    return list(network.forward(network.getUnconnectedOutLayersNames())), None


def tract(
    model: str, feeds: dict[str, Any], folder: str
) -> tuple[list[Any], dict[str, int] | None]:
    import tract as tr

    runnable = tr.onnx().load(model).into_model().into_runnable()
    return [value.to_numpy() for value in runnable.run(list(feeds.values()))], None


RUNTIMES = (onnxruntime, openvino, reference, opencv, tract)


def main(runtime: str, output: str, options: str, *cases: str) -> None:
    run = {function.__name__: function for function in RUNTIMES}[runtime]
    for case in cases:
        folder = os.path.join(output, case)
        os.makedirs(folder, exist_ok=True)
        row: dict[str, Any] = {"case": case}
        try:
            found, kernels = run(
                case + "/model.onnx", feeds_of(case), folder, **json.loads(options)
            )
            for number, value in enumerate(found):
                np.asarray(value, np.float32).tofile(os.path.join(folder, f"{number}.bin"))
            row["outputs"] = [list(np.shape(value)) for value in found]
            row["kernels"] = kernels
        except Exception as error:  # whatever a runtime fails with is what is looked for
            row["error"] = f"{type(error).__name__}: {error}"
        print("\n" + json.dumps(row), flush=True)


def feeds_of(case: str) -> dict[str, Any]:
    with open(case + "/inputs.json") as file:
        entries = json.load(file)
    return {
        entry["name"]: np.fromfile(case + "/" + entry["file"], entry["dtype"]).reshape(
            entry["shape"]
        )
        for entry in entries
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
