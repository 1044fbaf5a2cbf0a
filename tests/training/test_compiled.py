"""Under torch.compile a prepared network trains and evaluates as without it, from the first step on.

Backend aot_eager has all of torch.compile but its code generator: it traces forward and backward, puts
writes to buffers last, and chooses what backward computes again.
"""

import copy
import functools

import pytest
import torch
from networks import Network, conv, images
from tiny_runs import tiny_fit, tiny_network
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.functional import cross_entropy

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.methods import WeightSite, find
from qdeploy.training.loop import Training

CLASSES = 3
CASES = {
    "quant_delay": ("simqat", 4, 4, {"quant_delay": 2}),
    "one-conv": ("simqat", 8, 8, {"fold": "one-conv"}),
    "two-conv": ("simqat", 8, 8, {"fold": "two-conv"}),
    "slb 1": ("slb", 1, 8, {"quant_delay": 1}),
    "slb 2": ("slb", 2, 8, {}),
    "dorefa": ("dorefa", 4, 4, {"grad_bits": 6}),
    "pact": ("pact", 4, 4, {}),
    "lsq": ("lsq", 4, 4, {}),
    "xnor": ("xnor", 1, 8, {"k_map": True}),
    "ternary": ("ternary", 2, 8, {}),
    "int8_training": ("int8_training", 8, 8, {}),
    "freeze_bn": ("simqat", 8, 8, {"fold": "two-conv", "freeze_bn": 2}),
}
ONE_GRAPH = [case for case in CASES if case != "freeze_bn"]
STEPS = 4


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()  # of the networks before, whose forward is the same code
    counters.clear()


@pytest.fixture(autouse=True)
def without_noise(monkeypatch):
    """Compiled code draws the same random numbers in another order."""
    for method in ("dorefa", "int8_training"):
        monkeypatch.setattr(
            f"qdeploy.methods.{method}.pairwise_uniform", lambda x: torch.full_like(x, 0.37)
        )


def prepared(case):
    method, bits, acts, options = CASES[case]
    torch.manual_seed(0)
    network = nn.Sequential(
        conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, CLASSES)
    )
    if options.get("k_map"):  # takes signs, so no ReLU may stand in front
        network[2] = nn.Identity()
    return qdeploy.prepare(network, images(2), method, bits, acts, **options).train()


class Trained:
    """A prepared network, as it runs, with an optimizer."""

    def __init__(self, network, run):
        self.network, self.run = network, run
        self.kind = next(network.parameters()).dtype
        self.optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)

    def step(self, number, autocast=False, batch=6):
        """Loss, gradients and state after a step."""
        self.network.set_progress(number, STEPS)
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = self.run(images(batch, seed=number).to(self.kind))
        loss = cross_entropy(logits, torch.arange(batch) % CLASSES)
        loss.backward()
        gradients = {name: p.grad for name, p in self.network.named_parameters()}
        self.optimizer.step()
        return loss, gradients, self.network.state_dict()


def both(network, backend="aot_eager", fullgraph=True):
    """The network as it is, and a copy compiled before its first step."""
    copied = copy.deepcopy(network)
    compiled = torch.compile(copied, backend=backend, fullgraph=fullgraph)
    return Trained(network, network), Trained(copied, compiled)


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ONE_GRAPH)
def test_it_trains_as_the_plain_network_in_one_graph(method):
    plain, compiled = both(prepared(method))
    graphs = []
    for number in range(STEPS):
        assert_same(compiled.step(number), plain.step(number))
        graphs.append(counters["stats"]["unique_graphs"])
    committed = method.startswith("slb")  # which makes another graph
    assert graphs == ([1, 2, 2, 2] if committed else [1] * STEPS)


def test_before_and_after_a_norm_is_frozen():
    """A graph ends at each folded layer until its norm is frozen, and no more after that."""
    plain, compiled = both(prepared("freeze_bn"), fullgraph=False)
    for number in range(3):
        assert_same(compiled.step(number), plain.step(number))
    torch.compiler.reset()
    compiled.run = torch.compile(compiled.network, backend="eager", fullgraph=True)
    assert_same(compiled.step(STEPS), plain.step(STEPS))


def test_tensors_that_a_concat_joins_have_one_range():
    network = Network(
        lambda net, x: net.last(torch.cat([net.left(x).relu(), net.right(x).relu()], 1)).mean(
            (2, 3)
        ),
        left=conv(3, 2),
        right=conv(3, 2),
        last=conv(4, CLASSES),
    )
    network = qdeploy.prepare(network, images(2), "simqat").train()
    plain, compiled = both(network, backend="eager")
    for number in range(3):
        assert_same(compiled.step(number), plain.step(number))
    assert counters["stats"]["unique_graphs"] <= 2


def test_batches_of_other_sizes():
    plain, compiled = both(prepared("int8_training"), backend="eager")
    for number, batch in enumerate((6, 5, 7)):
        assert_same(compiled.step(number, batch=batch), plain.step(number, batch=batch))


def test_in_mixed_precision_as_well():
    plain, compiled = both(prepared("lsq"))
    for number in range(2):
        assert_same(compiled.step(number, autocast=True), plain.step(number, autocast=True))


def test_modes_change_and_what_was_trained_ships():
    plain, compiled = both(prepared("lsq"), backend="eager")
    for number in range(STEPS):
        assert_same(compiled.step(number), plain.step(number))
        for trained in (plain, compiled):
            trained.network.eval()
        with torch.no_grad():
            assert_same(compiled.run(images()), plain.run(images()))
        for trained in (plain, compiled):
            trained.run.train()
    graphs = counters["stats"]["unique_graphs"]
    assert_same(compiled.step(STEPS), plain.step(STEPS))
    assert counters["stats"]["unique_graphs"] == graphs
    for trained in (plain, compiled):
        qdeploy.calibrate(trained.run, [images()])
    expected = qdeploy.convert(plain.network)(images())
    for network in (compiled.run, compiled.network):
        assert torch.equal(qdeploy.convert(network)(images()), expected)


def test_a_state_that_is_loaded_counts_in_compiled_code():
    """Of the one before, both: what it had learned is gone, and what compiled code knew of it."""
    plain, compiled = both(prepared("lsq"), backend="eager")
    fresh = copy.deepcopy(plain.network.state_dict())
    for number in (0, 1):
        for trained in (plain, compiled):
            trained.step(number)
    for trained in (plain, compiled):
        trained.network.eval().train()
        trained.network.load_state_dict(fresh)
    assert_same(compiled.step(2), plain.step(2))


# [train] compile = true


def run(folder, epochs, **settings):
    network = qdeploy.prepare(tiny_network(), torch.randn(2, 1, 4, 4), "lsq", 4, 4)
    records = tiny_fit(network.train(), folder, epochs=epochs, **settings)
    return [record.train["loss"] for record in records], network


def test_a_run_trains_goes_on_and_ships_as_without(tmp_path, monkeypatch):
    expected, plain = run(tmp_path / "plain", 3)
    backend = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", backend)
    folder = tmp_path / "compiled"
    with monkeypatch.context() as interrupted:
        interrupted.setattr("qdeploy.training.loop.Training.enter", stop_in_the_last_epoch())
        with pytest.raises(KeyboardInterrupt):
            run(folder, 3, compile=True)
    losses, network = run(folder, 3, compile=True, resume=True)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=0)
    assert network.state_dict().keys() == plain.state_dict().keys()
    assert counters["stats"]["unique_graphs"] > 0
    integers = (qdeploy.convert(each)(torch.ones(1, 1, 4, 4)) for each in (network, plain))
    torch.testing.assert_close(*integers, rtol=1e-3, atol=1e-3)


def stop_in_the_last_epoch():
    enter = Training.enter

    def enter_or_stop(self, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        enter(self, epoch)

    return enter_or_stop


def test_what_cannot_be_compiled_is_said_with_the_way_out(tmp_path, monkeypatch):
    def backend(graph, inputs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    with pytest.raises(QdeployError, match=r"no compiler.*set train\.compile = false"):
        run(tmp_path / "run", 1, compile=True)


# With the code generator, which computes again what aot_eager happens to keep.


def test_signs_of_moved_weights_are_not_taken_again():
    """Centring the clamped weight [1, -.225, -.925, -.925] once more makes its second number positive."""
    method = find("xnor")
    weight = torch.tensor([3.0, 0.7, 0.0, 0.0]).repeat(6, 1)
    plain = method.weight(WeightSite(weight, True), 1, method.options()).train()
    compiled = copy.deepcopy(plain)

    def loss(quantizer):
        return torch.linspace(-1, 1, 4) @ quantizer().tanh().sum(0)

    loss(plain).backward()
    torch.compile(loss, fullgraph=True)(compiled).backward()
    assert_same(compiled.latent.grad, plain.latent.grad)


def test_but_for_the_last_bits_generated_code_trains_as_the_plain_network():
    """In float64 rounding errors tip no value over to another code, so anything else would show."""
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, CLASSES)
    )
    network = qdeploy.prepare(network, images(2), "simqat", quant_delay=1, fold="two-conv")
    plain, compiled = both(network.train().double(), backend="inductor")
    for number in range(STEPS):
        found, expected = compiled.step(number), plain.step(number)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
