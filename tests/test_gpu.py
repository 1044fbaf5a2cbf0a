"""On a GPU every method trains, and converts to the integers that it converts to on the CPU.

Each test runs on the CPU as well, so that what breaks without a GPU is seen without one.
"""

import copy

import pytest
import torch
from networks import Residual, awkward_norms
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import qdeploy
from qdeploy.benchmark.providers import works
from qdeploy.benchmark.runtime import open_session
from qdeploy.layers.modes import full_float32

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
CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)


@pytest.fixture(params=["cpu", CUDA])
def device(request):
    """The device, where float products keep all their bits while the test runs."""
    with full_float32():
        yield torch.device(request.param)


@pytest.fixture(params=METHODS)
def trained(request, device):
    """A network of awkward layers after three steps on the device, calibrated there."""
    torch.manual_seed(0)
    network = awkward_norms(Residual())
    prepared = qdeploy.prepare(network, IMAGES, request.param, *METHODS[request.param])
    prepared.to(device).train().set_progress(0, 10)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.01, momentum=0.9)
    latents = [layer.quantizer.latent for _, layer in prepared.quantized_layers()]
    before = [latent.detach().clone() for latent in latents]
    for _ in range(3):
        loss = cross_entropy(prepared(IMAGES.to(device)), LABELS.to(device))
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all((new != old).any() for new, old in zip(latents, before, strict=True))
    qdeploy.calibrate(prepared, [IMAGES.to(device)])
    return prepared


def output(network: nn.Module, device: torch.device | str) -> Tensor:
    network = copy.deepcopy(network).eval().to(device)
    with torch.inference_mode():
        return network(IMAGES.to(device)).cpu()


def test_everything_stays_where_it_was_put(trained, device):
    assert {tensor.device.type for tensor in trained.state_dict().values()} == {device.type}
    assert output(trained, device).isfinite().all()


def test_it_converts_to_the_integers_that_it_converts_to_on_the_cpu(trained):
    there, here = (qdeploy.convert(one) for one in (trained, copy.deepcopy(trained).cpu()))
    wanted = here.state_dict()
    found = {name: value.cpu() for name, value in there.state_dict().items()}
    assert found.keys() == wanted.keys()
    integers = {name for name, value in wanted.items() if value.dtype in (torch.int8, torch.int32)}
    assert len(integers) > 10
    for name in integers:
        assert (found[name] != wanted[name]).double().mean() < 0.02, name


def test_the_integers_give_what_evaluation_gives_there_and_on_the_cpu(trained, device):
    """A value between two steps may tip over; at 2 bits one step is far."""
    converted, wanted = qdeploy.convert(trained), output(trained, device)
    for place in (device, "cpu"):
        found = output(converted, place)
        assert (found - wanted).square().mean() < 0.1 * wanted.var()


def test_the_file_agrees_with_the_converted_network(trained, device, tmp_path):
    if not works(device.type):
        pytest.skip(f"ONNX Runtime has no provider for {device.type} here")
    file = qdeploy.export(trained, tmp_path / "model.onnx", IMAGES)
    found = torch.from_numpy(open_session(file, device.type).run(IMAGES.numpy()))
    wanted = output(qdeploy.convert(trained), device)
    assert (found - wanted).square().mean() < 0.01 * wanted.var()


def test_the_integers_have_the_codes_of_the_file_wherever_they_run(trained, tmp_path):
    """PyTorch on the device, beside ONNX Runtime's CPU provider: not one code differs."""
    file = qdeploy.export(trained, tmp_path / "model.onnx", IMAGES)
    found = qdeploy.validate(trained, file, IMAGES.split(8), "cpu")
    assert found.exactness.differing == 0
    assert [output.largest for output in found.outputs] == [0.0]
