"""Two processes with half of each batch calibrate as one process does with the whole of it."""

import sys
from pathlib import Path

import torch
from torch import nn

import qdeploy
from qdeploy import processes

sys.path.append(str(Path(__file__).parents[1] / "training"))
from two_processes import in_two_processes


def calibrated(images):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    ).eval()
    prepared = qdeploy.prepare(network, torch.zeros(2, 2, 5, 5), "simqat", 4)
    qdeploy.calibrate(prepared, images, "mse", correct_bias=True)
    return prepared.state_dict()


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 2, 5, 5, generator=generator) * size for size in (1, 3)]


def keep_share(fabric, file):
    state = calibrated([batch[processes.rank() :: 2] for batch in batches()])
    torch.save(state, f"{file}{processes.rank()}")


def test_ranges_and_biases_are_those_of_the_whole_batch(tmp_path):
    assert in_two_processes(keep_share, tmp_path, str(tmp_path / "state")) == [0, 0]
    first, second = (torch.load(tmp_path / f"state{rank}") for rank in (0, 1))
    for name, value in calibrated(batches()).items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5, msg=name)
