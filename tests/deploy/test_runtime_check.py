"""export runs the file in its target's own runtime, and writes nothing that computes otherwise there."""

from dataclasses import replace

import networks
import numpy as np
import onnxruntime
import pytest
import torch
from exported_networks import calibrated
from torch import nn

import qdeploy
from qdeploy.deploy.targets import openvino
from qdeploy.errors import QdeployError


@pytest.fixture
def runtime(monkeypatch):
    """Target openvino with ONNX Runtime in OpenVINO's place, its outputs changed by `spoil`."""
    calls = []

    def install(spoil=lambda outputs: outputs):
        def load(path):
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            names = [one.name for one in session.get_inputs()]

            def run(*inputs):
                calls.append(inputs)
                return spoil(session.run(None, dict(zip(names, inputs, strict=True))))

            return "Chip 1.0", run

        monkeypatch.setattr(openvino, "TARGET", replace(openvino.TARGET, load=load))
        return calls

    return install


def export(folder, network=None, example=None, **options):
    prepared = network if network is not None else calibrated(networks.build("residual"))
    example = networks.images(2) if example is None else example
    return qdeploy.export(prepared, folder / "m.onnx", example, target="openvino", **options)


def test_a_file_that_agrees_is_written_and_ran_on_the_example_and_on_others(runtime, tmp_path):
    calls = runtime()
    assert export(tmp_path).is_file()
    assert np.array_equal(calls[0][0], networks.images(2).numpy())
    assert len({inputs[0].tobytes() for inputs in calls}) == 8


@pytest.mark.parametrize(
    "spoil",
    [
        lambda outputs: [x[:, ::-1] for x in outputs],
        lambda outputs: [1.5 * x for x in outputs],
        lambda outputs: [np.full_like(x, np.nan) for x in outputs],
    ],
)
def test_one_that_does_not_is_refused_and_no_file_is_left(runtime, tmp_path, spoil):
    runtime(spoil)
    with pytest.raises(QdeployError, match=r"Chip 1.0 computes other outputs.*target=\"cpu\""):
        export(tmp_path)
    assert list(tmp_path.iterdir()) == []


def one_step_off(outputs):
    """A hundredth of the deviation, in each tenth value."""
    return [x + 0.01 * x.std() * (np.arange(x.size) % 10 == 0).reshape(x.shape) for x in outputs]


def test_what_kernels_differ_by_is_no_fault(runtime, tmp_path):
    runtime(one_step_off)
    assert export(tmp_path).is_file()


def test_a_file_of_pixels_is_run_on_pixels(runtime, tmp_path):
    calls = runtime()
    export(tmp_path, uint8_input=([0.5] * 3, [0.25] * 3))
    assert {inputs[0].dtype for inputs in calls} == {np.dtype(np.uint8)}


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.table = nn.Conv2d(3, 4, 3), nn.Embedding(6, 4)

    def forward(self, image, kind):
        x = torch.relu(self.conv(image)).mean((2, 3))
        return {"sum": x + self.table(kind), "mean": x.mean(1)}


def test_all_outputs_of_all_inputs_are_compared(runtime, tmp_path):
    example = networks.images(2), torch.tensor([1, 5])
    calls = runtime()
    export(tmp_path, TwoInputs().eval(), example)
    assert all(np.array_equal(kinds, [1, 5]) for _, kinds in calls)
    runtime(lambda outputs: [outputs[0], outputs[1][::-1]])
    with pytest.raises(QdeployError, match="computes other outputs"):
        export(tmp_path, TwoInputs().eval(), example)


def test_openvinos_own_fault_is_seen(tmp_path, monkeypatch):
    """A residual network of 1 bit, without the rewrite that keeps OpenVINO from dropping roundings."""
    pytest.importorskip("openvino")
    monkeypatch.setattr(openvino, "keep_rounding_of_branches", lambda model: None)
    images = networks.images(64, seed=3)
    network = qdeploy.prepare(networks.build("residual"), images[:2], "dorefa", 1, 1)
    qdeploy.calibrate(network, images.split(16), batch_norm=True)
    with pytest.raises(
        QdeployError, match=r"OpenVINO 20.* computes other outputs than ONNX Runtime"
    ):
        export(tmp_path, network.eval(), images[:16])
