"""Batches, networks and names as users have them: taken as what they are, or refused by name."""

import pytest
import torch
from networks import Network, images
from torch import nn

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.layers.activation import MovingRange


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, pixel_values):
        return torch.relu(self.conv(pixel_values))


class Two(Named):
    def forward(self, pixel_values, scale):
        return super().forward(pixel_values) * scale


def ranges(network, example, batch):
    prepared = qdeploy.prepare(network, example, "simqat").eval()
    qdeploy.calibrate(prepared, [batch])
    return [m.maximum.item() for m in prepared.modules() if isinstance(m, MovingRange)]


x, scale, labels = images(4), torch.rand(4, 1, 1, 1), torch.arange(4)
FORMS = {
    "sequence": [x, labels],
    "array": x.numpy(),
    "array of doubles": x.double().numpy(),
    "doubles": x.double(),
    "tuple of arrays": (x.numpy(), labels.numpy()),
    "mapping": {"labels": labels, "pixel_values": x},
    "mapping of arrays": {"pixel_values": x.double().numpy(), "labels": labels.numpy()},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_images_give_the_same_ranges(form):
    assert ranges(Named(), x, FORMS[form]) == pytest.approx(ranges(Named(), x, x))


def test_several_arguments_are_found_by_name():
    expected = ranges(Two(), (x, scale), (x, scale))
    assert ranges(Two(), (x, scale), {"scale": scale, "pixel_values": x}) == expected
    assert ranges(Two(), (x.numpy(), scale.numpy()), (x, scale, labels)) == expected


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([{"image": x}], r'has image, but not pixel_values.*\[batch\["image"\] for batch in loader\]'),
        ([x.byte()], r"torch.uint8 \[4, 3, 8, 8\] for pixel_values.*torch.float32.*normalised"),
        ([x.long()], r"torch.int64 .* for pixel_values"),
        (["cat.jpg"], "takes tensors or NumPy arrays, not str"),
        ([["cat.jpg"]], "takes tensors or NumPy arrays, not str"),
        (x.numpy(), r"takes batches, not ndarray: give it a list, \[x\]"),
        ({"pixel_values": x}, "takes batches, not dict"),
        (None, "takes batches, not NoneType"),
    ],
)  # fmt: skip
def test_what_forward_does_not_take_is_refused_by_name(batches, message):
    prepared = qdeploy.prepare(Named(), x, "simqat")
    with pytest.raises(QdeployError, match=message):
        qdeploy.calibrate(prepared, batches)


def test_a_table_of_numbers_stays_one():
    network = Network(
        lambda s, ids: s.last(s.table(ids)), table=nn.Embedding(5, 6), last=nn.Linear(6, 2)
    )
    prepared = qdeploy.prepare(network, labels, "simqat").eval()
    qdeploy.calibrate(prepared, [labels.numpy()])
    assert prepared(labels).isfinite().all()


def test_calibrate_wants_a_prepared_network():
    with pytest.raises(QdeployError, match=r"what qdeploy\.prepare returned; Named holds none"):
        qdeploy.calibrate(Named(), [x])


def test_what_makes_a_network_is_no_network(tmp_path):
    with pytest.raises(QdeployError, match=r"not Named.*prepare\(Named\(\), \.\.\.\)"):
        qdeploy.prepare(Named, x, "simqat")
    with pytest.raises(QdeployError, match="export takes a network, not Named"):
        qdeploy.export(Named, tmp_path / "m.onnx", x)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("weights_bits", "weight_bits"),
        ("activation_bits", "act_bits"),
        ("reduced_range", "reduce_range"),
    ],
)
def test_a_misspelt_setting_is_named_with_the_right_one(name, meant):
    with pytest.raises(QdeployError, match=rf"has {name}\. Did you mean {meant}\?"):
        qdeploy.prepare(Named(), x, "simqat", **{name: 4})
    with pytest.raises(QdeployError, match=r"weight_symetric\. Did you mean weight_symmetric\?"):
        qdeploy.prepare(Named(), x, "simqat", weight_symetric=False)


@pytest.mark.parametrize(
    "given", [True, (0.5, 0.25), ([0.5] * 3,), ([128.0] * 3, [64.0] * 3), ([0.5], [0.0])]
)
def test_a_normalisation_that_is_none_is_refused(given, tmp_path):
    prepared = qdeploy.prepare(Named(), x, "simqat").eval()
    qdeploy.calibrate(prepared, [x])
    with pytest.raises(QdeployError, match=r"uint8_input is .*\(mean, std\).*scaled to 0\.\.1"):
        qdeploy.export(prepared, tmp_path / "m.onnx", x, uint8_input=given)
