import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qdeploy import QdeployError
from qdeploy.layers.activation import ActivationQuantizer, MovingRange

BITS = range(2, 9)


def seen(quantizer, *batches):
    """The quantizer in training mode after `batches`."""
    quantizer.train()
    for batch in batches:
        quantizer(torch.as_tensor(batch, dtype=torch.float32))
    return quantizer


def moving_average(values, decay):
    """Plain mean of the first 1 / (1 - decay) values, exponential with `decay` from there on."""
    average = 0.0
    for count, value in enumerate(values, start=1):
        kept = min(1 - 1 / count, decay)
        average = kept * average + (1 - kept) * value
    return average


@given(
    st.lists(
        st.tuples(st.floats(-50, 50, width=32), st.floats(-50, 50, width=32)),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from([0.0, 0.5, 0.9, 0.999]),
)
def test_the_range_is_a_moving_average_of_the_batches_extremes(batches, decay):
    quantizer = seen(MovingRange(8, decay=decay), *batches)
    lows, highs = [min(b) for b in batches], [max(b) for b in batches]
    assert quantizer.minimum.item() == pytest.approx(moving_average(lows, decay), abs=2e-4)
    assert quantizer.maximum.item() == pytest.approx(moving_average(highs, decay), abs=2e-4)
    assert quantizer.batches == len(batches)


def test_before_the_decay_sets_in_the_average_is_the_plain_mean():
    highs = np.random.default_rng(0).uniform(1, 9, 10).astype(np.float32)
    quantizer = seen(MovingRange(8, decay=0.9), *[[-1.0, high] for high in highs])
    assert quantizer.maximum.item() == pytest.approx(highs.mean(), rel=1e-6)


def test_the_newest_batch_weighs_one_minus_decay():
    """An average that gave the decay to the new value would jump to 0.9 * 100."""
    quantizer = seen(MovingRange(8, decay=0.9), *[[-1.0, 1.0]] * 10, [-1.0, 101.0])
    assert quantizer.maximum.item() == pytest.approx(11, rel=1e-6)


def test_of_the_tensors_of_one_batch_it_takes_the_range_of_all():
    quantizer = MovingRange(8)
    quantizer.places = 3
    first, second = [[-1.0, 1.0], [-4.0, 2.0], [0.0, 8.0]], [[-2.0, 2.0], [-1.0, 6.0], [0.0, 1.0]]
    seen(quantizer, *first, *second)
    assert quantizer.batches == 2
    assert quantizer.minimum.item() == pytest.approx((-4 - 2) / 2)
    assert quantizer.maximum.item() == pytest.approx((8 + 6) / 2)


def test_evaluation_observes_nothing():
    quantizer = seen(MovingRange(8), [-1.0, 1.0]).eval()
    quantizer(torch.tensor([-9.0, 9.0]))
    assert (quantizer.minimum, quantizer.maximum, quantizer.batches) == (-1, 1, 1)


def test_calibration_observes_in_evaluation_mode():
    quantizer = MovingRange(8).eval()
    with quantizer.calibration():
        quantizer(torch.tensor([-9.0, 9.0]))
    quantizer(torch.tensor([-20.0, 20.0]))
    assert (quantizer.minimum, quantizer.maximum) == (-9, 9)


def test_calibration_ends_also_when_a_batch_is_wrong():
    quantizer = MovingRange(8).eval()
    with pytest.raises(AttributeError), quantizer.calibration():
        quantizer(None)
    assert not quantizer.calibrating


def test_calibration_takes_the_plain_mean_however_many_batches():
    quantizer = MovingRange(8, decay=0.5).eval()
    with quantizer.calibration():
        for highest in (1.0, 2.0, 3.0, 10.0):
            quantizer(torch.tensor([0.0, highest]))
    assert quantizer.maximum == 4


@pytest.mark.parametrize("past", [[-1e9, 1e9], [float("nan"), 1.0], [float("-inf"), float("inf")]])
def test_after_a_reset_nothing_of_the_past_is_left(past):
    quantizer = seen(MovingRange(8), [-1.0, 1.0])
    quantizer.observe(torch.tensor(past))
    quantizer.reset()
    quantizer.observe(torch.tensor([-0.1, 0.3]))
    assert quantizer.minimum.item() == np.float32(-0.1)
    assert quantizer.maximum.item() == np.float32(0.3)


@pytest.mark.parametrize("mode", ["never", "reset"])
@pytest.mark.parametrize("training", [True, False])
def test_without_data_there_is_no_range_but_an_error_that_says_what_to_do(mode, training):
    quantizer = MovingRange(8)
    if mode == "reset":
        seen(quantizer, [1.0]).reset()
    with pytest.raises(QdeployError, match=r"seen no data.*qdeploy\.calibrate"):
        quantizer.train(training).qparams()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("narrow", [False, True])
def test_asymmetric_parameters(bits, narrow):
    steps = (1 << bits) - 1 - narrow
    scale, zero = seen(MovingRange(bits, narrow_range=narrow), [-1.0, 3.0]).qparams()
    assert scale.item() == pytest.approx(4 / steps)
    assert zero.item() == np.rint(np.float32(narrow) + np.float32(1) / np.float32(scale))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("batch", [[-1.0, 3.0], [-3.0, 1.0]])
def test_symmetric_parameters_put_zero_in_the_middle(bits, narrow, batch):
    quantizer = seen(MovingRange(bits, symmetric=True, narrow_range=narrow), batch)
    scale, zero = quantizer.qparams()
    assert scale.item() == pytest.approx(6 / ((1 << bits) - 1 - narrow))
    assert zero.item() == 1 << (bits - 1)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("narrow", [False, True])
def test_every_value_lands_on_the_grid_and_within_half_a_step(bits, symmetric, narrow):
    x = torch.linspace(-2, 2, 1001)
    quantizer = seen(MovingRange(bits, symmetric=symmetric, narrow_range=narrow), x).eval()
    scale, zero = quantizer.qparams()
    y = quantizer(x)
    codes = (y / scale + zero).numpy()
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)
    low, high = int(narrow), (1 << bits) - 1
    assert set(np.rint(codes)) <= set(range(low, high + 1))
    assert len(np.unique(np.rint(codes))) >= high - low  # an end may be just out of reach
    inside = (x >= (low - zero) * scale) & (x <= (high - zero) * scale)
    assert (y - x)[inside].abs().max() <= scale / 2 * 1.0001


@pytest.mark.parametrize("symmetric", [False, True])
def test_an_all_zero_tensor_stays_zero(symmetric):
    quantizer = seen(MovingRange(8, symmetric=symmetric), torch.zeros(2, 3))
    x = torch.zeros(2, 3, requires_grad=True)
    y = quantizer(x)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 3))
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("batch", [[2.0, 5.1], [-5.1, -2.0]])
def test_zero_is_exact_when_the_data_is_far_from_it(batch):
    quantizer = seen(MovingRange(8), batch).eval()
    assert quantizer(torch.zeros(1)).item() == 0
    assert quantizer.qparams()[0].item() == pytest.approx(5.1 / 255)


def test_rounding_starts_after_quant_delay_training_steps():
    quantizer = MovingRange(2, quant_delay=3).train()
    x = torch.linspace(-1, 1, 50)
    rounded = [not torch.equal(quantizer(x), x) for _ in range(5)]
    assert rounded == [False, False, False, True, True]


def test_evaluation_rounds_also_during_the_delay():
    quantizer = seen(MovingRange(2, quant_delay=100), torch.linspace(-1, 1, 50)).eval()
    assert len(quantizer(torch.linspace(-1, 1, 50)).unique()) == 4


def test_evaluation_steps_do_not_count_towards_the_delay():
    quantizer = seen(MovingRange(2, quant_delay=2), torch.linspace(-1, 1, 50)).eval()
    for _ in range(5):
        quantizer(torch.ones(2))
    assert quantizer.steps == 1


def test_delay_and_range_survive_the_state_dict():
    x = torch.linspace(-1, 1, 50)
    first = seen(MovingRange(2, quant_delay=3), x, x)
    second = MovingRange(2, quant_delay=3).train()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(x), x)
    assert not torch.equal(second(x), x)
    assert torch.equal(second.eval()(x), first.eval()(x))


def test_during_training_the_first_batch_is_already_rounded_to_its_own_range():
    y = MovingRange(2).train()(torch.linspace(0, 3, 31))
    assert y.unique().tolist() == [0, 1, 2, 3]


def test_a_method_has_to_say_its_parameters():
    with pytest.raises(TypeError, match="abstract method qparams"):
        ActivationQuantizer(MovingRange(8).grid)


def test_every_setting_is_printed():
    printed = repr(MovingRange(4, symmetric=True, narrow_range=True, decay=0.9, quant_delay=7))
    for setting in ("bits=4", "symmetric=True", "Grid(1..15)", "decay=0.9", "quant_delay=7"):
        assert setting in printed


def test_a_state_without_a_range_is_noticed_also_after_one_was_there():
    quantizer = seen(MovingRange(8), [-1.0, 1.0]).eval()
    quantizer(torch.zeros(3))
    quantizer.load_state_dict(MovingRange(8).state_dict())
    with pytest.raises(QdeployError, match="has seen no data"):
        quantizer.qparams()
