"""ONNX Runtime's execution providers: which there are, and which really work here."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import onnx.parser

from qdeploy.benchmark.missing import BUILT_WITHOUT, unloadable, way_out
from qdeploy.benchmark.onnx_runtime import onnx_runtime
from qdeploy.errors import QdeployError

if TYPE_CHECKING:
    import onnxruntime as ort

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

# What each choice registers: a node goes to the first provider in the list that has a kernel.
PROVIDERS = {"cpu": [CPU], "cuda": [CUDA, CPU], "tensorrt": [TENSORRT, CUDA, CPU]}

PROBE = '<ir_version: 10, opset_import: ["": 21]> probe (float[1] x) => (float[1] y) {y = Relu(x)}'


def choose(provider: str) -> str:
    """The key of PROVIDERS that `provider` asks for; "auto" is CUDA where that works, else CPU.

    Errors: QdeployError if there is no such provider, or if it does not work on this machine.
    """
    if provider == "auto":
        return "cuda" if works("cuda") else "cpu"
    if provider not in PROVIDERS:
        raise QdeployError(
            f"there is no provider {provider!r}; choose one of auto, {', '.join(PROVIDERS)}."
        )
    if not works(provider):
        raise absent(provider)
    return provider


def works(provider: str) -> bool:
    """Whether `provider` ("cpu", "cuda" or "tensorrt") runs a network on this machine."""
    return why_not(provider) is None


@functools.cache
def why_not(provider: str) -> str | None:
    """What keeps `provider` from running on this machine, in ONNX Runtime's words or the system's.

    get_available_providers() lists what was compiled in, whether or not there is a GPU, so one
    operator is run to find out.
    """
    wanted = PROVIDERS[provider][0]
    _preload([wanted])
    if wanted not in onnx_runtime().get_available_providers():
        return BUILT_WITHOUT
    try:
        probe = create(onnx.parser.parse_model(PROBE).SerializeToString(), [wanted])
        probe.run(None, {"x": np.zeros(1, np.float32)})
    except Exception as error:  # a broken driver fails with whatever it likes
        return in_words(error)
    return None if wanted in probe.get_providers() else unloadable(wanted)


def absent(provider: str) -> QdeployError:
    """The error for a provider that was asked for by name and does not work."""
    there = ", ".join(name for name in PROVIDERS if works(name))
    reason = why_not(provider) or "ONNX Runtime left it out for this network"
    return QdeployError(
        f"the provider {provider!r} does not work on this machine; those that do: {there}. "
        f"The reason: {reason}. {way_out(provider, reason)}."
    )


def in_words(error: Exception) -> str:
    """What ONNX Runtime says, without its codes and the place in its sources."""
    text = str(error).split(" : ", 3)[-1]
    return re.sub(r"^\S+\.(cc|h):\d+ [^)]*\) ", "", text).strip().rstrip(".")


def create(
    source: str | bytes,
    providers: list[str],
    options: ort.SessionOptions | None = None,
    cuda_graph: bool = False,
) -> ort.InferenceSession:
    """A session of ONNX Runtime on a path or on the bytes of a network.

    A provider whose libraries are missing is left out without a word: look at get_providers().
    """
    _preload(providers)
    # In TF32, its default, the CUDA provider keeps 10 bits of each factor: on an H100 that changed a
    # quarter of all codes, and one prediction in seven of a 1-bit network.
    cuda = {"use_tf32": "0", "enable_cuda_graph": str(int(cuda_graph))}
    configured = [(name, cuda if name == CUDA else {}) for name in providers]
    with _quiet():
        # With its fallback on, a provider that fails is replaced by the CPU as well.
        return onnx_runtime().InferenceSession(
            source, options, providers=configured, enable_fallback=0
        )


def _preload(providers: list[str]) -> None:
    """Loads the libraries of CUDA and cuDNN that pip installed, if a provider needs them."""
    if providers[0] != CPU:
        with _quiet():
            onnx_runtime().preload_dlls()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences ONNX Runtime's own words on missing libraries: `absent` says it better."""
    ort = onnx_runtime()
    ort.set_default_logger_severity(4)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ort.set_default_logger_severity(2)
