"""The zoo's networks against published counts, plain PyTorch, and their own exported files."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import qdeploy
from qdeploy.layers.integer import IntegerNorm
from qdeploy.models.efficientnet import efficientnet_b0
from qdeploy.models.lenet5 import lenet5
from qdeploy.models.mobilenet import mobilenet_v2, mobilenet_v3_small
from qdeploy.models.nin import nin
from qdeploy.models.resnet import (
    BasicBlock,
    Bottleneck,
    Padding,
    ResNet,
    cifar_stem,
    conv1x1,
    projection,
    resnet18,
    resnet20,
    resnet20s,
    resnet50,
    stages,
)
from qdeploy.models.vit import vit_b16


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def outputs(network, shape, kind):
    """What each module of a kind reads and gives in a run on one image."""
    seen = []
    hooks = [
        module.register_forward_hook(lambda *call: seen.append(call))
        for module in network.modules()
        if isinstance(module, kind)
    ]
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return [(module, inputs[0][0], output[0]) for module, inputs, output in seen]


def multiply_accumulates(network, shape):
    """The seed's counter (ptflops): one for each product and each bias of a convolution or Linear
    layer, 2 for each element that a BatchNorm gives, one for each that a pooling reads. It sees
    modules only; the seed's ResNet-20 has functional ReLUs."""
    layers = outputs(network, shape, nn.Conv2d | nn.Linear)
    norms = outputs(network, shape, nn.BatchNorm2d)
    pools = outputs(network, shape, nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d)
    return (
        sum(y.numel() * (m.weight[0].numel() + (m.bias is not None)) for m, _, y in layers)
        + sum(2 * y.numel() for _, _, y in norms)
        + sum(x.numel() for _, x, _ in pools)
    )


def test_resnet20_is_the_seeds():
    assert parameters(resnet20()) == 1_110_522
    assert multiply_accumulates(resnet20(), (3, 32, 32)) == 159_951_370


@pytest.mark.parametrize(("norm_first", "total"), [(False, 149_662_848), (True, 149_810_304)])
def test_nin_is_the_seeds(norm_first, total):
    """149.66 MMac, and with BatchNorm first 0.15 more: 17.26 where the seed, which does not count
    quantized layers, has 17.11."""
    network = nin(norm_first=norm_first)
    assert parameters(network) == 674_910
    # The seed's NIN has ReLU modules, one for each element that a convolution gives.
    relus = sum(y.numel() for _, _, y in outputs(network, (3, 32, 32), nn.Conv2d))
    assert multiply_accumulates(network, (3, 32, 32)) + relus == total


def test_resnet20s_has_the_published_size():
    convolutions = 9 * (3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert parameters(resnet20s()) == convolutions + norms + 64 * 10 + 10 == 269_722
    pixels = 32 * 32, 16 * 16, 8 * 8
    products = 9 * (
        pixels[0] * (3 * 16 + 6 * 16 * 16)
        + pixels[1] * (16 * 32 + 5 * 32 * 32)
        + pixels[2] * (32 * 64 + 5 * 64 * 64)
    )
    found = qdeploy.complexity(resnet20s(), torch.zeros(1, 3, 32, 32))
    assert found.macs == products + 640 == 40_551_040


def test_resnet50_has_the_published_parameters_and_products():
    network = resnet50(1000, stem="imagenet")
    found = qdeploy.complexity(network, torch.zeros(1, 3, 224, 224))
    assert found.parameters == parameters(network) == 25_557_032
    assert found.macs == 4_089_184_256


def test_resnet50_with_the_cifar_stem_in_closed_form():
    def block(inputs, middle):
        return inputs * middle + 9 * middle**2 + 4 * middle**2 + 2 * (middle + middle + 4 * middle)

    stages = 0
    for blocks, inputs, middle in ((3, 64, 64), (4, 256, 128), (6, 512, 256), (3, 1024, 512)):
        projection = inputs * 4 * middle + 2 * 4 * middle
        stages += block(inputs, middle) + projection + (blocks - 1) * block(4 * middle, middle)
    stem, head = 3 * 64 * 9 + 2 * 64, 2048 * 10 + 10
    assert parameters(resnet50()) == stem + stages + head == 23_520_842


def test_resnet20_alternates_narrow_and_wide():
    network = resnet20()
    assert [(b.conv1.in_channels, b.conv1.out_channels, b.conv2.out_channels) for b in network.layers] == [
        (16, 16, 64), (64, 16, 64), (64, 16, 64), (64, 32, 128), (128, 32, 128), (128, 32, 128),
        (128, 64, 256), (256, 64, 256), (256, 64, 256),
    ]  # fmt: skip
    assert [type(b.shortcut).__name__ for b in network.layers] == [
        "Conv2d",
        "Identity",
        "Identity",
    ] * 3
    assert all(m.bias is None for m in network.modules() if isinstance(m, nn.Conv2d))


def test_resnet18_has_the_published_parameters_and_products():
    network = resnet18(1000, stem="imagenet")
    found = qdeploy.complexity(network, torch.zeros(1, 3, 224, 224))
    assert found.parameters == parameters(network) == 11_689_512
    assert found.macs == 1_814_073_344


@pytest.mark.parametrize(
    ("make", "products"), [(nin, 146_989_056), (resnet20, 159_042_048), (resnet18, 555_422_720)]
)
def test_quantized_layers_are_counted_too(make, products):
    """The seed's counter missed them, and said 1.35 MMac of ResNet-20."""
    x = torch.zeros(2, 3, 32, 32)
    found = qdeploy.complexity(qdeploy.prepare(make(), x, "slb", 1, 8, first_last_float=True), x)
    hooked = outputs(make(), (3, 32, 32), nn.Conv2d | nn.Linear)
    assert found.macs == sum(y.numel() * m.weight[0].numel() for m, _, y in hooked) == products
    assert found.parameters == parameters(make())
    assert sum(row.macs for row in found.by_bits if row.weight_bits == 1) > 0.8 * products


@pytest.mark.parametrize(
    ("make", "total", "products"),
    [
        (mobilenet_v2, 3_504_872, 300_774_272),
        (mobilenet_v3_small, 2_542_856, 56_517_000),
        (efficientnet_b0, 5_288_548, 385_814_752),
        (vit_b16, 86_567_656, None),  # the counter passes over torch's fused attention
    ],
)
def test_networks_for_imagenet_have_the_published_parameters_and_products(make, total, products):
    network = make().eval()
    assert parameters(network) == total
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert network(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    if products is not None:
        assert counter.get_total_flops() / 2 == pytest.approx(products, rel=1e-3)


@pytest.mark.parametrize(
    ("make", "options", "channels"),
    [
        (mobilenet_v2, {"width": 0.35}, {8, 16, 24, 32, 56, 112, 1280}),
        (mobilenet_v3_small, {"width": 0.5}, {8, 16, 24, 48, 288}),
        (efficientnet_b0, {"width": 1.1}, {32, 16, 24, 48, 88, 120, 208, 352, 1408}),
    ],
)
def test_width_multiplies_every_number_of_channels(make, options, channels):
    """Of stem, blocks and the last convolution, as the published code rounds them to eighths."""
    network = make(7, 2, **options).eval()
    ends = [network.stem, *(block.layers for block in network.blocks), network.last]
    found = {[m for m in end.modules() if isinstance(m, nn.Conv2d)][-1] for end in ends}
    assert {conv.out_channels for conv in found} == channels
    assert network(torch.zeros(1, 2, 32, 32)).shape == (1, 7)


def test_resnet18_with_the_cifar_stem_differs_in_stem_and_classes_alone():
    stem_and_head = 64 * 3 * (7 * 7 - 3 * 3) + 512 * 990 + 990
    assert parameters(resnet18()) == 11_689_512 - stem_and_head == 11_173_962


@pytest.mark.parametrize(("stem", "size", "inside"), [("cifar", 32, 4), ("imagenet", 224, 7)])
def test_resnet18_halves_the_image_as_published(stem, size, inside):
    network = resnet18(7, in_channels=2, stem=stem).eval()
    x = torch.randn(2, 2, size, size)
    with torch.no_grad():
        assert network.layers(network.stem(x)).shape == (2, 512, inside, inside)
        assert network(x).shape == (2, 7)


def test_classic_lenet_has_its_61706_parameters():
    for size in (28, 32):
        network = lenet5(image_size=size, batch_norm=False)
        assert parameters(network) == 61_706
        assert network(torch.zeros(2, 1, size, size)).shape == (2, 10)


def test_lenet_with_batch_norm_has_gains_and_shifts_for_biases():
    biases, norms = 6 + 16 + 120 + 84, 2 * (6 + 16 + 120 + 84)
    for size in (28, 32):
        network = lenet5(image_size=size)
        assert parameters(network) == 61_706 - biases + norms
        assert network(torch.zeros(2, 1, size, size)).shape == (2, 10)
    assert lenet5(num_classes=3, in_channels=2)(torch.zeros(2, 2, 28, 28)).shape == (2, 3)


def test_lenet_with_batch_norm_at_its_start_is_the_classic_network():
    torch.manual_seed(0)
    normed, classic = lenet5().eval(), lenet5(batch_norm=False).eval()
    for module in normed.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.eps = 0.0
    classic.load_state_dict(normed.state_dict(), strict=False)
    for name in ("conv1", "conv2", "fc1", "fc2"):
        nn.init.zeros_(getattr(classic, name).bias)
    x = torch.randn(3, 1, 28, 28)
    torch.testing.assert_close(normed(x), classic(x))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lenet5, {"image_size": 30}),
        (resnet18, {"stem": "vgg"}),
        (resnet50, {"stem": "vgg"}),
        (vit_b16, {"image_size": 40}),
    ],
)
def test_wrong_options_are_refused(make, options):
    (value,) = options.values()
    with pytest.raises(ValueError, match=f"{value}"):
        make(**options)


def norms_trained(network):
    """The network with BatchNorms that do something, in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            for values in (norm.weight, norm.running_var):
                values.data.uniform_(0.5, 1.5, generator=generator)
            for values in (norm.bias, norm.running_mean):
                values.data.uniform_(-0.3, 0.3, generator=generator)
    return network.eval()


def normed(x, norm):
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)


@pytest.mark.parametrize("make", [resnet18, resnet20, resnet20s, resnet50])
@pytest.mark.parametrize("norm_first", [False, True])
@torch.no_grad()
def test_each_block_computes_its_order(make, norm_first):
    network = norms_trained(make(norm_first=norm_first))
    x = network.stem(torch.randn(2, 3, 8, 8))
    for block in network.layers:
        y = x
        for number in range(1, 4 if make is resnet50 else 3):
            conv, norm = getattr(block, f"conv{number}"), getattr(block, f"bn{number}")
            y = F.relu(y) if number > 1 else y
            y = conv(normed(y, norm)) if norm_first else normed(conv(y), norm)
        expected = F.relu(y + block.shortcut(x))
        x = block(x)
        torch.testing.assert_close(x, expected)


@torch.no_grad()
def test_lenet_computes_its_order():
    net = norms_trained(lenet5(norm_first=True))
    x = torch.randn(3, 1, 28, 28)
    y = F.max_pool2d(F.relu(normed(net.conv1(x), net.bn1)), 2)
    y = F.max_pool2d(F.relu(net.conv2(normed(y, net.bn2))), 2).flatten(1)
    y = F.relu(net.fc1(normed(y, net.bn3)))
    y = F.relu(net.fc2(normed(y, net.bn4)))
    torch.testing.assert_close(net(x), net.fc3(y))


@torch.no_grad()
def test_nin_computes_its_order():
    layers = [
        layer for layer in norms_trained(nin(norm_first=True)).layers if list(layer.children())
    ]
    for index, layer in enumerate(layers):
        x = torch.randn(2, layer.conv.in_channels, 5, 5)
        at_an_end = index in (0, 8)
        y = normed(layer.conv(x), layer.norm) if at_an_end else layer.conv(normed(x, layer.norm))
        torch.testing.assert_close(layer(x), F.relu(y))
    assert len(layers) == 9


def test_the_order_moves_nothing_but_norms_of_blocks():
    for make in (resnet18, resnet20, resnet20s, resnet50, nin):
        plain, first = make().state_dict(), make(norm_first=True).state_dict()
        assert plain.keys() == first.keys()
        moved = {name for name in plain if plain[name].shape != first[name].shape}
        assert all(name.split(".")[-2][:2] in ("bn", "no") for name in moved)


@torch.no_grad()
def test_the_small_resnets_shortcut_takes_pixels_and_adds_empty_channels():
    first, second = (resnet20s().layers[index].shortcut for index in (3, 6))
    x = torch.randn(2, 16, 8, 8)
    y = first(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()
    assert second(y).shape == (2, 64, 2, 2)


def narrow(block, shortcut, norm_first):
    """One block that keeps the shape and one that changes it."""
    blocks = stages(block, shortcut, 16, [(1, 16, 16), (1, 16, 32)], norm_first)
    return ResNet(cifar_stem(3, 16), blocks, 32, 10)


EXPORTED = {
    "nin": lambda: nin(),
    "nin, norm first": lambda: nin(norm_first=True),
    "resnet18, norm first": lambda: narrow(BasicBlock, projection, True),
    "resnet20, norm first": lambda: narrow(BasicBlock, conv1x1, True),
    "resnet20s": lambda: narrow(BasicBlock, Padding, False),
    "resnet20s, norm first": lambda: narrow(BasicBlock, Padding, True),
    "resnet50": lambda: narrow(Bottleneck, projection, False),
    "resnet50, norm first": lambda: narrow(Bottleneck, projection, True),
}


@pytest.mark.parametrize("make", EXPORTED.values(), ids=EXPORTED)
def test_the_file_computes_what_training_evaluates(make, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(16, 3, 32, 32) * torch.linspace(0, 3, 16).reshape(-1, 1, 1, 1)
    prepared = qdeploy.prepare(norms_trained(make()), x[:2], "simqat")
    qdeploy.calibrate(prepared, [x], batch_norm=True)
    with torch.inference_mode():
        expected = prepared.eval()(x).numpy()
    file = qdeploy.export(prepared, tmp_path / "model.onnx", x[:2])
    found = qdeploy.validate(prepared, file, [x])
    assert found.exactness.differing == 0
    assert (
        found.outputs[0].largest <= 1e-6 * found.outputs[0].size
    )  # NIN ends in an average of floats
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": x.numpy()})
    spread = np.abs(expected - expected.mean(0)).max()
    # Integers round the biases as well.
    assert np.abs(found - expected).max() < 0.08 * spread
    kernels = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    layers = [layer for _, layer in prepared.quantized_layers()]
    # A norm that stands on its own between integer tensors is a convolution as well.
    norms = [m for m in qdeploy.convert(prepared).modules() if isinstance(m, IntegerNorm)]
    assert kernels.count("QLinearConv") + kernels.count("QGemm") == len(layers) + len(norms)
    assert "BatchNormalization" not in kernels
