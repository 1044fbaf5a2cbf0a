"""Two processes calibrate, each with batches of its own, as one process does with all of them."""

import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import nn

import qdeploy
from qdeploy import processes
from qdeploy.errors import QdeployError

sys.path.append(str(Path(__file__).parents[1] / "training"))
from two_processes import in_two_processes

# Method, bits, and how it is calibrated.
WAYS = {
    "mse": ("simqat", 4, {"ranges": "mse", "correct_bias": True}),
    "mean": ("simqat", 8, {}),
    "norm": ("simqat", 8, {"batch_norm": True}),
    "synchronised norm": ("simqat", 8, {"batch_norm": True}),
    "range norm": ("int8_training", 8, {"ranges": "minmax", "batch_norm": True}),
    "percentile": ("simqat", 8, {"ranges": "percentile"}),
    "lsq": ("lsq", 4, {}),
    "pact": ("pact", 4, {}),
}


def prepared_network(method="simqat", bits=8):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    ).eval()
    return qdeploy.prepare(network, torch.zeros(2, 2, 5, 5), method, bits, bits)


def calibrated(way, batches, **options):
    method, bits, chosen = WAYS[way]
    prepared = prepared_network(method, bits)
    if way == "synchronised norm":
        prepared = nn.SyncBatchNorm.convert_sync_batchnorm(prepared)
    qdeploy.calibrate(prepared, batches, **chosen, **options)
    return prepared.state_dict()


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 2, 5, 5, generator=generator) * size for size in (1, 3, 2, 0.5)]


def share(rank):
    """Three batches of the one, one of the other."""
    return batches()[:3] if rank == 0 else batches()[3:]


def keep_states(fabric, file):
    torch.save({way: calibrated(way, share(processes.rank())) for way in WAYS}, file_of(file))


def file_of(file):
    return f"{file}{torch.distributed.get_rank()}"


def test_statistics_are_those_of_all_batches_however_many_each_has(tmp_path):
    assert in_two_processes(keep_states, tmp_path, str(tmp_path / "state")) == [0, 0]
    first, second = (torch.load(tmp_path / f"state{rank}") for rank in (0, 1))
    for way in WAYS:
        for name, value in calibrated(way, batches()).items():
            assert torch.equal(first[way][name], second[way][name]), (way, name)
            # What stands behind a quantizer was rounded to the range of the batches so far.
            torch.testing.assert_close(first[way][name], value, rtol=1e-2, atol=1e-2)


def calibrate_in_one(fabric, file):
    processes.PATIENCE = timedelta(seconds=3)
    if processes.rank() == 0:
        with pytest.raises(QdeployError) as error:
            calibrated("mean", batches())
        torch.save((str(error.value), calibrated("mean", batches(), alone=True)), file)
    fabric.barrier()
    calibrated("mean", batches())  # nothing of that is left


def test_one_process_alone_is_told_so_and_may_do_it_without_the_others(tmp_path):
    file = tmp_path / "found"
    assert in_two_processes(calibrate_in_one, tmp_path, str(file)) == [0, 0]
    message, state = torch.load(file)
    assert message.startswith("calibrate was called in process 0 and not in 1")
    assert "alone=True" in message
    torch.testing.assert_close(state, calibrated("mean", batches()))


def fail_in_one(fabric, file):
    wrong = [torch.zeros(1, 7, 2, 2), torch.full((2, 2, 5, 5), torch.nan)]
    messages = []
    for batch in wrong:
        mine = [*batches(), batch] if processes.rank() == 0 else batches()
        with pytest.raises(QdeployError) as error:
            calibrated("mean", mine)
        messages.append(str(error.value))
    torch.save(messages, file_of(file))


def test_an_error_in_one_process_is_one_in_both(tmp_path):
    assert in_two_processes(fail_in_one, tmp_path, str(tmp_path / "said")) == [0, 0]
    first, second = (torch.load(tmp_path / f"said{rank}") for rank in (0, 1))
    assert "does not take a calibration batch" in first[0]
    assert second[0] == "calibrate failed in another process, whose message says why"
    assert first[1] == second[1]
    assert "without bounds" in first[1]


@pytest.mark.parametrize("way", WAYS)
def test_alone_is_the_same_where_there_is_one_process(way):
    torch.testing.assert_close(
        calibrated(way, batches(), alone=True), calibrated(way, batches()), rtol=0, atol=0
    )
