"""On a GPU every method trains, and converts to the integers that it converts to on the CPU."""

import copy

import pytest
import torch
from networks import Residual, awkward_norms
from torch import nn
from torch.nn.functional import cross_entropy

import qdeploy
from qdeploy.benchmark.providers import works
from qdeploy.benchmark.runtime import open_session

METHODS = {
    "simqat": (8, 8),
    "slb": (1, 8),
    "dorefa": (2, 2),
    "pact": (4, 4),
    "lsq": (4, 4),
    "ternary": (2, 8),
    "int8_training": (8, 8),
}
IMAGES = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 5

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(params=METHODS)
def trained(request):
    """A network of awkward layers after three steps on the GPU."""
    torch.manual_seed(0)
    network = awkward_norms(Residual())
    prepared = qdeploy.prepare(network, IMAGES, request.param, *METHODS[request.param])
    prepared.set_progress(0, 10)
    prepared.cuda().train()
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(3):
        loss = cross_entropy(prepared(IMAGES.cuda()), LABELS.cuda())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    qdeploy.calibrate(prepared, [IMAGES.cuda()])
    return prepared


def outputs(network: nn.Module, device: str) -> torch.Tensor:
    network = copy.deepcopy(network).eval().to(device)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return network(IMAGES.to(device)).cpu()


def test_what_was_trained_on_a_gpu_converts_to_the_same_integers_there_and_on_the_cpu(trained):
    there = qdeploy.convert(trained)
    here = qdeploy.convert(copy.deepcopy(trained).cpu())
    for (name, value), (_, same) in zip(
        there.state_dict().items(), here.state_dict().items(), strict=True
    ):
        if value.dtype in (torch.int8, torch.int32):
            difference = (value.cpu().double() - same.double()).abs()
            assert (difference > 0).double().mean() < 0.02, name


def test_the_converted_network_gives_the_same_on_both(trained):
    converted = qdeploy.convert(trained)
    cpu, cuda = outputs(converted, "cpu"), outputs(converted, "cuda")
    assert (cpu - cuda).abs().max() < 0.05 * cpu.std()


def test_the_file_runs_under_cuda_and_agrees(trained, tmp_path):
    if not works("cuda"):
        pytest.skip("ONNX Runtime has no CUDA provider here")
    file = qdeploy.export(trained, tmp_path / "model.onnx", IMAGES)
    found = open_session(file, "cuda").run(IMAGES.numpy())
    expected = outputs(qdeploy.convert(trained), "cuda").numpy()
    assert abs(found - expected).max() < 0.05 * expected.std()
