"""uint8 images into the file, against the data pipeline's own normalisation."""

import networks
import numpy as np
import onnx
import pytest
import torch
from exported_networks import operators, session
from onnx_reference import evaluator

import qdeploy
from qdeploy.data import Normalisation
from qdeploy.errors import QdeployError

CIFAR = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
GREY = (0.3054,) * 3, (0.3247,) * 3


def pixels(count=32):
    drawn = np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8), np.uint8)
    drawn[0].flat[:2] = 0, 255  # the whole range is seen
    return torch.from_numpy(drawn)


def prepared_on(mean, std, act_bits=8, network="plain"):
    images = Normalisation(mean, std, "cpu")(pixels(48))
    prepared = qdeploy.prepare(networks.build(network), images[:2], "simqat", 8, act_bits)
    qdeploy.calibrate(prepared, [images])
    return prepared.eval()


def exported(prepared, folder, mean, std, **options):
    """The file that takes pixels, and the one that takes normalised images."""
    example = torch.zeros(2, 3, 8, 8)
    one, other = folder / "pixels.onnx", folder / "images.onnx"
    qdeploy.export(prepared, one, example, uint8_input=(mean, std), **options)
    qdeploy.export(prepared, other, example, **options)
    return onnx.load(one), onnx.load(other)


def logits(proto, images):
    return session(proto).run(None, {"input": images.numpy()})[0]


def test_one_grey_for_all_channels_is_folded_away(tmp_path):
    taking, plain = exported(prepared_on(*GREY), tmp_path, *GREY)
    assert taking.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert operators(taking)["QuantizeLinear"] == operators(plain)["QuantizeLinear"] - 1
    assert not {"Cast", "Sub", "Div"} & set(operators(taking))
    normalise = Normalisation(*GREY, "cpu")
    np.testing.assert_array_equal(logits(taking, pixels()), logits(plain, normalise(pixels())))


def test_all_256_pixels_are_their_own_codes_where_it_is_folded(tmp_path):
    _, plain = exported(prepared_on(*GREY), tmp_path, *GREY)
    first = plain.graph.node[0]
    assert (first.op_type, first.input[0]) == ("QuantizeLinear", "input")
    plain.graph.output.append(onnx.helper.make_empty_tensor_value_info(first.output[0]))
    values = torch.arange(256).to(torch.uint8).reshape(4, 1, 8, 8).expand(4, 3, 8, 8)
    images = Normalisation(*GREY, "cpu")(values)
    codes = session(plain, plain=True).run([first.output[0]], {"input": images.numpy()})[0]
    np.testing.assert_array_equal(codes, values.numpy())


@pytest.mark.parametrize("case", ["channels differ", "range is smaller", "4 bits", "float"])
def test_elsewhere_the_graph_normalises_bit_for_bit(case, tmp_path):
    mean, std = CIFAR if case == "channels differ" else GREY
    if case == "float":
        prepared = networks.build("plain").eval()
    elif case == "range is smaller":
        images = Normalisation(mean, std, "cpu")(pixels(48) // 2)
        prepared = qdeploy.prepare(networks.build("plain"), images[:2], "simqat", 8, 8)
        qdeploy.calibrate(prepared, [images])
        prepared.eval()
    else:
        prepared = prepared_on(mean, std, 4 if case == "4 bits" else 8)
    taking, plain = exported(prepared, tmp_path, mean, std)
    if case == "4 bits":  # the image itself has 8 bits, whatever the layers have
        assert "Div" not in operators(taking)
    else:
        assert {"Cast", "Sub", "Div"} <= set(operators(taking))
    images = Normalisation(mean, std, "cpu")(pixels())
    np.testing.assert_array_equal(logits(taking, pixels()), logits(plain, images))


def test_onnx_itself_normalises_as_the_data_pipeline_does(tmp_path):
    taking, _ = exported(networks.build("plain").eval(), tmp_path, *CIFAR)
    end = next(node for node in taking.graph.node if node.op_type == "Div").output[0]
    taking.graph.output.append(onnx.helper.make_empty_tensor_value_info(end))
    found = evaluator(taking).run([end], {"input": pixels().numpy()})[0]
    np.testing.assert_array_equal(found, Normalisation(*CIFAR, "cpu")(pixels()).numpy())


def test_signed_codes_are_not_pixels(tmp_path):
    taking, plain = exported(prepared_on(*GREY), tmp_path, *GREY, target="tensorrt")
    assert {"Cast", "Sub", "Div"} <= set(operators(taking))
    images = Normalisation(*GREY, "cpu")(pixels())
    np.testing.assert_array_equal(logits(taking, pixels()), logits(plain, images))


def test_pixels_come_back_from_normalised_images():
    for mean, std in (CIFAR, GREY):
        normalise = Normalisation(mean, std, "cpu")
        values = torch.arange(256).to(torch.uint8).reshape(4, 1, 8, 8).expand(4, 3, 8, 8)
        assert torch.equal(normalise.pixels(normalise(values)), values)


def test_other_numbers_of_channels_are_refused(tmp_path):
    with pytest.raises(
        QdeployError, match="images of 3 channels, and the normalisation has 1 means"
    ):
        exported(networks.build("plain").eval(), tmp_path, (0.5,), (0.5,))
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_reads_no_images_is_refused(tmp_path):
    with pytest.raises(QdeployError, match=r"networks that read images \[N, C, H, W\]"):
        qdeploy.export(
            torch.nn.Linear(12, 5), tmp_path / "m.onnx", torch.zeros(2, 12), uint8_input=GREY
        )
