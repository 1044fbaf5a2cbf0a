"""The zoo's networks against published parameter counts and the seed's own counter."""

import pytest
import torch
from torch import nn

from qdeploy.models.lenet5 import lenet5
from qdeploy.models.resnet import resnet18, resnet20


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def multiply_accumulates(network, shape):
    """The seed's counter (ptflops): one for each product of a convolution or Linear layer, 2 for
    each element that a BatchNorm gives, one for each bias of a Linear layer, and one for each
    element that a ReLU module gives. Functional ReLUs, additions and poolings are not seen."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += module.weight.numel() + len(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            total += 2 * output[0].numel()
        elif isinstance(module, nn.ReLU):
            total += output[0].numel()

    hooks = [m.register_forward_hook(count) for m in network.modules()]
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return total


def test_resnet20_is_the_seeds():
    assert parameters(resnet20()) == 1_110_522
    # The last 16,384 are the stem's ReLU, 16 x 32 x 32: the one ReLU that is a module.
    assert multiply_accumulates(resnet20(), (3, 32, 32)) == 159_951_370


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


def test_resnet18_has_the_published_parameters():
    assert parameters(resnet18(1000, stem="imagenet")) == 11_689_512
    # The published 1.81 G counts products of convolutions and of the last layer.
    counted = multiply_accumulates(resnet18(1000, stem="imagenet"), (3, 224, 224))
    norms = 2 * sum_of_norm_outputs(resnet18(1000, stem="imagenet"), (3, 224, 224))
    assert counted - norms - 64 * 112 * 112 - 1000 == 1_814_073_344


def sum_of_norm_outputs(network, shape):
    sizes = []
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda m, i, o: sizes.append(o[0].numel()))
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape))
    return sum(sizes)


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
    ("make", "options"), [(lenet5, {"image_size": 30}), (resnet18, {"stem": "vgg"})]
)
def test_wrong_options_are_refused(make, options):
    (value,) = options.values()
    with pytest.raises(ValueError, match=f"{value}"):
        make(**options)
