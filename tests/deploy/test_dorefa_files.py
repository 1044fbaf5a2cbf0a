"""DoReFa-Net's files: narrowed copies of 8 bits, 16-bit weights and activations, signs of pools."""

import numpy as np
import onnx
import pytest
import torch
from exported_networks import calibrated_by, export, operators, optimized, outputs, run, spread
from networks import Network, build, conv, images
from torch import nn

KERNELS = {"QLinearConv": 5, "QLinearAdd": 2, "QGemm": 1, "QLinearGlobalAveragePool": 1}


@pytest.mark.parametrize("bits", [2, 8])
def test_a_residual_network_runs_in_integer_kernels_and_gives_what_training_gave(bits, tmp_path):
    """The Add reads 8 bits and a layer its narrowed copy: no runtime may join the two roundings."""
    prepared = calibrated_by(build("residual"), "dorefa", bits, bits)
    file, x = export(prepared), images(64)
    found = operators(optimized(file.packed, tmp_path))
    assert {kind: found[kind] for kind in KERNELS} == KERNELS
    assert (
        operators(file.packed)["QuantizeLinear"] > 1 + 5 + 2
    )  # one for each product, sum and copy
    integer, trained = outputs(file.converted, x), outputs(prepared, x)
    np.testing.assert_allclose(run(file.packed, x), integer, atol=1e-4 * spread(integer))
    np.testing.assert_allclose(
        run(file.packed, x, plain=True), integer, atol=1e-4 * spread(integer)
    )
    assert (integer.argmax(1) == trained.argmax(1)).mean() > 0.95


@pytest.mark.parametrize(("weight_bits", "act_bits"), [(16, 16), (2, 16)])
def test_sixteen_bits_are_float_kernels_on_half_the_bytes(weight_bits, act_bits, tmp_path):
    prepared = calibrated_by(build("residual"), "dorefa", weight_bits, act_bits)
    file, x = export(prepared), images(64)
    trained = outputs(prepared, x)
    np.testing.assert_allclose(run(file.packed, x), trained, atol=2e-4 * spread(trained))
    found = optimized(file.packed, tmp_path)
    assert operators(found)["Conv"] == 5
    weights = {node.input[0] for node in found.graph.node if node.op_type == "DequantizeLinear"}
    assert not weights & {value.name for value in found.graph.initializer}  # read at load
    types = {value.data_type for value in file.packed.graph.initializer}
    assert (onnx.TensorProto.INT16 in types) == (weight_bits == 16)
    assert (onnx.TensorProto.UINT16 in types) == (act_bits == 16)


def test_the_sign_of_a_global_average_runs(tmp_path):
    network = Network(
        lambda self, x: self.fc(torch.flatten(self.pool(self.norm(self.conv(x))), 1)),
        conv=conv(), norm=nn.BatchNorm2d(6), pool=nn.AdaptiveAvgPool2d(1), fc=nn.Linear(6, 5),
    )  # fmt: skip
    prepared = calibrated_by(network, "dorefa", 1, 1)
    file, x = export(prepared), images(64)
    integer = outputs(file.converted, x)
    np.testing.assert_allclose(run(file.packed, x), integer, atol=1e-4 * spread(integer))


def test_the_sign_of_an_average_over_a_sequence_runs(tmp_path):
    network = Network(
        lambda self, x: self.fc(torch.flatten(self.pool(self.norm(self.conv(x.flatten(2)))), 1)),
        conv=nn.Conv1d(3, 6, 3), norm=nn.BatchNorm1d(6), pool=nn.AdaptiveAvgPool1d(1), fc=nn.Linear(6, 5),
    )  # fmt: skip
    prepared = calibrated_by(network, "dorefa", 1, 1)
    file, x = export(prepared), images(64)
    integer = outputs(file.converted, x)
    np.testing.assert_allclose(run(file.packed, x), integer, atol=1e-4 * spread(integer))
