"""On a GPU every method trains and converts to the integers of the CPU, and whole runs end in a proven file.

Each test runs on the CPU as well, so that what breaks without a GPU is seen without one.
"""

import copy
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from networks import Residual, awkward_norms
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import qdeploy
from qdeploy.benchmark.providers import works
from qdeploy.benchmark.runtime import open_session
from qdeploy.cli import main
from qdeploy.data import Normalisation
from qdeploy.data.decoding import FolderBatches
from qdeploy.datasets.folder import ImageFolder
from qdeploy.layers.modes import full_float32
from qdeploy.recipe import DataSection
from qdeploy.training.device import determinism

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


@pytest.mark.parametrize("trained", ["simqat"], indirect=True)
def test_the_page_of_a_file_whose_network_and_data_lie_there(trained, device, tmp_path):
    float_network = Residual().to(device)
    file = qdeploy.export(trained, tmp_path / "model.onnx", IMAGES)
    batches = [(IMAGES.to(device), LABELS.to(device))]
    record = qdeploy.write_report(
        trained, file, batches, tmp_path, float_network=float_network, provider="cpu"
    )
    assert record.exactness.differing == 0
    right = output(qdeploy.convert(trained), "cpu").argmax(1) == LABELS
    assert record.accuracy.onnx["top1"] == pytest.approx(right.double().mean().item())
    for network in (trained, float_network):
        assert next(network.parameters()).device.type == device.type
        assert network.training


def steps(device, precision=torch.float32, count=3):
    """The losses and latents of a 4-bit network in `count` steps on the device."""
    torch.manual_seed(0)
    prepared = qdeploy.prepare(awkward_norms(Residual()), IMAGES, "lsq", 4, 4).to(device).train()
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(count):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = cross_entropy(prepared(IMAGES.to(device)).float(), LABELS.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [layer.quantizer.latent for _, layer in prepared.quantized_layers()]


def test_bf16_follows_float32_and_leaves_weights_in_float32(device):
    """bfloat16 keeps 8 bits of each factor."""
    losses, latents = steps(device, torch.bfloat16)
    exact, _ = steps(device)
    assert losses == pytest.approx(exact, rel=0.05)
    assert losses != exact
    assert {latent.dtype for latent in latents} == {torch.float32}
    assert all(latent.grad.isfinite().all() for latent in latents)


def test_deterministic_training_gives_the_same_bits(device):
    with determinism(True):
        (losses, latents), (again, same) = steps(device), steps(device)
    assert losses == again
    assert all(torch.equal(*pair) for pair in zip(latents, same, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_files_are_decoded_into_batches_on_the_device(workers, device, tmp_path):
    """Images of one grey each, which no crop changes, in classes of one grey each."""
    greys = np.arange(10, 250, 20, dtype=np.uint8)
    for label, grey in enumerate(greys):
        folder = tmp_path / f"{label:02}"
        folder.mkdir()
        Image.fromarray(np.full((9, 9, 3), grey)).save(folder / "one.png")
    section = DataSection(dataset="folder", batch_size=5, image_size=8, workers=workers)
    normalise = Normalisation([0.5] * 3, [0.25] * 3, device)
    batches = list(FolderBatches(ImageFolder(tmp_path), section, normalise, seed=0).epoch(0))
    images, labels = map(torch.cat, zip(*batches, strict=True))
    assert {images.device.type, labels.device.type} == {device.type}
    assert len(labels.unique()) == len(greys)
    expected = (torch.from_numpy(greys)[labels.cpu()] / 255 - 0.5) / 0.25
    torch.testing.assert_close(images.cpu(), expected.reshape(-1, 1, 1, 1).expand_as(images))


def succeeds(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.stdout


def test_a_recipe_is_trained_exported_and_benchmarked_there(device, tmp_path):
    """On the CPU provider the file gives what training tested, on whichever device that was."""
    run, place = tmp_path / "run", ("--device", device.type)
    few = ("--set", "train.epochs=1", "--set", "train.float_epochs=0")
    succeeds("train", "lenet5-digits-slb-w1a8", *few, *place, "-o", run)
    succeeds("export", run, *place, "--provider", "cpu", "--max-differing", 0)
    record = json.loads((run / "report.json").read_text())
    assert record["accuracy"]["onnx"] == record["accuracy"]["trained"]
    if not works(device.type):
        pytest.skip(f"ONNX Runtime has no provider for {device.type} here")
    files = run / "float.onnx", run / "model.onnx"
    timed = json.loads(succeeds("benchmark", *files, "--provider", device.type, "--json"))
    wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device.type]
    assert {row["provider"] for row in timed["latency"]} == {wanted}
    assert {row["copied_ms"] is None for row in timed["latency"]} == {device.type == "cpu"}
