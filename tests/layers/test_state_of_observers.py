"""What activation quantizers keep: of averaged and restored copies, of bad, empty and repeated batches."""

import copy
import warnings

import numpy as np
import pytest
import torch
from networks import Network, build, conv, images
from torch.utils.checkpoint import checkpoint

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.layers.activation import ActivationQuantizer, MovingRange
from qdeploy.layers.host import on_host
from qdeploy.layers.learned_activation import StartsFromData
from qdeploy.methods import ActivationSite, find
from qdeploy.preparation.left_out import left_out_of

METHODS = {"simqat": 8, "lsq": 4, "pact": 4, "slb": 2, "int8_training": 8}
MEASURING = ["simqat", "lsq", "pact", "int8_training"]
every_method = pytest.mark.parametrize("method", METHODS)
every_quantizer = pytest.mark.parametrize("method", MEASURING)


def prepared_network(method, **options):
    torch.manual_seed(0)
    return qdeploy.prepare(
        build("plain"), images(2), method, METHODS[method], check=False, **options
    )


def quantizer_of(method, bits=8):
    """The quantizer of what a layer reads behind a ReLU."""
    method = find(method)
    return method.activation(ActivationSite(nonnegative=True), bits, method.options())


def train(prepared, steps, lr=0.01):
    optimizer = torch.optim.SGD(prepared.parameters(), lr=lr)
    for step in steps:
        optimizer.zero_grad()
        prepared.train()(images(8, seed=step) * (1 + step % 3)).square().mean().backward()
        optimizer.step()
        yield


def found(prepared):
    """Minimum and maximum of each measured range, and what each quantizer learned."""
    values = {}
    for name, module in prepared.named_modules():
        if isinstance(module, MovingRange):
            values[name] = np.array([module.minimum.item(), module.maximum.item()])
        elif isinstance(module, StartsFromData):
            values[name] = np.array([module.number().item()])
    return values


# Averaged copies. timm's ModelEmaV2 averages every entry of the state, integers too, which are
# cut off; ModelEmaV3 averages floats and copies the rest.


def average_all(average, network, decay):
    with torch.no_grad():
        for mine, theirs in zip(
            average.state_dict().values(), network.state_dict().values(), strict=True
        ):
            mine.copy_(decay * mine + (1 - decay) * theirs)


def average_floats(average, network, decay):
    with torch.no_grad():
        for mine, theirs in zip(
            average.state_dict().values(), network.state_dict().values(), strict=True
        ):
            if mine.is_floating_point():
                mine.lerp_(theirs, weight=1 - decay)
            else:
                mine.copy_(theirs)


@every_method
@pytest.mark.parametrize("update", [average_all, average_floats])
def test_a_copy_averaged_from_the_start_has_the_mean_of_the_ranges(method, update):
    decay, count = 0.99, 6
    prepared = prepared_network(method)
    average, online = copy.deepcopy(prepared), []
    for _ in train(prepared, range(count)):
        update(average, prepared, decay)
        online.append(found(prepared))
    shares = decay ** np.arange(count - 1, -1, -1.0)
    assert online[0]
    for name, value in found(average).items():
        wanted = sum(share * step[name] for share, step in zip(shares, online, strict=True))
        np.testing.assert_allclose(value, wanted / shares.sum(), rtol=1e-4, atol=1e-6)
    average.eval()(images(4))
    qdeploy.convert(average)


@every_quantizer
def test_an_averaged_state_trains_on_where_it_stands(method):
    quantizer = quantizer_of(method).train()
    average = copy.deepcopy(quantizer)
    for _ in range(3):
        quantizer(torch.linspace(0, 2, 50).reshape(2, 25))
        average_floats(average, quantizer, 0.9)
    before = average.qparams()[0].item()
    y = average.train()(torch.linspace(0, 2, 50).reshape(2, 25))
    assert average.qparams()[0].item() == pytest.approx(before, rel=1e-5)
    assert y.max() > 1


# Batches that are not finite


@every_quantizer
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("when", ["first", "later"])
def test_a_batch_that_is_not_finite_is_left_out_and_counted(method, bad, when):
    good = [torch.rand(3, 20, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    spoiled = good[0].clone()
    spoiled[1, 2] = bad
    clean, met = quantizer_of(method), quantizer_of(method)
    for batch in good:
        clean(batch)
    for batch in [spoiled, *good] if when == "first" else [*good, spoiled]:
        met(batch)
    torch.testing.assert_close(met.qparams(), clean.qparams(), rtol=0, atol=0)
    learns = isinstance(met, StartsFromData)  # one that learns observes nothing any more
    assert met.left_out == (0 if learns and when == "later" else 1)
    assert clean.left_out == 0


def test_of_the_tensors_of_one_batch_a_bad_one_leaves_the_batch_out():
    for place in range(3):
        quantizer = MovingRange(8)
        quantizer.places = 3
        tensors = [torch.tensor([-1.0, 1.0]) * (1 + i) for i in range(3)]
        for x in tensors:
            quantizer(x)
        tensors[place] = torch.tensor([torch.nan, 9.0])
        for x in tensors:
            quantizer(x)
        assert (quantizer.minimum, quantizer.maximum) == (-3, 3)
        assert (quantizer.batches, quantizer.left_out) == (1, 1)


@every_quantizer
def test_nothing_but_bad_batches_is_no_data(method):
    quantizer = quantizer_of(method)
    quantizer.train()(torch.full((2, 3), torch.nan))
    with pytest.raises(QdeployError, match="seen no data"):
        quantizer.eval().qparams()


@every_method
def test_convert_says_what_was_left_out(method):
    prepared = prepared_network(method)
    spoiled = images(8)
    spoiled[0, 0, 0, 0] = torch.nan
    list(train(prepared, [0]))
    image = next(m for m in prepared.modules() if isinstance(m, MovingRange))
    image(spoiled)
    (name,) = left_out_of(prepared)
    with pytest.warns(UserWarning, match=f"^1 batches with values .* left out at {name}: "):
        qdeploy.convert(prepared)


# A state that is restored


def as_loaded(quantizer, state):
    quantizer.load_state_dict(state)


def as_assigned(quantizer, state):
    quantizer.load_state_dict(state, assign=True)


def in_place(quantizer, state):
    with torch.no_grad():
        for name, value in quantizer.state_dict().items():
            value.copy_(state[name])


@every_quantizer
@pytest.mark.parametrize("restore", [as_loaded, as_assigned, in_place])
def test_a_restored_state_is_all_that_counts(method, restore):
    first, second = torch.linspace(0, 1, 40).reshape(2, 20), torch.linspace(0, 7, 40).reshape(2, 20)
    quantizer = quantizer_of(method).train()
    fresh = copy.deepcopy(quantizer.state_dict())
    quantizer(first)
    trained, wanted = copy.deepcopy(quantizer.state_dict()), quantizer.eval().qparams()
    restore(quantizer, fresh)
    with pytest.raises(QdeployError, match="seen no data"):
        quantizer.qparams()
    other = quantizer_of(method)
    for each in (quantizer, other):
        each.train()(second)
    torch.testing.assert_close(quantizer.qparams(), other.qparams(), rtol=0, atol=0)
    restore(quantizer, trained)
    torch.testing.assert_close(quantizer.eval().qparams(), wanted, rtol=0, atol=0)
    if isinstance(quantizer, StartsFromData):  # goes on learning, and does not start again
        quantizer.train()(second)
        torch.testing.assert_close(quantizer.qparams(), wanted, rtol=0, atol=0)


@every_quantizer
def test_functional_call_goes_by_the_state_that_it_is_given(method):
    x = torch.linspace(0, 1, 40).reshape(2, 20)
    quantizer = quantizer_of(method, 4).train()
    fresh = copy.deepcopy(quantizer.state_dict())
    quantizer(x)
    quantizer.eval()
    with pytest.warns(UserWarning, match="round nothing"):
        assert torch.equal(torch.func.functional_call(quantizer, fresh, x), x)
    assert len(quantizer(x).unique()) <= 16
    assert len(copy.deepcopy(quantizer)(x).unique()) <= 16


def test_a_buffer_is_read_only_where_it_changed(monkeypatch):
    reads = []
    monkeypatch.setattr("qdeploy.layers.host._read", lambda b: reads.append(b) or b.item())
    buffer = torch.zeros(())
    assert [on_host(buffer), on_host(buffer)] == [0, 0]
    assert len(reads) == 1
    buffer += 2
    assert [on_host(buffer), on_host(buffer)] == [2, 2]
    assert len(reads) == 2


@every_method
def test_a_step_of_training_reads_nothing_from_the_device(method, monkeypatch):
    prepared = prepared_network(method)
    steps = train(prepared, range(4))
    next(steps)
    next(steps)
    reads = []
    monkeypatch.setattr("qdeploy.layers.host._read", reads.append)
    next(steps)
    assert not reads


# Gradient checkpointing


@every_method
@pytest.mark.parametrize("reentrant", [False, True])
def test_what_backward_recomputes_is_observed_and_counted_once(method, reentrant):
    options = {"simqat": {"quant_delay": 3, "fold": "one-conv", "freeze_bn": 2}}.get(method, {})
    plain, repeated = (prepared_network(method, **options).train() for _ in range(2))
    for seed in range(3):
        x = images(8, seed=seed).requires_grad_()
        torch.manual_seed(seed)  # of a dropout
        plain(x).square().mean().backward()
        torch.manual_seed(seed)
        checkpoint(repeated, x, use_reentrant=reentrant).square().mean().backward()
    for name, value in plain.state_dict().items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(repeated.state_dict()[name], value, msg=name)
    for (name, one), two in zip(plain.named_parameters(), repeated.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, msg=name)


# Batches without values


@every_quantizer
@pytest.mark.parametrize("before", [0, 2])
def test_an_empty_batch_passes_and_is_not_observed(method, before):
    quantizer = quantizer_of(method)
    for _ in range(before):
        quantizer(torch.rand(2, 3, 4))
    state = copy.deepcopy(quantizer.state_dict())
    for mode in (True, False):
        x = torch.zeros(0, 3, 4, requires_grad=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y = quantizer.train(mode)(x)
        y.sum().backward()
        assert y.shape == x.shape
    torch.testing.assert_close(quantizer.state_dict(), state, rtol=0, atol=0)


# Evaluation before training


@every_method
def test_evaluation_before_any_data_rounds_no_activation_and_says_so_once(method):
    torch.manual_seed(0)
    model = build("plain").eval()
    prepared = qdeploy.prepare(model, images(2), method, METHODS[method]).eval()
    with pytest.warns(UserWarning, match=r"round nothing yet.*qdeploy\.calibrate") as given:
        y = prepared(images(4))
    assert len(given) == 1
    assert torch.isfinite(y).all()
    if METHODS[method] == 8:  # weights of 8 bits are all but float
        assert (y - model(images(4))).abs().max() < 0.05 * y.abs().max()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(prepared(images(4)), y)
    with pytest.raises(QdeployError, match="seen no data"):
        qdeploy.convert(prepared)
    with pytest.warns(UserWarning, match="round nothing yet"):
        prepared_network(method).eval()(images(4))


def test_no_activation_is_rounded_then():
    quantizer = MovingRange(2).eval()
    x = torch.linspace(-1, 1, 50)
    with pytest.warns(UserWarning, match="round nothing"):
        assert torch.equal(quantizer(x), x)


# Shapes and steps


@pytest.mark.parametrize("method", ["lsq", "pact"])
def test_no_parameter_of_a_quantizer_is_a_scalar(method):
    """FSDP takes none."""
    for name, parameter in prepared_network(method).named_parameters():
        assert parameter.ndim, name
    quantizer = quantizer_of(method).train()
    quantizer(torch.rand(2, 3))
    assert [part.ndim for part in quantizer.qparams()] == [0, 0]


def test_the_delay_counts_steps_however_many_tensors_there_are():
    network = Network(
        lambda self, x: self.last(torch.cat([self.a(x).relu(), self.b(x).relu()], 1)),
        a=conv(), b=conv(), last=conv(12),
    )  # fmt: skip
    prepared = qdeploy.prepare(network, images(2), "simqat", 2, 2, quant_delay=3).train()
    quantizers = [m for m in prepared.modules() if isinstance(m, ActivationQuantizer)]
    assert {m.places for m in quantizers} == {1, 2}
    for step in range(1, 6):
        prepared(images(2))
        assert {int(m.steps) for m in quantizers} == {min(step, 4)}


def test_a_batch_that_was_cut_off_does_not_shift_the_next_ones():
    quantizer = MovingRange(8, decay=0.0)
    quantizer.places = 2
    quantizer.train()(torch.tensor([-100.0, 100.0]))  # and then an error
    quantizer.train()
    for x in (torch.tensor([-1.0, 0.5]), torch.tensor([-0.5, 2.0])):
        quantizer(x)
    assert (quantizer.minimum, quantizer.maximum) == (-1, 2)
