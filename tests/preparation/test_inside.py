"""A prepared network inside another module ships its integers."""

import onnx
import pytest
import torch
from networks import build, images
from torch import nn
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.layers.integer import IntegerLayer


class Ensemble(nn.Module):
    """As a LightningModule: the network is an attribute, and forward does more."""

    def __init__(self, net):
        super().__init__()
        self.net, self.same = net, [net]

    def forward(self, x):
        return (self.net(x) + self.same[0](x)).softmax(1)


AROUND = {
    "sequential": lambda net: nn.Sequential(net, nn.Softmax(1)),
    "attribute": Ensemble,
    "data parallel": DataParallel,
    "average": lambda net: AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn()),
    "compiled": torch.compile,
    "wrapped inside": lambda net: nn.Sequential(DataParallel(net), nn.Softmax(1)),
    "compiled around": lambda net: torch.compile(nn.Sequential(net, nn.Softmax(1))),
}


@pytest.fixture(scope="module")
def prepared():
    prepared = qdeploy.prepare(build("residual"), images(4), "simqat")
    qdeploy.calibrate(prepared, [images()])
    return prepared.eval()


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_convert_gives_the_integers_inside(prepared, around):
    integers = qdeploy.convert(prepared)(images())
    module = qdeploy.convert(around(prepared))
    assert any(isinstance(part, IntegerLayer) for part in module.modules())
    wrapped = around(prepared)
    network = getattr(wrapped, "_orig_mod", wrapped)
    behind = nn.Softmax(1) if isinstance(network, nn.Sequential) else nn.Identity()
    expected = (2 * integers).softmax(1) if isinstance(network, Ensemble) else behind(integers)
    torch.testing.assert_close(module(images()), expected)


def test_the_file_has_integers_and_what_stands_behind_them(prepared, tmp_path):
    file = qdeploy.export(
        nn.Sequential(prepared, nn.Softmax(1)), tmp_path / "model.onnx", images(2)
    )
    model = onnx.load(file)
    assert model.graph.node[-1].op_type == "Softmax"
    assert "DequantizeLinear" in {node.op_type for node in model.graph.node}


def test_a_module_without_one_is_an_error():
    with pytest.raises(QdeployError, match="not Sequential, which holds no prepared network"):
        qdeploy.convert(nn.Sequential(nn.Conv2d(3, 4, 1)))
