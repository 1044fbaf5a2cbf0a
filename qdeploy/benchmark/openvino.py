"""OpenVINO, a second runtime for the same file."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from qdeploy.benchmark.runtime import Array, Images
from qdeploy.errors import QdeployError


def load(model: Path) -> tuple[str, Callable[[Images], Array]]:
    """OpenVINO's name with its version, and the file's logits [N, classes] of images [N, C, H, W].

    On the CPU; what is not quantized is computed in float32, also where the processor has
    narrower floats. Raises QdeployError if OpenVINO is missing or cannot read the file.
    """
    try:
        openvino = import_module("openvino")
    except ImportError:
        raise QdeployError(
            "target openvino checks the file with OpenVINO, which is not installed: "
            'pip install "qdeploy[openvino]", or export with --target cpu, which OpenVINO reads as well'
        ) from None
    try:
        compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        raise QdeployError(f"OpenVINO cannot read {model}: {error}") from error
    version = openvino.__version__.partition("-")[0]
    return f"OpenVINO {version}", lambda images: compiled(images)[0]
