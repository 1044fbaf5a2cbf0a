"""Ranges and learned starts in two processes: the same in both, with uneven data and with none."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import qdeploy
from qdeploy import processes
from qdeploy.errors import QdeployError
from qdeploy.layers.activation import MovingRange
from qdeploy.layers.learned_activation import StartsFromData
from qdeploy.methods import ActivationSite, find

sys.path.append(str(Path(__file__).parents[1] / "training"))
from two_processes import in_two_processes

METHODS = {"simqat": 8, "lsq": 4, "pact": 4, "int8_training": 8}


def prepared_network(method):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    bits = METHODS[method]
    return qdeploy.prepare(network, torch.zeros(2, 6), method, bits, bits)


def batch(seed):
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)) * (1 + seed)


def keep(values, file):
    torch.save(values, f"{file}{torch.distributed.get_rank()}")


def kept(file):
    return [torch.load(f"{file}{rank}") for rank in (0, 1)]


def train(model, batches):
    for x in batches:
        model(x).square().mean().backward()


def train_unevenly(fabric, file):
    states = {}
    for method in METHODS:
        prepared = prepared_network(method).train()
        if method in ("lsq", "pact"):
            with pytest.raises(QdeployError, match=r"inside of Join.*call qdeploy\.calibrate"):
                refused(prepared_network(method))
            qdeploy.calibrate(prepared, [batch(5)])
        model = DistributedDataParallel(prepared.train())
        with Join([model]):
            train(model, [batch(seed) for seed in range(2 + 3 * processes.rank())])
        states[method] = prepared.state_dict()
    keep(states, file)


def refused(prepared):
    """Both processes have data here, so that neither waits for the other."""
    model = DistributedDataParallel(prepared.train())
    model._join_config = model._join_config._replace(enable=True)
    DistributedDataParallel._active_ddp_module = model
    try:
        prepared(batch(0))
    finally:
        DistributedDataParallel._active_ddp_module = None


def test_uneven_data_under_join_ends_with_equal_ranges(tmp_path):
    file = str(tmp_path / "state")
    assert in_two_processes(train_unevenly, tmp_path, file) == [0, 0]
    first, second = kept(file)
    for method in METHODS:
        torch.testing.assert_close(first[method], second[method], rtol=0, atol=0)


def sharded_by_2(prepared):
    return fully_shard(prepared, mesh=init_device_mesh("cpu", (2,)))


def sharded_by_1(prepared):
    return FullyShardedDataParallel(prepared, device_id=torch.device("cpu"), use_orig_params=True)


def train_sharded(fabric, file):
    """Three steps of a method under plain DDP, and the same under each FSDP."""
    outputs = {}
    for method in METHODS:
        for shard in (DistributedDataParallel, sharded_by_1, sharded_by_2):
            if method in ("lsq", "pact") and shard is not DistributedDataParallel:
                with pytest.raises(QdeployError, match=r"qdeploy\.calibrate.* before FSDP"):
                    shard(prepared_network(method)).train()(batch(0))
            prepared = prepared_network(method)
            qdeploy.calibrate(prepared, [batch(7)])
            model = shard(prepared.train())
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            for seed in range(3):
                optimizer.zero_grad()
                train(model, [batch(seed + 10 * processes.rank())])
                optimizer.step()
            with torch.no_grad():
                outputs[method, shard.__name__] = model.eval()(batch(3))
    keep(outputs, file)


def test_fsdp_trains_as_ddp_does(tmp_path):
    file = str(tmp_path / "outputs")
    assert in_two_processes(train_sharded, tmp_path, file) == [0, 0]
    for outputs in kept(file):
        for method in METHODS:
            plain, *others = (y for (name, _), y in outputs.items() if name == method)
            assert len(others) == 2
            for y in others:
                assert (y - plain).abs().max() < 0.02 * plain.abs().max()


def see_batches(fabric, file):
    """Whole shares, an empty one in one process, an empty one in both, a bad one in one process."""
    rank, found = processes.rank(), {}
    shares = [batch(rank), batch(2)[: 4 * rank], batch(3)[:0], batch(4)]
    shares[3][0, 0] = torch.nan if rank else 1.0
    for method in METHODS:
        chosen = find(method)
        quantizer = chosen.activation(ActivationSite(False), 8, chosen.options())
        found[method] = []
        for x in shares[:1] if isinstance(quantizer, StartsFromData) else shares:
            quantizer(x)
            found[method].append([part.item() for part in quantizer.qparams()])
        if isinstance(quantizer, MovingRange):
            found[method].append([quantizer.batches.item(), quantizer.minimum.item()])
            if method == "simqat":
                assert quantizer.left_out == 1
    alone_in_evaluation(prepared_network("lsq"))
    keep(found, file)


def alone_in_evaluation(prepared):
    """Process 0 evaluates, and process 1 does something else."""
    prepared.train()(batch(0))
    if processes.rank() == 0:
        prepared.eval()(batch(1))
        qdeploy.convert(prepared)


def test_a_batch_is_that_of_both_processes_also_where_one_has_nothing(tmp_path):
    file = str(tmp_path / "found")
    assert in_two_processes(see_batches, tmp_path, file) == [0, 0]
    first, second = kept(file)
    assert first == second
    whole = torch.cat([batch(0), batch(1)])
    for method in ("lsq", "pact"):
        chosen = find(method)
        quantizer = chosen.activation(ActivationSite(False), 8, chosen.options())
        quantizer(whole)
        wanted = [part.item() for part in quantizer.qparams()]
        assert first[method][0] == pytest.approx(wanted, rel=1e-6)
    taken_in, lowest = first["simqat"][-1]
    assert taken_in == 2
    assert lowest == pytest.approx((whole.min() + batch(2).min()).item() / 2)


def start_with_nothing(fabric, file):
    """The first batch of training is empty in one process."""
    starts = []
    for method in ("lsq", "pact"):
        chosen = find(method)
        quantizer = chosen.activation(ActivationSite(False), 8, chosen.options())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantizer(batch(0)[: 4 * processes.rank()])
        starts.append(quantizer.number().item())
    keep(starts, file)


def test_a_learned_start_is_that_of_the_process_that_has_values(tmp_path):
    file = str(tmp_path / "starts")
    assert in_two_processes(start_with_nothing, tmp_path, file) == [0, 0]
    first, second = kept(file)
    assert first == second
    for method, found in zip(("lsq", "pact"), first, strict=True):
        chosen = find(method)
        quantizer = chosen.activation(ActivationSite(False), 8, chosen.options())
        quantizer(batch(0))
        assert found == pytest.approx(quantizer.number().item(), rel=1e-6)
