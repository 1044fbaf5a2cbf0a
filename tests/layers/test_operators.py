"""The custom operators, each against what its ONNX form computes."""

import numpy as np
import onnx
import pytest
import torch
from exported_networks import run
from onnx_reference import evaluator
from torch import nn

from qdeploy.deploy.export import finished, to_onnx
from qdeploy.layers import operators

VALUES = [
    0.0,
    -0.0,
    1e-30,
    -1e-30,
    2.0**-25,
    -(2.0**-25),
    -(2.0**-24),
    1e-7,
    -1e-7,
    3.5,
    -90.0,
    120.0,
]


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def file_of(function, x):
    return finished(to_onnx(Applied(function), x), False, {})


def test_a_sign_is_plus_one_from_zero_on_bitwise_as_in_the_file():
    x = torch.tensor(VALUES).reshape(2, 6)
    wanted = operators.sign(x).numpy()
    np.testing.assert_array_equal(wanted, [[1, 1, 1, 1, 1, 1], [-1, 1, -1, 1, -1, 1]])
    file = file_of(lambda x: operators.sign(x), x)
    np.testing.assert_array_equal(run(file, x), wanted)
    np.testing.assert_array_equal(evaluator(file).run(None, {"input": x.numpy()})[0], wanted)


@pytest.mark.parametrize(("bits", "kind"), [(8, torch.uint8), (4, torch.uint8), (16, torch.uint16)])
def test_an_activation_is_rounded_bitwise_as_in_the_file(bits, kind):
    x = torch.randn(64, 9, generator=torch.Generator().manual_seed(0)) * 3
    scale, zero = torch.tensor(6 / 2**bits), torch.tensor(2 ** (bits - 1)).to(kind)

    def rounded(x):
        return operators.quantize_dequantize(x, scale, zero, 0, 2**bits - 1)

    codes = np.rint(x.numpy() / np.float32(scale)) + int(zero)
    wanted = (np.clip(codes, 0, 2**bits - 1) - int(zero)).astype(np.float32) * np.float32(scale)
    np.testing.assert_array_equal(rounded(x).numpy(), wanted)
    file = file_of(rounded, x)
    np.testing.assert_array_equal(run(file, x), wanted)
    np.testing.assert_array_equal(evaluator(file).run(None, {"input": x.numpy()})[0], wanted)
    stored = {onnx.TensorProto.DataType.Name(t.data_type) for t in file.graph.initializer}
    assert str(kind).rpartition(".")[2].upper() in stored
