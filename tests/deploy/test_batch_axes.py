"""Which inputs of a file have an open batch, and on which axis; the files against the float network."""

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from networks import Network
from torch import nn

import qdeploy
from qdeploy.deploy.batch_axes import batch_axes


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


class Recurrent(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.lstm = nn.LSTM(8, 8, batch_first=batch_first)

    def forward(self, x, h, c):
        y, (h, c) = self.lstm(F.relu(self.first(x)), (h, c))
        return self.last(y), h, c


class Joined(nn.Module):
    """Two inputs, x [N, 6] and y, which a function joins."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, y):
        return self.last(self.function(F.relu(self.first(x)), y))


class Summed(Joined):
    def __init__(self):
        super().__init__(lambda x, y: x + self.second(y))


STATE = noise(1, 2, 8)
# Network, inputs, and the batch axis of each.
CASES = {
    "one tensor": (nn.Conv2d(3, 4, 3), [noise(2, 3, 5, 5)], (0,)),
    "a batch of one": (nn.Conv2d(3, 4, 3), [noise(1, 3, 5, 5)], (0,)),
    "two tensors": (Summed(), [noise(2, 6), noise(2, 8)], (0, 0)),
    "two batches of one": (
        Summed(), [noise(1, 6), noise(1, 8)], (0, 0)
    ),
    "states": (Recurrent(True), [noise(2, 5, 6), STATE, STATE], (0, 1, 1)),
    "sequences first": (Recurrent(False), [noise(5, 2, 6), STATE, STATE], (1, 1, 1)),
    "table": (Joined(lambda x, y: x + y.mean(0)), [noise(2, 6), noise(7, 8)], (0, None)),
    "table of the batch's length": (
        Joined(lambda x, y: x + y.mean(0)), [noise(2, 6), noise(2, 8)], (0, None)
    ),
    "table that is only looked up": (
        Joined(lambda x, y: x + y[0]), [noise(2, 6), noise(2, 8)], (0, None)
    ),
    "number": (Joined(lambda x, y: x * y), [noise(2, 6), torch.tensor(0.5)], (0, None)),
    "all samples in one row": (
        Network(lambda s, x: s.last(x.view(1, -1)), last=nn.Linear(12, 5)), [noise(2, 6)], (None,)
    ),
    "samples that see each other": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        [noise(4, 3, 5, 5)], (0,),
    ),
}  # fmt: skip


EXPORTS_STATES = pytest.mark.skipif(
    torch.__version__ < "2.13", reason="torch.onnx gives an LSTM states of four axes"
)


@pytest.mark.parametrize("name", CASES)
def test_axes(name):
    network, inputs, axes = CASES[name]
    assert batch_axes(network.eval(), inputs) == axes


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("states", marks=EXPORTS_STATES),
        pytest.param("sequences first", marks=EXPORTS_STATES),
        "table of the batch's length",
        "all samples in one row",
    ],
)
@pytest.mark.filterwarnings("ignore:.*counts on the number of samples")
def test_the_file_takes_another_batch_where_there_is_one(name, tmp_path):
    network, inputs, axes = CASES[name]
    prepared = qdeploy.prepare(network.eval(), tuple(inputs), "simqat")
    qdeploy.calibrate(prepared, [tuple(inputs)])
    example = inputs[0] if len(inputs) == 1 else tuple(inputs)
    file = qdeploy.export(prepared, tmp_path / "m.onnx", example)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    given = [x if a is None else torch.cat([x, x, x], a) for x, a in zip(inputs, axes, strict=True)]
    with torch.no_grad():
        expected = network(*given)
    expected = expected if isinstance(expected, tuple) else (expected,)
    named = {i.name: x.numpy() for i, x in zip(session.get_inputs(), given, strict=True)}
    for found, y in zip(session.run(None, named), expected, strict=True):
        assert np.abs(found - y.numpy()).max() < 0.05 * y.abs().max()


def test_a_closed_batch_is_said(tmp_path):
    network, (x,), _ = CASES["all samples in one row"]
    with pytest.warns(UserWarning, match=r"counts on the number of samples.* \[2, 6\]"):
        qdeploy.export(network, tmp_path / "m.onnx", x)
