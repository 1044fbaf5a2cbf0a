"""A network loaded into ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qdeploy.benchmark.inputs import TYPES
from qdeploy.benchmark.onnx_runtime import onnx_runtime
from qdeploy.benchmark.providers import CPU, PROVIDERS, absent, choose, create, in_words
from qdeploy.errors import QdeployError
from qdeploy.onnx_file import stored_bytes

if TYPE_CHECKING:
    import onnxruntime as ort

Array = np.ndarray[Any, np.dtype[np.float32]]
Images = np.ndarray[Any, np.dtype[Any]]

WHOLE = "Give a complete ONNX file; copy or export again one that was cut short."
WITHOUT_GRAPH = (
    "A CUDA graph holds what CUDA runs, and quantized files have nodes that the CPU runs: the "
    "DequantizeLinear of int32 biases. Leave the CUDA graph out."
)


@dataclass(frozen=True)
class Session:
    """A network, ready to run.

    inference   the session of ONNX Runtime.
    load_ms     the time that ONNX Runtime took to read and optimise the network.
    file_bytes  the size of the file, with weights that lie beside it.
    cuda_graph  whether runs are recorded as a CUDA graph and replayed.
    """

    inference: ort.InferenceSession
    load_ms: float
    file_bytes: int
    cuda_graph: bool = False

    def run(self, images: Images) -> Array:
        """The logits, float32 [N, classes], of `images` [N, C, H, W], float32 or uint8 as input_type.

        They lie in host memory: a GPU has finished when this returns.

        Errors: QdeployError if the images do not have the shape or type of the network's input, or it
        has several.
        """
        return self._checked_run(images)[0]

    def _checked_run(self, images: Images) -> list[Array]:
        """Of one input. Errors: QdeployError if its shape or type is another."""
        expected = self.input_shape
        if images.dtype != self.input_type or not _fits(images.shape, expected):
            raise QdeployError(
                f"the network takes {self.input_type} {_words(expected)}, "
                f"but was given {images.dtype} {_words(images.shape)}. "
                "Resize the images, or export the network for this size."
            )
        return self.run_on({self._input.name: images})

    def run_all(self, *arrays: Images) -> list[Array]:
        """All outputs, of all inputs in their order. Errors: QdeployError as `run` has them."""
        inputs = self.inference.get_inputs()
        if len(inputs) == 1 and inputs[0].type in TYPES:
            return self._checked_run(arrays[0])
        return self.run_on(dict(zip((value.name for value in inputs), arrays, strict=True)))

    def run_on(self, inputs: Mapping[str, Images]) -> list[Array]:
        """All outputs, of all inputs by name. Errors: QdeployError if ONNX Runtime cannot run the file."""
        try:
            found: list[Array] = self.inference.run(None, dict(inputs))
        except refusals() as error:
            raise cannot_run(error) from error
        return found

    @property
    def input_shape(self) -> tuple[int | str | None, ...]:
        """The shape that the file declares; a free dimension is its name, or None."""
        return tuple(self._input.shape)

    @property
    def input_type(self) -> np.dtype[Any]:
        """float32 for normalised images, uint8 for pixels."""
        return TYPES[self._input.type]

    @property
    def _input(self) -> ort.NodeArg:
        """The only input. Errors: QdeployError if there are others."""
        inputs = self.inference.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in TYPES:
            given = ", ".join(f"{i.name} {i.type} {_words(i.shape)}" for i in inputs) or "nothing"
            raise QdeployError(
                f"the network takes {given}; images alone can be given to one that has one input, "
                "tensor(float) or tensor(uint8) [N, C, H, W]"
            )
        return inputs[0]

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that are really registered, the preferred one first."""
        return tuple(self.inference.get_providers())

    @property
    def on_gpu(self) -> bool:
        """Whether images must get to a GPU, and outputs from there."""
        return self.providers[0] != CPU

    @property
    def metadata(self) -> dict[str, str]:
        """The custom metadata written in the file."""
        return dict(self.inference.get_modelmeta().custom_metadata_map)


def open_session(
    model: Path | bytes,
    provider: str = "auto",
    threads: int = 1,
    optimized: Path | None = None,
    profile: Path | None = None,
    beside: Path | None = None,
    cuda_graph: bool = False,
    as_written: bool = False,
) -> Session:
    """Loads an ONNX file, or the bytes of one, into ONNX Runtime.

    provider   "cpu", "cuda", "tensorrt", or "auto": CUDA where a GPU really works, else CPU.
               A provider that was named and does not work is an error, never a silent fallback.
    threads    how many threads work on one operator.
    optimized  also write the graph that ONNX Runtime made of the network to this path.
    profile    also time each kernel, for a file whose name begins with this path.
    beside     the folder of weights that are stored outside the bytes.
    cuda_graph record a run as one CUDA graph and replay it; takes on_device, and CUDA for each node.
    as_written compute each quantizer by itself, without ONNX Runtime's integer kernels.

    Errors: QdeployError for an unknown or absent provider, and for what is no network; for a CUDA graph
    with another provider than CUDA, or with nodes that it does not run.
    """
    choice = choose(provider)
    if cuda_graph and choice != "cuda":
        raise QdeployError(f"CUDA graphs need the provider cuda; {choice} was chosen here.")
    options = _options(threads)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        # A graph beyond protobuf's 2 GiB cannot be written in one file.
        outside = "session.optimized_model_external_initializers_file_name"
        options.add_session_config_entry(outside, f"{optimized.name}.data")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if beside is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(beside)
        )
    if as_written:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    start = time.perf_counter()
    inference = _load(model, PROVIDERS[choice], options, cuda_graph)
    load_ms = (time.perf_counter() - start) * 1e3
    if PROVIDERS[choice][0] not in inference.get_providers():
        raise absent(choice)
    file_bytes = len(model) if isinstance(model, bytes) else stored_bytes(model)
    return Session(inference, load_ms, file_bytes, cuda_graph)


def _options(threads: int) -> ort.SessionOptions:
    options = onnx_runtime().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Pools that spin between runs steal the cores of the sessions beside them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _load(
    model: Path | bytes, providers: list[str], options: ort.SessionOptions, cuda_graph: bool
) -> ort.InferenceSession:
    if isinstance(model, Path) and not model.is_file():
        raise QdeployError(f"{model} is no file. Give the path of an ONNX file.")
    source = model if isinstance(model, bytes) else str(model)
    try:
        return create(source, providers, options, cuda_graph)
    except refusals() as error:
        way_out = WITHOUT_GRAPH if cuda_graph else WHOLE
        raise QdeployError(
            f"ONNX Runtime {onnx_runtime().__version__} cannot load {_name(model)}: "
            f"{in_words(error)}. {way_out}"
        ) from error


def cannot_run(error: Exception) -> QdeployError:
    reason = in_words(error)
    own_zero_points = "zero point" in reason  # which channels have since 1.27
    way_out = "Take ONNX Runtime 1.27 or later" if own_zero_points else "Check what it is given"
    return QdeployError(
        f"ONNX Runtime {onnx_runtime().__version__} cannot run the network: {reason}. {way_out}."
    )


def refusals() -> tuple[type[Exception], ...]:
    """ONNX Runtime's answers to a file that is damaged, no network, or beyond this version."""
    status = onnx_runtime().capi.onnxruntime_pybind11_state
    return (
        status.Fail,
        status.InvalidArgument,
        status.InvalidGraph,
        status.InvalidProtobuf,
        status.NotImplemented,
        status.RuntimeException,
        RuntimeError,  # any of them, from a run with data on the device
    )


def _fits(shape: tuple[int, ...], expected: tuple[int | str | None, ...]) -> bool:
    return len(shape) == len(expected) and all(
        have == want or not isinstance(want, int)
        for have, want in zip(shape, expected, strict=True)
    )


def _name(model: Path | bytes) -> str:
    return str(model) if isinstance(model, Path) else "the network in memory"


def _words(shape: Sequence[int | str | None]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
