"""Which layers may saturate on x86 without VNNI, against the kernels themselves and a closed form."""

import itertools

import networks
import numpy as np
import onnx
import pytest
import torch
from exported_networks import calibrated_by, export, outputs, session
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from without_vnni import needs_kernels_without_vnni, run_without_vnni

import qdeploy
from qdeploy.deploy.inspect import inspect
from qdeploy.deploy.saturation import in_kernel_order, may_saturate

NO_ZERO = np.zeros((), np.int8)


def worst_input(codes, highest):
    """[2, K]: the inputs that make the sums of a row [K] as large and as small as they can be."""
    return np.stack([codes > 0, codes < 0]) * highest


def vpmaddubsw(x, codes):
    """The sums of neighbours' products, and the same saturated at int16."""
    products = np.pad(x * codes.astype(int), ((0, 0), (0, len(codes) % 2)))
    sums = products[:, 0::2] + products[:, 1::2]
    return sums, sums.clip(-(2**15), 2**15 - 1)


@pytest.mark.parametrize("highest", [255, 200, 129])
@pytest.mark.parametrize("inputs", [1, 4, 5])
def test_a_row_may_saturate_where_some_input_makes_it(highest, inputs):
    random = np.random.default_rng(0)
    safe = 2**15 // (2 * highest)  # for both of a pair
    sizes = random.integers(safe - 3, min(127, safe + 4), (300, inputs), endpoint=True)
    rows = sizes * random.choice([-1, 1], sizes.shape)
    found = [may_saturate(row[None], highest) for row in rows]
    sums = [vpmaddubsw(worst_input(row, highest), row) for row in rows]
    assert found == [bool((exact != saturated).any()) for exact, saturated in sums]
    assert set(found) == ({False} if inputs == 1 or highest == 129 else {True, False})


def test_codes_of_either_sign_meet_without_harm():
    assert not may_saturate(np.array([[127, -128]]), 255)
    assert may_saturate(np.array([[64, 65]]), 255)
    assert not may_saturate(np.array([[64, 64, -64, -64]]), 255)
    assert not may_saturate(np.array([[65, 0, 65, 0]]), 255)
    assert may_saturate(np.array([[65, 0, 65, 0]]), 255, order_known=False)


def convolution(weight, size, groups, zero=NO_ZERO):
    node = helper.make_node("QLinearConv", [*"xszwrv", "t", "z"], ["y"], group=groups)
    shape = [1, weight.shape[1] * groups, *[size] * (weight.ndim - 2)]
    return kernel(node, weight, shape, zero)


def matrix_product(weight, size, groups):
    node = helper.make_node("QLinearMatMul", [*"xszwrv", "t", "z"], ["y"])
    return kernel(node, weight.T, [size, weight.shape[1]])


def kernel(node, weight, shape, zero=NO_ZERO):
    """A file of one integer kernel; its output is the sum of products over 400."""
    scale = np.ones(zero.shape, np.float32)
    values = {"s": np.float32(1), "z": np.uint8(0), "r": scale, "v": zero, "t": np.float32(400)}
    constants = [
        numpy_helper.from_array(np.asarray(v), k) for k, v in (values | {"w": weight}).items()
    ]
    x, y = (
        helper.make_tensor_value_info(n, TensorProto.UINT8, s)
        for n, s in (("x", shape), ("y", None))
    )
    graph = helper.make_graph([node], "kernel", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model.SerializeToString(), np.full(shape, 255, np.uint8)


# Form, [in / groups, *window], size of the input, groups.
KERNELS = {
    "pointwise": (convolution, (5, 1, 1), 4, 1),
    "3-wide": (convolution, (3, 3), 8, 1),
    "even channels": (convolution, (8, 2, 2), 5, 1),
    "odd channels": (convolution, (3, 2, 2), 5, 1),
    "groups": (convolution, (3, 2, 2), 5, 2),
    "several outputs a channel": (convolution, (1, 3, 3), 5, 2),
    "volume": (convolution, (3, 1, 2, 2), 4, 1),
    "one row": (matrix_product, (7,), 1, 1),
    "rows": (matrix_product, (7,), 5, 1),
}  # fmt: skip


@needs_kernels_without_vnni
def test_the_kernels_add_up_the_pairs_that_are_looked_at(tmp_path):
    """Each output has two weights of 127, in every place: sums are 162 each, 82 where they saturate."""
    cases, expected = {}, {}
    for name, (form, shape, size, groups) in KERNELS.items():
        count = int(np.prod(shape))
        pairs = list(itertools.combinations(range(count), 2)) * groups
        weight = np.zeros((len(pairs), count), np.int8)
        np.put_along_axis(weight, np.array(pairs), 127, axis=1)
        weight = weight.reshape(-1, *shape)
        cases[name] = form(weight, size, groups)
        node = onnx.load_from_string(cases[name][0]).graph.node[0]
        rows = in_kernel_order(node, weight.T if form is matrix_product else weight, one_zero=True)
        expected[name] = [may_saturate(row[None], 255) for row in rows]
    for name, found in run_without_vnni(cases, tmp_path).items():
        first = (
            found[0]
            if KERNELS[name][0] is matrix_product
            else found[0].reshape(found.shape[1], -1)[:, 0]
        )
        assert set(first.tolist()) == {82, 162}
        assert (first == 82).tolist() == expected[name], name


@needs_kernels_without_vnni
def test_a_depthwise_kernel_does_not_saturate(tmp_path):
    weight = np.full((3, 1, 1, 2), 127, np.int8)
    file, x = convolution(weight, 5, 3)
    assert in_kernel_order(onnx.load_from_string(file).graph.node[0], weight, one_zero=True) is None
    found = run_without_vnni({"depthwise": (file, x)}, tmp_path)
    assert set(found["depthwise"].ravel().tolist()) == {162}


@needs_kernels_without_vnni
def test_a_depthwise_layer_of_several_zero_points_saturates_as_any_other(tmp_path):
    """x is 255 and the output a sum over 400: 162, 162 and, with the zero point -1, 163."""
    weight = np.full((3, 1, 1, 2), 127, np.int8)
    file, x = convolution(weight, 5, 3, zero=np.array([0, 0, -1], np.int8))
    rows = in_kernel_order(onnx.load_from_string(file).graph.node[0], weight, one_zero=False)
    assert may_saturate(rows, 255)
    found = run_without_vnni({"depthwise": (file, x)}, tmp_path)["depthwise"]
    assert found[0, :, 0, 0].tolist() == [82, 82, 83]


def layers_of(network, tmp_path, *settings, x=None, **options):
    """What inspect says of a calibrated and exported network."""
    x = networks.images(16) if x is None else x
    prepared = qdeploy.prepare(network, x[:2], *settings, **options).eval()
    qdeploy.calibrate(prepared, [x])
    return inspect(qdeploy.export(prepared, tmp_path / "m.onnx", x[:2])).saturation("m")


def test_the_smallest_network_that_came_out_wrong(tmp_path):
    network, x = nn.Conv2d(2, 1, 1), torch.ones(2, 2, 4, 4)
    nn.init.ones_(network.weight)
    nn.init.zeros_(network.bias)
    found = layers_of(network, tmp_path, "simqat", x=x, reduce_range=False)
    assert (len(found.layers), found.quantized) == (1, 1)
    assert layers_of(network, tmp_path, "simqat", x=x, reduce_range=True).layers == ()


def test_the_range_of_what_a_layer_reads_counts(tmp_path):
    """At 7 bits only the image, which has 8, meets weights that two products of could pass int16."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    )
    wide = layers_of(network, tmp_path, "simqat", 8, 8, reduce_range=False)
    assert wide.layers == ("0", "2", "5")
    narrow = layers_of(network, tmp_path, "simqat", 8, 7, reduce_range=False)
    assert (narrow.layers, narrow.quantized) == (("0",), 3)
    assert layers_of(network, tmp_path, "simqat", 8, "float", reduce_range=False).quantized == 0


class Joined(nn.Module):
    """A convolution that reads two others, one of which is enlarged."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 5, 3, 2, padding=1)
        self.last, self.head = nn.Conv2d(10, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        enlarged = nn.functional.interpolate(self.other(x).relu(), scale_factor=2)
        return self.head(self.last(torch.cat([self.one(x).relu(), enlarged], 1)).relu())


def test_what_a_concat_joins_is_bounded_as_its_parts_are(tmp_path):
    """At 4 bits on both sides codes are spread to fill int8, which 15 leaves room for."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    prepared = qdeploy.prepare(Joined(), x, "lsq", 4, 4).eval()
    qdeploy.calibrate(prepared, [x])
    contents = inspect(qdeploy.export(prepared, tmp_path / "m.onnx", x))
    reads = {layer.name: layer.activation.codes for layer in contents.layers}
    assert reads["last"] == (0, 15)
    assert contents.saturation("").layers == ()


@needs_kernels_without_vnni
def test_files_without_such_layers_and_exact_sessions_give_everywhere_the_same(tmp_path):
    x = networks.images(16).numpy()
    files = {
        f"{name} {reduced}": export(
            calibrated_by(networks.build(name), "simqat", reduce_range=reduced)
        ).packed
        for name in ("called_twice", "inverted_residual")
        for reduced in (False, True)
    }
    cases = {name: (file.SerializeToString(), x) for name, file in files.items()}
    exactly = {"session.x64quantprecision": "1"}
    expected = {
        name: session(file, settings=exactly).run(None, {"input": x})[0]
        for name, file in files.items()
    }
    plain, exact = (tmp_path / name for name in ("plain", "exact"))
    plain.mkdir(), exact.mkdir()
    for name, found in run_without_vnni(cases, plain).items():
        assert (found == expected[name]).all() == name.endswith("True"), name
    for name, found in run_without_vnni(cases, exact, exact=True).items():
        np.testing.assert_array_equal(found, expected[name])


@needs_kernels_without_vnni
@pytest.mark.parametrize("reduced", [False, True])
def test_depthwise_layers_with_negative_gains_are_right_on_every_processor(reduced, tmp_path):
    """Folding such a gain into codes of -128..127 would move the zero point of its channel alone."""
    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    nn.init.constant_(network[0].weight, -1)
    network[1].weight.data = torch.tensor([1.0, -1, 1, -1])
    x = torch.rand(8, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    prepared = qdeploy.prepare(network, x[:2], "simqat", reduce_range=reduced)
    qdeploy.calibrate(prepared, [x], batch_norm=True)
    path = qdeploy.export(prepared.eval(), tmp_path / "m.onnx", x[:2])
    contents = inspect(path)
    assert contents.layers[0].weight.zeros == ((0, 0) if reduced else (-1, 0))
    assert contents.saturation("").layers == (() if reduced else ("0",))
    folder = tmp_path / "kernels"
    folder.mkdir()
    found = run_without_vnni({"file": (path.read_bytes(), x.numpy())}, folder)["file"]
    assert (found == outputs(qdeploy.convert(prepared), x)).all() == reduced
