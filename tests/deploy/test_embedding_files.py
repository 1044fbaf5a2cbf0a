"""Tables of words: looked up, trained and shipped as codes, against NumPy and ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnx_reference import evaluator
from sequence_networks import Words, sentences
from torch import nn

import qdeploy
from qdeploy.deploy.inspect import inspect


def prepared_of(network, method="simqat", bits=4, **options):
    prepared = qdeploy.prepare(network, sentences(), method, bits, **options)
    qdeploy.calibrate(prepared, [sentences(16, 7)])
    return prepared.eval()


def run(file, words):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: words.numpy()})[0]


@pytest.fixture(scope="module")
def prepared():
    return prepared_of(Words())


@pytest.fixture(scope="module")
def file(prepared, tmp_path_factory):
    return qdeploy.export(prepared, tmp_path_factory.mktemp("words") / "m.onnx", sentences())


def test_it_looks_up_rows_of_the_rounded_table(prepared):
    table = prepared.words.weight.detach().numpy()
    scale = np.abs(table).max(1, keepdims=True) / 7.5
    found = prepared.words(sentences()).detach().numpy()
    step = prepared.words.quantizer.collapse(prepared.words.weight).scale.numpy()[:, None]
    np.testing.assert_allclose(step, scale, rtol=1e-5)
    rounded = np.clip(np.round(table / step), -8, 7) * step
    np.testing.assert_array_equal(found, rounded[sentences().numpy()])


def test_settings_say_that_it_reads_no_values(prepared):
    found = {name: (s.weight_bits, s.act_bits) for name, s in prepared.settings.items()}
    assert found == {"words": (4, None), "places": (4, None), "fc": (4, 8)}


def test_the_file_gives_what_convert_gives(prepared, file):
    words = sentences(5, 2)
    wanted = qdeploy.convert(prepared)(words).detach().numpy()
    np.testing.assert_allclose(run(file, words), wanted, atol=1e-6)
    (found,) = evaluator(onnx.load(file)).run(None, {"input": words.numpy()})
    np.testing.assert_allclose(found, wanted, atol=0.02 * np.abs(wanted).max())


def test_the_table_stays_codes_in_memory(file, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    held = onnx.load(tmp_path / "optimized.onnx").graph.initializer
    tables = [numpy_helper.to_array(t) for t in held if tuple(t.dims) == (300, 12)]
    assert [table.dtype for table in tables] == [np.int8]


def test_inspect_reads_bits_and_scales(prepared, file):
    places, words, fc = inspect(file).layers
    assert [layer.name for layer in (words, places, fc)] == ["words", "places", "fc"]
    for row, layer in ((words, prepared.words), (places, prepared.places)):
        weight, _ = layer.integers()
        assert (row.weight.bits, row.activation, row.shape) == (4, None, tuple(weight.codes.shape))
        np.testing.assert_allclose(
            row.weight.scales, (weight.scale.min(), weight.scale.max()), rtol=1e-6
        )
    assert words.stored == "uint8"
    assert words.bytes == 300 * 12 // 2


@pytest.mark.parametrize("options", [{"weight_symmetric": False}, {"weight_per_channel": False}])
def test_zero_points_and_one_scale_for_all_rows_ship_as_well(options, tmp_path):
    prepared = prepared_of(Words(), **options)
    file = qdeploy.export(prepared, tmp_path / "m.onnx", sentences())
    wanted = qdeploy.convert(prepared)(sentences(5, 2)).detach().numpy()
    np.testing.assert_allclose(run(file, sentences(5, 2)), wanted, atol=1e-6)


class Language(nn.Module):
    """Scores of the next word by the table of words itself, whose rows are made larger."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.last = nn.Embedding(300, 16, padding_idx=0), nn.Linear(16, 300, bias=False)
        self.last.weight = self.words.weight

    def forward(self, words):
        return self.last(torch.relu(self.words(words) * 4))


def test_a_table_that_is_a_weight_as_well_has_one_quantizer(tmp_path):
    prepared = prepared_of(Language(), bits=8)
    assert prepared.words.quantizer is prepared.last.quantizer
    assert prepared.words.weight is prepared.last.weight
    bits = {name: (s.weight_bits, s.act_bits) for name, s in prepared.settings.items()}
    assert bits == {"words": (7, None), "last": (7, 8)}  # reduce_range, of both
    file = qdeploy.export(prepared, tmp_path / "m.onnx", sentences())
    wanted = qdeploy.convert(prepared)(sentences(5, 2)).detach().numpy()
    np.testing.assert_allclose(run(file, sentences(5, 2)), wanted, atol=1e-5)


def test_training_moves_the_rows_that_were_read_and_not_the_padding():
    prepared = qdeploy.prepare(Words(padding_idx=3), sentences(), "lsq", 4).train()
    prepared(sentences()).square().sum().backward()
    moved = prepared.words.weight.grad.abs().sum(1).numpy() > 0
    read = np.isin(np.arange(300), sentences().numpy()) & (np.arange(300) != 3)
    np.testing.assert_array_equal(moved, read)


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"sparse": True}])
def test_a_table_that_forward_writes_to_or_of_sparse_gradients_stays_float(options):
    prepared = qdeploy.prepare(Words(**options), sentences(), "simqat", check=False)
    assert type(prepared.words) is nn.Embedding
    assert prepared.settings["words"] is None
    assert prepared.settings["places"].weight_bits == 8
