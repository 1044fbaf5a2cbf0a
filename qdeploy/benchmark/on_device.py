"""Runs whose inputs and outputs stay on the device that a session computes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qdeploy.benchmark.onnx_runtime import onnx_runtime
from qdeploy.benchmark.runtime import Array, Images, Session, cannot_run, refusals

if TYPE_CHECKING:
    import onnxruntime as ort

UNRECORDED = -1  # instead of the number of a CUDA graph


@dataclass(frozen=True)
class RunOnDevice:
    """A network with inputs and outputs that lie on its device; call it to run.

    inputs   the memory that `binding` points to.
    options  say which CUDA graph is recorded and replayed, in a session that has some.
    """

    session: Session
    binding: ort.IOBinding
    inputs: tuple[ort.OrtValue, ...]
    options: ort.RunOptions

    def __call__(self) -> None:
        """Returns when the outputs are computed. Errors: as Session.run_on has them."""
        try:
            self.session.inference.run_with_iobinding(self.binding, self.options)
        except refusals() as error:
            raise cannot_run(error) from error
        self.binding.synchronize_outputs()

    def outputs(self) -> list[Array]:
        """A copy of the last run's outputs in host memory."""
        found: list[Array] = self.binding.copy_outputs_to_cpu()
        return found


def on_device(session: Session, inputs: Mapping[str, Images], graph: int) -> RunOnDevice:
    """Copies the inputs to the session's device and runs it once, for room for the outputs.

    A CUDA graph holds addresses and shapes: inputs of another shape need another `graph`, above 0.
    """
    device = "cuda" if session.on_gpu else "cpu"
    binding = session.inference.io_binding()
    values = {
        name: onnx_runtime().OrtValue.ortvalue_from_numpy(array, device, 0)
        for name, array in inputs.items()
    }
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    names = [output.name for output in session.inference.get_outputs()]
    for name in names:
        binding.bind_output(name, device)
    given = tuple(values.values())
    first = RunOnDevice(session, binding, given, _recording(UNRECORDED))
    first()
    for name, value in zip(names, binding.get_outputs(), strict=True):
        binding.bind_ortvalue_output(name, value)
    return RunOnDevice(session, binding, given, _recording(graph))


def _recording(graph: int) -> ort.RunOptions:
    options = onnx_runtime().RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options
