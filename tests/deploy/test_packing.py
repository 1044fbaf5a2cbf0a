"""Packing: exact in numpy, in ONNX Runtime and in onnx's own evaluator, and as small as it says."""

import math
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exported_networks import exported, operators, optimized, run, session
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import images
from onnx import TensorProto, helper, numpy_helper
from onnx_reference import evaluator

from qdeploy.deploy.export import finished
from qdeploy.deploy.names import short_names
from qdeploy.deploy.packing import Digits, Windows, choose, in_words, pack, plan
from qdeploy.deploy.passes import strip_metadata

LEVELS = st.lists(st.integers(-128, 127), min_size=1, max_size=40, unique=True).map(sorted)


def random_codes(levels, shape, seed=0):
    """Every level, and then random ones."""
    codes = np.random.default_rng(seed).choice(levels, shape).astype(np.int8)
    codes.flat[: min(codes.size, len(levels))] = levels[: codes.size]
    return codes


def digits_read(packed, levels, per_byte):
    """The codes of base-n digits, by long division."""
    codes = []
    for number in packed.tolist():
        for _ in range(per_byte):
            number, digit = divmod(number, len(levels))
            codes.append(levels[digit])
    return codes


def windows_read(packed, bits, first, step):
    """The codes of windows: a row of bytes is one long number."""
    rows = [int.from_bytes(row.tobytes(), "little") for row in packed]
    return [
        first + step * (row >> bits * place & 2**bits - 1) for row in rows for place in range(8)
    ]


@given(LEVELS, st.integers(1, 70), st.integers(0, 2**32))
@settings(deadline=None)
def test_digits_are_exact_for_any_levels(levels, count, seed):
    word = 8 if len(levels) <= 16 else 16
    packing = Digits(tuple(levels), word=word)
    codes = random_codes(levels, count, seed)
    packed = packing.pack(codes)
    assert packed.dtype == f"uint{word}"
    assert packed.shape == (math.ceil(count / packing.group),)
    assert digits_read(packed, levels, packing.group)[:count] == codes.tolist()


@given(st.integers(1, 7), st.integers(1, 18), st.data())
@settings(deadline=None)
def test_windows_are_exact_for_any_evenly_spaced_levels(bits, step, data):
    top = (2**bits - 1) * step
    if top > 255:
        step, top = 1, 2**bits - 1
    first = data.draw(st.integers(-128, 127 - top))
    numbers = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=70))
    codes = (first + step * np.array(numbers)).astype(np.int8)
    packing = Windows(bits, first, step)
    packed = packing.pack(codes)
    assert packed.shape == (math.ceil(len(codes) / 8), bits)
    assert windows_read(packed, bits, first, step)[: len(codes)] == codes.tolist()


@pytest.mark.parametrize(
    ("word", "levels", "digits"),
    [
        *[(8, 1, 8), (8, 2, 8), (8, 3, 5), (8, 4, 4), (8, 5, 3), (8, 6, 3), (8, 7, 2), (8, 16, 2)],
        *[(16, 2, 16), (16, 3, 10), (16, 8, 5), (16, 9, 5), (16, 16, 4), (16, 32, 3), (16, 40, 3)],
    ],
)
def test_a_word_holds_as_many_digits_as_fit(word, levels, digits):
    packing = Digits(tuple(range(levels)), word=word)
    assert packing.group == digits
    assert levels**digits <= 2**word
    assert levels == 1 or levels ** (digits + 1) > 2**word


@pytest.mark.parametrize(("bits", "taken"), [(1, 1), (2, 2), (3, 3.2), (4, 4), (5, 16 / 3), (6, 6)])
def test_many_codes_take_their_bits_or_a_fifteenth_more(bits, taken):
    codes = random_codes(np.arange(2**bits) - 2 ** (bits - 1), 120_000)
    packing = choose(codes)
    assert packing.pack(codes).nbytes == round(120_000 * taken / 8)


def test_ternary_codes_take_eight_fifths_of_a_bit():
    codes = random_codes([-1, 0, 1], 80_000)
    assert choose(codes).pack(codes).nbytes == 80_000 // 5
    assert 1.01 * math.log2(3) * 80_000 / 8 > 80_000 // 5


def test_seven_and_eight_bits_and_small_weights_stay_int8():
    assert choose(random_codes(np.arange(-128, 128), 80_000)) is None
    assert choose(random_codes(np.arange(-64, 64), 80_000)) is None
    assert choose(random_codes([-1, 1], 150)) is None


def test_what_a_packing_costs_in_operators_counts():
    assert isinstance(choose(random_codes(np.arange(-32, 32), 8000)), Windows)
    assert choose(random_codes(np.arange(-32, 32), 2000)) is None
    assert choose(random_codes(np.arange(-16, 16), 500)) is None


def test_levels_that_are_absent_cost_nothing():
    assert choose(random_codes([-62, 0, 31], 80_000)) == Digits((-62, 0, 31))
    assert choose(random_codes(np.arange(-96, 96, 6), 80_000)) == Digits(
        tuple(range(-96, 96, 6)), word=16
    )
    assert choose(random_codes(np.arange(-126, 126, 4), 80_000)) == Windows(6, -126, 4)


def test_uneven_levels_beyond_forty_stay_as_they_are():
    uneven = np.array([-128, *range(-10, 10), 127])
    assert choose(random_codes(uneven, 80_000)) == Digits(tuple(uneven.tolist()), word=16)
    many = np.array([-128, *range(-20, 20), 127])
    assert (
        choose(random_codes(many, 80_000)) is None
    )  # 256 steps of 1 from the lowest to the highest


def test_a_table_is_paid_for_once():
    ternary = random_codes([-1, 0, 1], 500)
    assert choose(ternary) is not None
    assert plan([ternary]) == [None]  # 300 bytes of table for 200 saved
    assert plan([ternary] * 3) == [Digits((-1, 0, 1))] * 3


@pytest.mark.parametrize(("levels", "rows"), [(2, 2**16), (3, 3**10), (4, 2**16), (16, 2**16)])
def test_codes_come_in_words_once_these_are_eight_times_the_rows_of_the_table(levels, rows):
    """Words of 16 bits take the room of two bytes, and half as many looks into the table."""
    bytes_, words = (Digits(tuple(range(levels)), word=word) for word in (8, 16))
    just = 8 * rows * words.group
    assert [in_words(bytes_, count) for count in (just, just + 1)] == [bytes_, words]
    half = random_codes(range(levels), just // 2 + 1)
    assert plan([half]) == [bytes_]
    assert plan([half] * 2) == [words] * 2  # of all weights together


def test_codes_that_words_would_not_hold_as_tightly_stay_in_bytes():
    seven = Digits(tuple(range(7)))  # 2 in a byte, 5 in a word
    assert in_words(seven, 10**9) == seven


def graph_with(codes, scale=0.5):
    """A Gather of rows of dequantized codes, so that each code is read back as a number."""
    node = helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["weight"], axis=0)
    picked = helper.make_node("Gather", ["weight", "rows"], ["output"], axis=0)
    shape = ["rows", *codes.shape[1:]]
    graph = helper.make_graph(
        [node, picked],
        "codes",
        [helper.make_tensor_value_info("rows", TensorProto.INT64, ["rows"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(codes, "codes"),
            numpy_helper.from_array(np.full(len(codes), scale, np.float32), "scale"),
            numpy_helper.from_array(np.zeros(len(codes), np.int8), "zero"),
        ],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


GRIDS = {
    **{f"{bits} bits": np.arange(2**bits) - 2 ** (bits - 1) for bits in (*range(1, 7), 8)},
    "1 bit, spread": np.array([-63, 63]),
    "ternary": np.array([-63, 0, 63]),
    "3 bits, odd, spread": 9 * np.arange(-7, 8, 2),
    "narrow": np.arange(-15, 16),
    "uneven": np.array([-128, -5, 0, 1, 127]),
}


@pytest.mark.parametrize("levels", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("shape", [(131, 77), (16, 16, 5, 5)])
def test_both_runtimes_read_back_exactly_the_codes(levels, shape):
    codes = random_codes(levels, shape)
    before = graph_with(codes).ByteSize()
    model = ir.from_proto(graph_with(codes))
    pack(model)
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    check_read_back(after, codes)
    if len(levels) <= 128:
        for rewrite in (strip_metadata, short_names):
            rewrite(model)
        assert ir.to_proto(model).ByteSize() < before
        assert "codes" not in {tensor.name for tensor in after.graph.initializer}
    else:
        assert {tensor.name for tensor in after.graph.initializer} == {"codes", "scale", "zero"}


def check_read_back(file, codes):
    """Both runtimes give the codes, times the scale of `graph_with`."""
    feed = {"rows": np.arange(len(codes))}
    expected = codes.astype(np.float32) / 2
    np.testing.assert_array_equal(session(file).run(None, feed)[0], expected)
    np.testing.assert_array_equal(session(file, plain=True).run(None, feed)[0], expected)
    np.testing.assert_array_equal(evaluator(file).run(None, feed)[0], expected)


@pytest.mark.parametrize("levels", [2, 3, 4, 16])
def test_both_runtimes_read_back_words(levels, monkeypatch):
    monkeypatch.setattr(
        "qdeploy.deploy.packing.in_words", lambda chosen, count: replace(chosen, word=16)
    )
    codes = random_codes(9 * np.arange(levels) - 64, (131, 77))
    model = ir.from_proto(graph_with(codes))
    pack(model)
    assert ir.DataType.UINT16 in {value.dtype for value in model.graph.initializers.values()}
    check_read_back(ir.to_proto(model), codes)


def test_zero_points_are_not_packed():
    model = ir.from_proto(graph_with(random_codes([-1, 1], (4096, 2))))
    pack(model)
    vectors = [v for v in model.graph.initializers.values() if v.shape.rank() == 1]
    assert "zero" in {v.name for v in vectors if v.dtype == ir.DataType.INT8}


PACKED = ["slb w1a8", "simqat w3a4", "simqat w5a6"]


@pytest.mark.parametrize("choice", PACKED)
def test_packed_and_int8_files_give_bit_equal_outputs(choice, tmp_path, monkeypatch):
    file = exported("residual", choice)
    for form in (Digits, Windows):  # so small a network does not earn what packing costs
        monkeypatch.setattr(form, "file_size", lambda self, count: 0)
        monkeypatch.setattr(form, "shared_size", -1)
    copy = onnx.ModelProto.FromString(file.int8.SerializeToString())
    packed = finished(ir.from_proto(copy), True, {})
    assert operators(packed)["Gather"] >= 4
    graph = optimized(packed, tmp_path)
    assert not set(operators(graph)) & {"Gather", "Mod", "Cast", "Slice", "Div", "Mul"}
    assert operators(graph) == operators(optimized(file.int8, tmp_path))
    x = images(33).numpy()
    np.testing.assert_array_equal(run(packed, x), run(file.int8, x))
