"""Regions between two names stay float: which values are rounded, what runs in integers, what is refused."""

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from networks import conv, images
from torch import nn

import qdeploy
from qdeploy.benchmark import placement
from qdeploy.errors import QdeployError
from qdeploy.layers.activation import ActivationQuantizer
from qdeploy.layers.quantized import QuantizedLayer


class Decode(nn.Module):
    """Boxes of a head's raw outputs, with a layer in it."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(6, 6, 1)
        self.act = nn.SiLU()

    def forward(self, x):
        centre, size = self.act(self.mix(x)).chunk(2, 1)
        return torch.cat([torch.sigmoid(centre) * 2 - 0.5, size.exp()], 1)


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head, self.decode, self.scale = conv(3, 6), conv(6, 6), Decode(), nn.Tanh()
        self.last = conv(6, 4)

    def forward(self, x):
        boxes = self.scale(self.decode(self.head(F.relu(self.stem(x)))))
        return F.relu(self.last(boxes)).mean((2, 3))


def prepared_of(*leaves, network=None, **options):
    network = Detector() if network is None else network
    prepared = qdeploy.prepare(network, images(2), "simqat", leaves=list(leaves), **options)
    qdeploy.calibrate(prepared, [images(8)])
    return prepared.eval()


def rounded(prepared):
    """The nodes whose values are rounded."""
    graph = prepared.plan.evaluation.graph
    calls = ((n, prepared.get_submodule(n.target)) for n in graph.find_nodes(op="call_module"))
    return [n.all_input_nodes[0].name for n, m in calls if isinstance(m, ActivationQuantizer)]


def test_nothing_between_the_two_is_quantized():
    prepared = prepared_of("decode -> scale")
    assert prepared.settings["decode.mix"] is None
    assert {n for n, _ in prepared.quantized_layers()} == {"stem", "head", "last"}
    assert rounded(prepared) == ["x", "relu", "head", "scale", "relu_1"]
    assert {"decode_mix", "exp", "sub"} <= set(rounded(prepared_of()))


def test_inside_it_computes_what_the_float_network_does():
    network = Detector().eval()
    prepared = prepared_of("decode -> scale", network=network)
    read = qdeploy.features(prepared, ["head"])(images(8))[1]["head"]
    found = qdeploy.features(prepared, ["scale"])(images(8))[1]["scale"]
    wanted = network.scale(network.decode(read))
    step = prepared.get_submodule("scale.activation").qparams()[0]
    assert (found - wanted).abs().max() <= 0.5001 * step


def test_the_layers_around_it_run_in_integers(tmp_path):
    prepared = prepared_of("decode -> scale")
    file = qdeploy.export(prepared, tmp_path / "m.onnx", images(2))
    found = placement(file, "cpu")
    assert found.integer_kernels["QLinearConv"] == 3
    assert sum(found.float_kernels.values()) == 1
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    ours = session.run(None, {"input": images(4).numpy()})[0]
    wanted = qdeploy.convert(prepared)(images(4)).detach().numpy()
    assert (
        np.abs(ours - wanted).max() <= 0.02 * np.abs(wanted).max()
    )  # a code behind float may differ


def test_a_node_and_the_output_are_places_as_well():
    prepared = prepared_of("cat -> output")
    assert {n for n, _ in prepared.quantized_layers()} == {"stem", "head", "decode.mix"}
    assert not {"cat", "scale", "last"} & set(rounded(prepared))
    whole = prepared_of("decode -> decode", "last -> last")
    assert whole.settings["last"] is None
    assert isinstance(whole.head, QuantizedLayer)


def test_what_is_read_outside_as_well_is_rounded_there_alone():
    class Shared(Detector):
        def forward(self, x):
            y = self.decode(self.head(F.relu(self.stem(x))))
            return self.last(y).mean((2, 3)) + self.scale(y).mean((2, 3))[:, :4]

    prepared = prepared_of("decode -> scale", network=Shared())
    graph = prepared.plan.evaluation.graph
    (scale,) = (n for n in graph.nodes if n.target == "scale")
    assert scale.all_input_nodes[0].name == "cat"
    (last,) = (n for n in graph.nodes if n.target == "last")
    assert isinstance(prepared.get_submodule(last.all_input_nodes[0].target), ActivationQuantizer)


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (
            "decod -> scale",
            r"'decod -> scale' has decod, .* Did you mean decode\? Its modules are stem",
        ),
        ("decode -> nms", "has nms, and the network runs no module and no node of that name"),
        ("scale -> decode", "no path leads from scale to decode; there is from decode to scale"),
        ("a -> b -> c", "a region is two names"),
        ("-> b", "a region is two names"),
    ],
)
def test_what_is_no_region_is_said(leaf, message):
    with pytest.raises(QdeployError, match=message):
        prepared_of(leaf)
