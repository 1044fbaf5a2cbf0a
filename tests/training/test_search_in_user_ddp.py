"""SLB in a loop of the user's own, on two processes with DDP or FSDP: it commits, and nothing waits."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from two_processes import in_two_processes

import qdeploy
from qdeploy import processes
from qdeploy.preparation.prepared import PreparedNetwork

COMMITTED = 3  # the epoch, from 0, before which the search is committed
EPOCHS = 5


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def adam(groups: Any) -> torch.optim.Optimizer:
    """With the decay in the gradient: zeros become steps of full size."""
    return torch.optim.Adam(groups, lr=0.1, weight_decay=0.1)


def prepared_network(bits: int) -> PreparedNetwork:
    """Layers with a BatchNorm and without, one frozen."""
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 8),
        nn.ReLU(),
        nn.Linear(8, 4),
    )
    network[6].requires_grad_(False)
    options = {"linear": True, "quant_delay": 0, "epoch_size": COMMITTED + 1, "t_end_time": 1.0}
    return qdeploy.prepare(network, torch.zeros(2, 1, 8, 8), "slb", bits, 8, **options)


def codes(prepared: PreparedNetwork) -> list[Tensor]:
    return [layer.integers()[0].codes for _, layer in prepared.quantized_layers()]


def train(
    prepared: PreparedNetwork,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    epochs: range,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Two steps of accumulation to one of the optimizer, under autocast."""
    random = torch.Generator().manual_seed(7 + processes.rank())
    for epoch in epochs:
        prepared.train().set_progress(epoch, EPOCHS)
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(2):
                images = torch.randn(4, 1, 8, 8, generator=random)
                with torch.autocast("cpu", torch.bfloat16):
                    loss = model(images).float().square().mean()
                loss.backward()
            optimizer.step()
        after_epoch(epoch)


def with_ddp(fabric: Fabric, folder: Path, bits: int, optimizer: Callable[..., Any]) -> None:
    prepared = prepared_network(bits)
    start = copy.deepcopy(prepared.state_dict())
    found: dict[int, list[Tensor]] = {}

    def keep(epoch: int) -> None:
        found[epoch] = codes(prepared)

    train(
        prepared,
        DistributedDataParallel(prepared),
        optimizer(prepared.parameters()),
        range(EPOCHS),
        keep,
    )
    state = prepared.state_dict()
    torch.save((start, state, found), folder / f"{processes.rank()}.pt")
    # The state alone, in a network that is not told of any progress.
    fresh = prepared_network(bits)
    assert fresh.searching
    fresh.load_state_dict(state)
    assert not fresh.searching
    assert all(map(torch.equal, codes(fresh), found[EPOCHS - 1]))


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("optimizer", [sgd, adam])
def test_ddp_goes_on_after_the_commitment(
    tmp_path: Path, bits: int, optimizer: Callable[..., Any]
) -> None:
    assert in_two_processes(with_ddp, tmp_path, tmp_path, bits, optimizer) == [0, 0]
    (start, first, found), (_, second, _) = (torch.load(tmp_path / f"{n}.pt") for n in (0, 1))
    # A BatchNorm sees the images of its own process, as that of a float network does.
    shared = [name for name in first if not name.endswith(("running_mean", "running_var"))]
    for name in shared:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
    assert not all(map(torch.equal, found[0], found[COMMITTED]))
    assert all(map(torch.equal, found[COMMITTED], found[EPOCHS - 1]))
    unmoved = {name for name in start if torch.equal(first[name], start[name])}
    assert {name for name in unmoved if name.endswith("weight")} == {"6.weight"}


def with_fully_shard(fabric: Fabric, folder: Path, bits: int) -> None:
    prepared = prepared_network(bits)
    mesh = init_device_mesh("cpu", (2,))
    for _, layer in prepared.quantized_layers():
        fully_shard(layer, mesh=mesh)
    fully_shard(prepared, mesh=mesh)
    optimizer = sgd(prepared.parameters())
    before: list[Tensor] = []

    def keep(epoch: int) -> None:
        state = {name: whole(value) for name, value in prepared.state_dict().items()}
        fresh = prepared_network(bits)
        fresh.load_state_dict(state)
        assert fresh.searching == (epoch < COMMITTED)
        if epoch == COMMITTED:
            before.extend(codes(fresh))
        if epoch == EPOCHS - 1:
            assert all(map(torch.equal, codes(fresh), before))

    train(prepared, prepared, optimizer, range(EPOCHS), keep)


def whole(value: Tensor) -> Tensor:
    """The parameter of which each process has a part."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@pytest.mark.parametrize("bits", [1, 2])
def test_fully_shard_commits(tmp_path: Path, bits: int) -> None:
    assert in_two_processes(with_fully_shard, tmp_path, tmp_path, bits) == [0, 0]
