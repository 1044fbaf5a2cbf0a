import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qdeploy.grid import Grid, QTensor

BITS = st.integers(2, 8)
GRIDS = st.one_of(
    st.builds(Grid.signed, BITS, st.booleans()),
    st.builds(Grid.odd, st.integers(1, 6)),
    st.just(Grid((-1, 0, 1))),
    st.just(Grid((-7, -2, 0, 2, 7))),
)
SCALES = st.floats(2**-20, 1024, width=32)
GAINS = st.one_of(st.just(0.0), st.floats(-8, 8, width=32))


@st.composite
def qtensors(draw, grids=GRIDS):
    """Random codes and, where the grid has every integer, random zero points."""
    grid = draw(grids)
    out = draw(st.integers(1, 4))
    shape = (out, *draw(st.sampled_from([(3,), (2, 1, 2), (1, 5)])))
    member = st.sampled_from(grid.codes)
    codes = draw(arrays.arrays(np.int8, shape, elements=member))
    contiguous = len(grid.codes) == grid.highest - grid.lowest + 1
    zero = draw(arrays.arrays(np.int8, out, elements=member if contiguous else st.just(0)))
    scale = draw(arrays.arrays(np.float32, out, elements=SCALES))
    return qtensor(codes, scale, zero, grid)


def qtensor(codes, scale, zero, grid):
    """A QTensor of numpy arrays, or of lists."""
    kind = np.int8 if grid.storage == torch.int8 else np.int16
    parts = (np.asarray(codes, kind), np.asarray(scale, np.float32), np.asarray(zero, kind))
    return QTensor(*map(torch.from_numpy, parts), grid).checked()


def reference(tensor):
    """(code - zero) * scale, channel by channel, in float64."""
    rows = [
        (row.numpy().astype(np.float64) - float(zero)) * float(scale)
        for row, zero, scale in zip(tensor.codes, tensor.zero, tensor.scale, strict=True)
    ]
    return np.stack(rows)


@pytest.mark.parametrize(
    ("grid", "codes", "bits", "symmetric"),
    [
        (Grid.signed(8), range(-128, 128), 8, False),
        (Grid.signed(8, narrow=True), range(-127, 128), 8, True),
        (Grid.signed(2), (-2, -1, 0, 1), 2, False),
        (Grid.signed(2, narrow=True), (-1, 0, 1), 2, True),
        (Grid.unsigned(3), range(8), 3, False),
        (Grid.unsigned(3, narrow=True), range(1, 8), 3, False),
        (Grid.odd(1), (-1, 1), 1, True),
        (Grid.odd(2), (-3, -1, 1, 3), 2, True),
        (Grid.odd(4), range(-15, 16, 2), 4, True),
        (Grid((7,)), (7,), 1, False),
        (Grid((-4, 0, 3)), (-4, 0, 3), 2, False),
    ],
)
def test_a_grid_knows_its_codes_bits_and_symmetry(grid, codes, bits, symmetric):
    assert grid.codes == tuple(codes)
    assert (grid.lowest, grid.highest) == (min(codes), max(codes))
    assert grid.bits == bits
    assert grid.symmetric is symmetric


@pytest.mark.parametrize("codes", [(), (1, 1), (2, 1), (-1, 3, 2)])
def test_a_grid_needs_ascending_codes(codes):
    with pytest.raises(ValueError, match="ascending"):
        Grid(codes)


def test_a_tensor_holds_the_codes_of_its_grid_and_no_others():
    one, none = torch.ones(2), torch.zeros(2, dtype=torch.int8)
    grid = Grid((-3, -1, 1, 3))
    fits = QTensor(torch.tensor([[-3, 3], [1, 1]], dtype=torch.int8), one, none, grid)
    assert fits.checked() is fits
    with pytest.raises(ValueError, match=r"codes outside Grid\(-3, -1, 1, 3\): \[2\]"):
        QTensor(torch.tensor([[-3, 3], [2, 1]], dtype=torch.int8), one, none, grid).checked()


@pytest.mark.parametrize(
    ("grid", "text"),
    [
        (Grid.odd(1), "Grid(-1, 1)"),
        (Grid.signed(8), "Grid(-128..127)"),
        (Grid.odd(4), "Grid(-15..15 by 2)"),
    ],
)
def test_a_grid_prints_short(grid, text):
    assert repr(grid) == text


def test_codes_outside_the_grid_are_named():
    with pytest.raises(ValueError, match=r"outside Grid\(-1, 1\).*0"):
        qtensor([[0, 1]], [1], [0], Grid((-1, 1)))


@pytest.mark.parametrize("grid", [Grid.odd(8), Grid.unsigned(8)])
def test_codes_of_a_grid_wider_than_int8_are_int16(grid):
    codes = torch.tensor([[1], [grid.highest]])
    one, none = torch.ones(2), torch.zeros(2)
    with pytest.raises(ValueError, match=r"is stored as torch\.int16, not torch\.int8"):
        QTensor(codes.to(torch.int8), one, none.to(torch.int8), grid)
    wide = QTensor(codes.to(torch.int16), one, none.to(torch.int16), grid)
    assert torch.equal(wide.dequantize(), codes.float())
    assert wide.fold(one).codes.dtype == wide.fold(one).zero.dtype == torch.int16


def test_a_grid_wider_than_int16_is_refused():
    with pytest.raises(ValueError, match=r"Grid\(0, 32768\) does not fit int16"):
        _ = Grid((0, 32768)).storage


@given(qtensors())
def test_dequantize_is_code_minus_zero_times_scale(tensor):
    np.testing.assert_allclose(tensor.dequantize(), reference(tensor), rtol=2**-23)
    assert tensor.dequantize().dtype == torch.float32


def test_code_minus_zero_does_not_wrap_around():
    """127 - (-128) is 255, and not the -1 of int8."""
    tensor = qtensor([[127], [-128]], [1, 1], [-128, 127], Grid.signed(8))
    assert tensor.dequantize().tolist() == [[255.0], [-255.0]]


@given(st.data(), qtensors())
def test_folding_multiplies_by_the_gain_and_never_quantizes_again(data, tensor):
    """Two roundings (scale times gain, then times the code) against one: at most 2 units of 2^-23."""
    gain = data.draw(arrays.arrays(np.float32, len(tensor.scale), elements=GAINS))
    folded = tensor.fold(torch.from_numpy(gain))
    wanted = reference(tensor) * gain.astype(np.float64).reshape(-1, *[1] * (tensor.codes.ndim - 1))
    np.testing.assert_allclose(folded.dequantize(), wanted, rtol=2**-22, atol=1e-37)
    assert folded.grid == tensor.grid
    assert folded.checked().scale.dtype == torch.float32
    assert (folded.scale >= 0).all()


@given(qtensors())
def test_folding_minus_one_twice_gives_back_every_bit(tensor):
    gain = torch.full((len(tensor.scale),), -1.0)
    twice = tensor.fold(gain).fold(gain)
    np.testing.assert_array_equal(twice.codes, tensor.codes)
    np.testing.assert_array_equal(twice.zero, tensor.zero)
    np.testing.assert_array_equal(twice.scale, tensor.scale)


def test_only_channels_of_negative_gain_are_flipped():
    grid = Grid.signed(8)
    tensor = qtensor([[-128, 127, 0]] * 3, [1, 1, 2], [0, 0, 5], grid)
    folded = tensor.fold(torch.tensor([2, -2, -0.5]))
    assert folded.codes.tolist() == [[-128, 127, 0], [127, -128, -1], [127, -128, -1]]
    assert folded.zero.tolist() == [0, -1, -6]
    assert folded.scale.tolist() == [2, 2, 1]


def test_codes_of_a_symmetric_grid_change_their_sign():
    folded = qtensor([[-3, 1]], [1], [0], Grid.odd(2)).fold(torch.tensor([-1.0]))
    assert folded.codes.tolist() == [[3, -1]]
    assert folded.zero.tolist() == [0]


def test_a_gain_of_zero_leaves_no_weight():
    tensor = qtensor([[-128, 5]], [1], [3], Grid.signed(8))
    assert not tensor.fold(torch.zeros(1)).dequantize().any()


SPREADABLE = st.one_of(
    st.builds(Grid.signed, st.integers(2, 4)), st.builds(Grid.odd, st.integers(1, 4))
)


@given(qtensors(SPREADABLE), st.sampled_from([1, 2, 4, 8]))
def test_spreading_by_a_power_of_two_changes_no_bit_of_the_values(tensor, factor):
    spread = tensor.spread(factor)
    np.testing.assert_array_equal(spread.dequantize(), tensor.dequantize())
    np.testing.assert_array_equal(spread.codes, tensor.codes.numpy().astype(int) * factor)
    assert spread.grid.codes == tuple(code * factor for code in tensor.grid.codes)


@given(qtensors(SPREADABLE), st.integers(1, 8))
def test_spreading_by_any_integer_changes_values_by_rounding_alone(tensor, factor):
    np.testing.assert_allclose(tensor.spread(factor).dequantize(), tensor.dequantize(), rtol=2**-22)


@pytest.mark.parametrize("factor", [2, 3, 63])
def test_spreading_beyond_int8_is_refused_and_does_not_wrap_around(factor):
    tensor = qtensor([[64, -128]], [1], [0], Grid.signed(8))
    with pytest.raises(ValueError, match="int8"):
        tensor.spread(factor)
