"""A network that FSDP has spread over processes ships by way of its gathered state."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import qdeploy
from qdeploy.errors import QdeployError

sys.path.append(str(Path(__file__).parents[1] / "training"))
from two_processes import in_two_processes

X = torch.linspace(-1, 1, 48).reshape(8, 6)


def prepared_network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    prepared = qdeploy.prepare(network, X, "lsq", 4, 4)
    qdeploy.calibrate(prepared, [X])
    return prepared


def by_1(prepared, original):
    device = torch.device("cpu")
    return FullyShardedDataParallel(prepared, device_id=device, use_orig_params=original)


def ship(fabric, folder):
    mesh = init_device_mesh("cpu", (2,))
    ways = {
        "fully_shard": lambda prepared: fully_shard(prepared, mesh=mesh),
        "parameters": lambda prepared: by_1(prepared, True),
        "flat": lambda prepared: by_1(prepared, False),
    }
    for name, shard in ways.items():
        model = shard(prepared_network())
        model.train()(X).square().mean().backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
        for refused in (qdeploy.convert, lambda m: qdeploy.export(m, folder / "no.onnx", X)):
            with pytest.raises(QdeployError, match=r"FSDP has spread .* get_model_state_dict"):
                refused(model)
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
        whole = prepared_network()
        whole.load_state_dict(state)
        with torch.no_grad():
            wanted = model.eval()(X)
            torch.testing.assert_close(whole.eval()(X), wanted)
        if torch.distributed.get_rank() == 0:  # by one process alone
            file = qdeploy.export(whole, folder / f"{name}.onnx", X)
            assert qdeploy.validate(whole, file, [X]).exactness.differing == 0
    assert not (folder / "no.onnx").exists()


def test_its_gathered_state_ships(tmp_path):
    assert in_two_processes(ship, tmp_path, tmp_path) == [0, 0]
