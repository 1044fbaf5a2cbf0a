"""Why a provider is missing, and what its user can do."""

from __future__ import annotations

import ctypes
import importlib.metadata
import sys
from pathlib import Path

from qdeploy.benchmark.onnx_runtime import WITH_GPU, builds, instead_of, mixed, onnx_runtime

BUILT_WITHOUT = "this build of ONNX Runtime was made without it"


def unloadable(provider: str) -> str:
    """Which library is missing of those that a provider is linked with, as the system says it."""
    name = provider.removesuffix("ExecutionProvider").lower()
    windows = sys.platform == "win32"
    file = f"onnxruntime_providers_{name}.dll" if windows else f"libonnxruntime_providers_{name}.so"
    try:
        ctypes.CDLL(str(Path(onnx_runtime().__file__).parent / "capi" / file))
    except OSError as error:
        return str(error)
    return "ONNX Runtime could not start it"


def way_out(provider: str, reason: str) -> str:
    """What makes `provider`, "cuda" or "tensorrt", work where `reason` keeps it from working."""
    names = builds()
    if len(names) > 1:
        return mixed(names)
    if reason == BUILT_WITHOUT:
        return f"Take a build that has it: {instead_of(names, WITH_GPU)}"
    return ". ".join(_needs(provider))


def _needs(provider: str) -> list[str]:
    ort = onnx_runtime()
    major = ort.cuda_version.partition(".")[0]
    needs = [
        f"ONNX Runtime {ort.__version__} needs an NVIDIA GPU, a driver for CUDA {major}, and the "
        f"libraries of CUDA {major} and cuDNN 9, which {WITH_GPU} brings"
    ]
    if provider == "tensorrt":
        needs.append("It needs the libraries of TensorRT 10 on the library path as well")
    for name in foreign_cudnn(major):
        needs.append(
            f"{name} is installed, which a PyTorch for another CUDA brings, and all cuDNN lies in the "
            f"same folder: install PyTorch for CUDA {major}"
        )
    return needs


def foreign_cudnn(major: str) -> list[str]:
    """Installed packages of cuDNN for another CUDA; those for all CUDAs share one folder."""
    found = {package.name or "" for package in importlib.metadata.distributions()}
    others = found - {f"nvidia-cudnn-cu{major}"}
    return sorted(name for name in others if name.startswith("nvidia-cudnn-cu"))
