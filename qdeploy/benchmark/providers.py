"""ONNX Runtime's execution providers: which there are, and which really work here."""

import contextlib
import functools
import io
from collections.abc import Iterator

import numpy as np
import onnx.parser
import onnxruntime as ort

from qdeploy.errors import QdeployError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

# What each choice registers: a node goes to the first provider in the list that has a kernel.
PROVIDERS = {"cpu": [CPU], "cuda": [CUDA, CPU], "tensorrt": [TENSORRT, CUDA, CPU]}

# By default the CUDA provider multiplies in TF32, which keeps 10 bits of each factor: on an H100 that
# changed a quarter of all codes, and one prediction in seven of a 1-bit network.
OPTIONS = {CUDA: {"use_tf32": "0"}}

NEEDS = {
    "cpu": "Install onnxruntime",
    "cuda": "It needs an NVIDIA GPU with its driver, CUDA 13 and cuDNN 9: "
    'pip install "onnxruntime-gpu[cuda,cudnn]"',
    "tensorrt": "It needs what cuda needs, and the TensorRT 10 libraries on the library path",
}

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


@functools.cache
def works(provider: str) -> bool:
    """Whether `provider` ("cpu", "cuda" or "tensorrt") runs a network on this machine.

    get_available_providers() lists what was compiled in, whether or not there is a GPU, so one
    operator is run to find out.
    """
    wanted = PROVIDERS[provider][0]
    if wanted not in ort.get_available_providers():
        return False
    try:
        probe = create(onnx.parser.parse_model(PROBE).SerializeToString(), [wanted])
        probe.run(None, {"x": np.zeros(1, np.float32)})
    except Exception:  # a broken driver fails with whatever it likes; each means no
        return False
    return wanted in probe.get_providers()


def absent(provider: str) -> QdeployError:
    """The error for a provider that was asked for by name and does not work."""
    there = ", ".join(name for name in PROVIDERS if works(name))
    return QdeployError(
        f"the provider {provider!r} does not work on this machine; those that do: {there}. "
        f"{NEEDS[provider]}."
    )


def create(
    source: str | bytes, providers: list[str], options: ort.SessionOptions | None = None
) -> ort.InferenceSession:
    """A session of ONNX Runtime on a path or on the bytes of a network.

    A provider whose libraries are missing is left out without a word: look at get_providers().
    """
    with _quiet():
        if providers[0] != CPU:
            ort.preload_dlls()
        configured = [(name, OPTIONS.get(name, {})) for name in providers]
        # With its fallback on, a provider that fails is replaced by the CPU as well.
        return ort.InferenceSession(source, options, providers=configured, enable_fallback=0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences ONNX Runtime's own words on missing libraries: `absent` says it better."""
    ort.set_default_logger_severity(4)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        ort.set_default_logger_severity(2)
