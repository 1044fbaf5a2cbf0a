"""features: what modules inside of a prepared network give; what the graph passes by refuses hooks."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from backbone_networks import net, prepared_of, train
from networks import images
from torch import nn

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.layers.transparent import transparent

PLACES = ["backbone", "backbone.layer1", "backbone.layer1.0", "backbone.layer1.0.relu", "norm"]


def in_float(network, names, x):
    kept = {}
    for name in names:
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, y, name=name: kept.__setitem__(name, y)
        )
    return network(x), kept


def test_without_rounding_they_are_those_of_the_float_network():
    network = net().eval()
    features = qdeploy.features(prepared_of(network), PLACES).eval()
    with torch.no_grad(), transparent(features):
        output, found = features(images())
        wanted_output, wanted = in_float(network, PLACES, images())
    torch.testing.assert_close(output, wanted_output)
    assert list(found) == PLACES
    for name in PLACES:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_they_are_rounded_as_in_the_file():
    prepared = prepared_of(acts=3)
    qdeploy.calibrate(prepared, [images()])
    with torch.no_grad():
        output, found = qdeploy.features(prepared, ["backbone.layer1.0"]).eval()(images())
        assert torch.equal(output, prepared(images()))
    scale, zero = prepared.backbone.layer1[0].relu.activation.qparams()
    codes = found["backbone.layer1.0"] / scale + zero
    torch.testing.assert_close(codes, codes.round())


def test_in_training_gradients_reach_what_came_before_and_nothing_else():
    prepared = prepared_of().train()
    features = qdeploy.features(prepared, ["backbone.layer1.0"])
    _, found = features(images(4))
    found["backbone.layer1.0"].square().mean().backward()
    assert prepared.backbone.stem.weight.grad.norm() > 0
    assert prepared.backbone.layer1[1].conv.weight.grad is None
    assert prepared.head.weight.grad is None


def test_a_student_learns_the_features_of_its_teacher():
    teacher, student = net(0).eval(), prepared_of(net(1)).train()
    features = qdeploy.features(student, ["backbone"])
    optimizer, losses = torch.optim.Adam(student.parameters(), 0.02), []
    for _ in range(30):
        with torch.no_grad():
            wanted = teacher.backbone(images(8))
        loss = F.mse_loss(features(images(8))[1]["backbone"], wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_they_share_all_parameters_and_can_be_pickled():
    prepared = prepared_of()
    qdeploy.calibrate(prepared, [images()])
    features = qdeploy.features(prepared, ["backbone"])
    assert {id(p) for p in features.parameters()} == {id(p) for p in prepared.parameters()}
    loaded = pickle.loads(pickle.dumps(features)).eval()
    assert torch.equal(loaded(images())[1]["backbone"], features.eval()(images())[1]["backbone"])


def test_a_dropout_is_found_behind_it():
    """In evaluation it gives what it reads; in training it does not."""

    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.drop, self.fc = nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.drop(self.conv(x)).mean((2, 3)))

    prepared = qdeploy.prepare(Dropped(), images(2), "simqat").train()
    _, found = qdeploy.features(prepared, ["drop"])(images())
    assert (found["drop"] == 0).float().mean() > 0.3


def test_what_is_not_there_is_an_error_with_what_is():
    with pytest.raises(
        QdeployError, match=r"output of backbone.layer1.0.conv: .* It has .* backbone"
    ):
        qdeploy.features(prepared_of(), ["backbone.layer1.0.conv"])
    with pytest.raises(
        QdeployError, match=r"features takes what qdeploy.prepare returned, not Net"
    ):
        qdeploy.features(net(), ["backbone"])


HOOKS = [
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
]


@pytest.mark.parametrize("name", ["backbone", "backbone.layer1", "backbone.layer1.0.bn"])
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_that_would_never_fire_are_refused(name, hook):
    part = prepared_of().get_submodule(name)
    with pytest.raises(
        QdeployError, match=rf'{name} is not called .* qdeploy.features\(prepared, \["{name}'
    ):
        getattr(part, hook)(print)


@pytest.mark.parametrize("name", ["backbone", "backbone.layer1", "backbone.layer1.0.bn"])
def test_calls_that_would_compute_something_else_are_refused(name):
    with pytest.raises(QdeployError, match=f"{name} is not called by the prepared network"):
        prepared_of().get_submodule(name)(torch.ones(1, 7, 4, 4))


def test_a_hook_on_a_relu_sees_what_a_relu_gives():
    """Though in training its quantizer does the work."""
    prepared, seen = prepared_of().train(), []
    relu = prepared.backbone.layer1[0].relu
    assert relu(torch.tensor([-1.0]), deferred=True) == -1  # nobody looks: left to the quantizer
    relu.register_forward_hook(lambda _module, _inputs, y: seen.append(y))
    prepared(images())
    assert (seen[0] >= 0).all()
    assert (seen[0] == 0).any()


def test_a_relu_that_is_called_by_itself_is_one():
    """As in a loop over the parts of a Sequential, or in a method of the user's."""
    prepared = prepared_of().train()
    relus = [module for module in prepared.modules() if isinstance(module, nn.ReLU)]
    assert len(relus) == 3  # of two blocks, and the function of the backbone
    for relu in relus:
        assert relu(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]


def test_hooks_on_layers_and_on_the_whole_network_fire():
    prepared, seen = prepared_of().train(), []
    for name in ("backbone.stem", "head", ""):
        prepared.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
        prepared.get_submodule(name).register_full_backward_hook(
            lambda *_, name=name: seen.append(f"back {name}")
        )
    train(prepared, 1)
    assert seen == ["backbone.stem", "head", "", "back ", "back head", "back backbone.stem"]


def test_a_relu_that_moved_is_refused_at_its_own_place():
    """relu(pool(x)) runs as pool(relu(x)), so that a hook would see another tensor."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
    )
    network(images(2))
    prepared = qdeploy.prepare(network, images(2), "simqat")
    with pytest.raises(QdeployError, match=r"2 is not called"):
        prepared[2].register_forward_hook(print)
    found = qdeploy.features(prepared.train(), ["2"])(images())[1]["2"]
    assert found.shape == nn.MaxPool2d(2)(torch.ones(1, 4, 14, 14)).shape or found.ndim == 4


def test_nothing_traces_it_again():
    with pytest.raises(QdeployError, match=r"a graph already, .* qdeploy.features"):
        torch.fx.symbolic_trace(prepared_of())
