"""A prepared network is the user's: names, attributes, methods, and what is done to a part of it."""

import copy
import pickle
import re

import pytest
import torch
from backbone_networks import METHODS, Block, Net, net, prepared_of, train
from networks import images
from torch import nn

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.layers.activation import ActivationQuantizer
from qdeploy.preparation.prepared import PreparedNetwork

every_method = pytest.mark.parametrize(("method", "bits", "acts"), METHODS)


@every_method
def test_parameters_have_the_names_of_the_float_network_in_its_order(method, bits, acts):
    network = net()
    wanted = [name for name, _ in network.named_parameters()]
    found = [name for name, _ in prepared_of(network, method, bits, acts).named_parameters()]
    assert [name for name in found if name in wanted] == wanted
    beside = set(found) - set(wanted)
    assert all(re.search(r"\.(quantizer|\w*activation\w*|input)\.", name) for name in beside)


@every_method
def test_the_buffers_of_norms_keep_their_names(method, bits, acts):
    state = prepared_of(method=method, bits=bits, acts=acts).state_dict()
    assert net().state_dict().keys() <= state.keys()


def test_attributes_properties_and_methods_are_the_users():
    prepared = prepared_of()
    assert isinstance(prepared, Net)
    assert isinstance(prepared, PreparedNetwork)
    assert prepared.config == {"classes": 4}
    assert prepared.depth == 2
    assert prepared.head.in_features == 7
    assert prepared.backbone.layer1[1].conv.kernel_size == (3, 3)
    assert prepared.projector(torch.ones(1, 7)).shape == (
        1,
        3,
    )  # as in float, forward never calls it


def test_arguments_may_be_given_by_name():
    prepared = prepared_of().train()
    prepared(images())
    prepared.eval()
    assert torch.equal(prepared(x=images()), prepared(images()))
    with pytest.raises(QdeployError, match="prepared for x and is given y"):
        prepared(y=images())


@every_method
def test_a_frozen_part_in_evaluation_stands_still(method, bits, acts):
    """No range moves, no step trains, and what it computes for an image stays the same."""
    prepared = prepared_of(method=method, bits=bits, acts=acts).train()
    train(prepared)
    prepared.freeze_backbone()
    before = copy.deepcopy(prepared.backbone.state_dict())
    features = qdeploy.features(prepared, ["backbone"])
    with torch.no_grad():
        seen = features(images())[1]["backbone"]
    train(prepared, 3)
    prepared.set_progress(0, 10)
    train(prepared)
    after = prepared.backbone.state_dict()
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    with torch.no_grad():
        assert torch.equal(features(images())[1]["backbone"], seen)
    assert not any(p.requires_grad for p in prepared.backbone.parameters())


@pytest.mark.parametrize("method", ["lsq", "pact"])
def test_a_part_that_was_frozen_before_prepare_learns_no_steps(method):
    network = net()
    network.backbone.requires_grad_(False)
    prepared = prepared_of(network, method, 4, 4)
    trained = {name for name, p in prepared.named_parameters() if p.requires_grad}
    assert not [name for name in trained if name.startswith("backbone.")]
    assert "head.weight" in trained
    assert len(trained) > len([p for p in network.parameters() if p.requires_grad])


def test_quantizers_belong_to_the_part_that_makes_their_tensor():
    prepared = prepared_of()
    names = [n for n, m in prepared.named_modules() if isinstance(m, ActivationQuantizer)]
    blocks = {
        "backbone.layer1.0.": ("conv.activation", "mul_activation", "relu.activation"),
        "backbone.layer1.1.": ("conv.activation", "mul_1_activation", "relu.activation"),
    }
    inside = {block + made for block, all_made in blocks.items() for made in all_made}
    assert set(names) == inside | {
        "backbone.stem.input", "backbone.relu_activation", "mean_activation", "norm.activation",
    }  # fmt: skip


def test_every_other_module_of_a_containers_is_where_it_was():
    """Indexes and lengths of a Sequential are those of the float network."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 2)).eval()
    x = torch.randn(2, 3, 16, 16)
    prepared = qdeploy.prepare(network, x, "simqat")
    assert len(prepared) == 4
    assert prepared[-1].out_features == 2
    assert prepared[0].weight.shape == (4, 3, 3, 3)


def test_learning_rates_by_part_reach_what_the_part_learns():
    prepared = prepared_of(method="lsq", bits=4, acts=4)
    backbone = {id(p) for p in prepared.backbone.parameters()}
    learned = re.compile(r"backbone\..*activation\w*\.step")
    steps = {id(p) for name, p in prepared.named_parameters() if learned.match(name)}
    assert steps
    assert steps <= backbone


@every_method
def test_copies_are_independent_and_pickles_are_whole(method, bits, acts):
    prepared = prepared_of(method=method, bits=bits, acts=acts).train()
    train(prepared)
    for other in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        with torch.no_grad():
            assert torch.equal(other.eval()(images()), prepared.eval()(images()))
            wanted = qdeploy.convert(prepared)(images())
            assert torch.equal(qdeploy.convert(other)(images()), wanted)
        before = copy.deepcopy(prepared.state_dict())
        train(other.train())
        assert all(
            torch.equal(a, b)
            for a, b in zip(before.values(), prepared.state_dict().values(), strict=True)
        )


def test_functional_call_takes_the_parameters_by_name():
    prepared = prepared_of().train()
    prepared(images())
    prepared.eval()
    weights = {"head.weight": torch.zeros(4, 7), "head.bias": torch.arange(4.0)}
    found = torch.func.functional_call(prepared, weights, images())
    torch.testing.assert_close(found, torch.arange(4.0).expand(len(found), 4))


def replicated(network):
    """As torch.nn.parallel.replicate does it, which asks for GPUs; with copies of all tensors."""
    modules = list(network.modules())
    made = [module._replicate_for_data_parallel() for module in modules]
    place = dict(zip(modules, made, strict=True))
    for module, replica in place.items():
        for name, child in module._modules.items():
            setattr(replica, name, None if child is None else place[child])
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            replica.__dict__[name] = None if tensor is None else tensor.detach().clone()
            replica._buffers.pop(name, None)
    return made[0]


def test_replicas_of_data_parallel_run_their_own_parameters():
    prepared = prepared_of(method="lsq", bits=4, acts=4).train()
    train(prepared)
    wanted = prepared.eval()(images())
    replica = replicated(prepared)
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter.zero_()
    torch.testing.assert_close(replica(images()), wanted)


class Clashing(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.settings = nn.Linear(3, 2), {}

    def forward(self, x):
        return self.fc(x)


@pytest.mark.parametrize("name", ["graph", "meta", "self"])
def test_a_name_of_torch_fx_is_refused(name):
    network = nn.Sequential()
    network.add_module(name, nn.Linear(3, 2))
    with pytest.raises(QdeployError, match=f"Sequential has a module named {name}, .* rename it"):
        qdeploy.prepare(network, torch.ones(2, 3), "simqat")


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(QdeployError, match="Clashing has settings, which a prepared network has"):
        qdeploy.prepare(Clashing(), torch.ones(2, 3), "simqat")


def test_a_traced_network_can_be_prepared_too():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    prepared = prepared_of(torch.fx.symbolic_trace(network))
    qdeploy.calibrate(prepared, [images()])
    assert torch.equal(copy.deepcopy(prepared)(images()), prepared(images()))


# What is replaced or cut to fewer bits afterwards.


@pytest.mark.parametrize(
    "change", [nn.Module.half, nn.Module.bfloat16, lambda m: m.to(torch.bfloat16)]
)
@pytest.mark.parametrize("outer", [lambda m: m, lambda m: nn.Sequential(m)])
def test_parameters_of_16_bits_are_refused(change, outer):
    with pytest.raises(QdeployError, match=r"float32 parameters, not torch.*16.*autocast"):
        change(outer(prepared_of()))


def replaced_head(prepared):
    prepared.head = nn.Linear(7, 9)


def replaced_layer(prepared):
    prepared.backbone.layer1[0].conv = nn.Conv2d(7, 7, 3, padding=1)


class Wrapper(nn.Module):
    """As for LoRA, with the layer under the name that torch's wrappers have for it."""

    def __init__(self, layer):
        super().__init__()
        self.module, self.more = layer, nn.Linear(7, 4)

    def forward(self, x):
        return self.module(x) + self.more(x)


def wrapped_head(prepared):
    prepared.head = Wrapper(prepared.head)


def replaced_backbone(prepared):
    prepared.backbone = nn.Identity()


def removed_head(prepared):
    del prepared.head


def longer_chain(prepared):
    prepared.backbone.layer1.append(Block(7))


def shorter_chain(prepared):
    del prepared.backbone.layer1[1]


CHANGES = [
    replaced_head, replaced_layer, wrapped_head, replaced_backbone, removed_head, longer_chain, shorter_chain,
]  # fmt: skip


@pytest.mark.parametrize("replace", CHANGES)
@pytest.mark.parametrize("then", [lambda m: m.train(), lambda m: m.eval(), qdeploy.convert])
def test_a_replaced_module_is_refused(replace, then):
    prepared = prepared_of()
    qdeploy.calibrate(prepared, [images()])
    replace(prepared)
    with pytest.raises(
        QdeployError, match=r"after prepare|was prepared with 0, 1 and has"
    ) as error:
        then(prepared)
    assert "Change the float network and prepare that" in str(error.value)


@pytest.mark.parametrize(
    "change",
    [lambda m: m.append(nn.Softmax(1)), lambda m: m.insert(0, nn.Identity()), lambda m: m.pop(1)],
)
def test_a_sequential_that_is_prepared_itself_keeps_its_parts(change):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 2))
    prepared = qdeploy.prepare(network, torch.randn(2, 3, 16, 16), "simqat")
    change(prepared)
    with pytest.raises(QdeployError, match="Change the float network and prepare that"):
        prepared.eval()


def test_what_forward_does_not_run_may_be_added():
    """As metrics and losses are."""
    prepared = prepared_of()
    prepared.criterion = nn.CrossEntropyLoss()
    prepared.backbone.add_module("probe", nn.Linear(7, 2))
    prepared.eval()


def test_what_has_trained_goes_along_into_a_network_with_another_head():
    """The way out that the error names."""
    prepared = prepared_of(method="slb", bits=2).train()
    train(prepared)
    network = net()
    network.head = nn.Linear(7, 9)
    other = prepared_of(network, method="slb", bits=2)
    state = {n: v for n, v in prepared.state_dict().items() if not n.startswith("head.")}
    assert not other.load_state_dict(state, strict=False).unexpected_keys
    assert torch.equal(other.backbone.stem.weight, prepared.backbone.stem.weight)


def test_sync_batch_norm_after_prepare_is_the_norm_that_layers_run():
    prepared = prepared_of()
    qdeploy.calibrate(prepared, [images()])
    wanted = prepared.eval()(images())
    changed = nn.SyncBatchNorm.convert_sync_batchnorm(prepared).eval()
    norms = {type(layer.norm) for _, layer in changed.quantized_layers() if layer.norm is not None}
    assert norms == {nn.SyncBatchNorm}
    assert torch.equal(changed(images()), wanted)


def test_sync_batch_norm_before_prepare_is_joined():
    network = nn.SyncBatchNorm.convert_sync_batchnorm(net()).eval()
    joined = [n for n, layer in prepared_of(network).quantized_layers() if layer.norm is not None]
    assert joined == ["backbone.layer1.0.conv", "backbone.layer1.1.conv"]


def test_sync_batch_norm_in_place_of_range_bn_is_refused():
    prepared = nn.SyncBatchNorm.convert_sync_batchnorm(prepared_of(method="int8_training"))
    with pytest.raises(QdeployError, match="was replaced after prepare, by SyncBatchNorm"):
        prepared.train()
