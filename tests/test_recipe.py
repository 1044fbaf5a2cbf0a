"""Recipes: what is read, what overrides change, and what is said of mistakes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from qdeploy.errors import QdeployError
from qdeploy.recipe import (
    DataPhase,
    DataSection,
    ExportSection,
    ModelSection,
    QuantizeSection,
    Recipe,
    TrainPhase,
    TrainSection,
    zoo_recipes,
    zoo_summary,
)

MINIMAL = """\
# The least that a recipe must say
[model]
network = "lenet5"
[data]
dataset = "digits"
"""

FULL = """\
[model]
network = "lenet5"
options = { num_classes = 10 }

[data]
dataset = "digits"
batch_size = 32
mean = [0.5]
std = [0.25]
pad_crop = 2
flip = true

[quantize]
method = "slb"
weight_bits = 1
act_bits = "float"
first_last_float = true
leaves = ["head.*"]

[quantize.options]
linear = true

[quantize.layers."conv*"]
act_bits = 4

[quantize.layers."fc3"]
method = "simqat"
weight_bits = 8
act_bits = "float"
options = { symmetric = true }

[quantize.layers]
fc1 = "float"

[train]
epochs = 20
seed = 3
optimizer = "adamw"
lr = 1
betas = [0.8, 0.99]
schedule = "step"
milestones = [10, 15]

[export]
max_drop = 0.3
"""


@pytest.fixture
def write(tmp_path):
    """Writes a recipe file and returns its path."""

    def write_recipe(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return write_recipe


class TestReading:
    def test_what_is_not_given_has_its_default(self, write):
        recipe = Recipe.load(write(MINIMAL))
        assert recipe.name == "mine"
        assert recipe.model == ModelSection(network="lenet5", options={}, weights=None)
        assert recipe.quantize.method == "float"
        assert (recipe.data.mean, recipe.data.pad_crop, recipe.data.workers) == (None, 0, 2)
        assert (recipe.train.momentum, recipe.train.float_epochs) == (0.9, 0)
        assert recipe.export == ExportSection(max_drop=None, min_agreement=None, max_size=None)

    def test_what_is_given_arrives(self, write):
        recipe = Recipe.load(write(FULL))
        assert recipe.model.options == {"num_classes": 10}
        assert (recipe.data.mean, recipe.data.std) == ((0.5,), (0.25,))
        assert recipe.quantize.act_bits is None
        assert recipe.quantize.options == {"linear": True}
        assert recipe.quantize.leaves == ["head.*"]
        assert recipe.train.lr == 1.0
        assert isinstance(recipe.train.lr, float)
        assert (recipe.train.betas, recipe.train.milestones) == ((0.8, 0.99), (10, 15))
        assert recipe.export.max_drop == 0.3

    def test_a_layer_says_only_what_differs(self, write):
        assert Recipe.load(write(FULL)).quantize.layers == {
            "conv*": {"act_bits": 4},
            "fc3": {
                "method": "simqat",
                "weight_bits": 8,
                "act_bits": None,
                "options": {"symmetric": True},
            },
            "fc1": "float",
        }

    def test_a_recipe_can_give_its_name(self, write):
        assert Recipe.load(write(f'name = "given"\n{MINIMAL}')).name == "given"

    def test_a_recipe_cannot_be_changed(self, write):
        with pytest.raises(ValueError, match="frozen"):
            Recipe.load(write(MINIMAL)).train.lr = 1.0

    def test_torch_is_not_imported(self):
        command = "import sys, qdeploy.recipe; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0

    def test_a_regime_is_a_list_of_tables(self, write):
        phases = """
[[train.regime]]
epoch = 0
optimizer = "adam"
[[train.regime]]
step = 700
lr = 1
betas = [0.5, 0.9]
[[data.regime]]
epoch = 2
batch_size = 64
flip = true
"""
        recipe = Recipe.load(write(MINIMAL + phases))
        assert recipe.train.regime == (
            TrainPhase(epoch=0, optimizer="adam"),
            TrainPhase(step=700, lr=1.0, betas=(0.5, 0.9)),
        )
        assert recipe.data.regime == (DataPhase(epoch=2, batch_size=64, flip=True),)


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("train.lr=0.5", 0.5),
            ("train.lr = 1e-3", 1e-3),
            ("train.optimizer=adam", "adam"),
            ('train.optimizer="adam"', "adam"),
            ("data.flip=false", False),
            ("data.mean=[0.1]", (0.1,)),
            ("quantize.act_bits=float", None),
            ("quantize.act_bits=2", 2),
            ("quantize.options={a = 1}", {"a": 1}),
        ],
    )
    def test_value_is_toml_or_plain_text(self, write, override, expected):
        recipe = Recipe.load(write(FULL), [override])
        section, key = override.partition("=")[0].strip().split(".")
        assert getattr(getattr(recipe, section), key) == expected

    def test_options_are_those_of_a_method_that_is_set_beside_them(self, write):
        given = ["quantize.options.grad_bits=4", "quantize.method=dorefa"]
        for overrides in (given, given[::-1]):
            recipe = Recipe.load(write(FULL), overrides)
            assert recipe.quantize.options == {"grad_bits": 4}

    def test_deeper_keys_and_globs(self, write):
        recipe = Recipe.load(
            write(FULL),
            [
                "quantize.options.t_factor=3.2",
                'quantize.layers."conv*".weight_bits=2',
                "quantize.layers.fc1.weight_bits=4",
                'quantize.layers."*.shortcut.0"=float',
            ],
        )
        assert recipe.quantize.options == {"linear": True, "t_factor": 3.2}
        assert recipe.quantize.layers["conv*"] == {"act_bits": 4, "weight_bits": 2}
        assert recipe.quantize.layers["fc1"] == {"weight_bits": 4}
        assert recipe.quantize.layers["*.shortcut.0"] == "float"

    def test_a_section_can_be_begun_and_the_last_one_wins(self, write):
        recipe = Recipe.load(
            write(MINIMAL), ["quantize.method=slb", "train.epochs=3", "train.epochs=4"]
        )
        assert (recipe.quantize.method, recipe.train.epochs) == ("slb", 4)

    @pytest.mark.parametrize("override", ["train.lr", "=3", "train..lr=3", "layers.conv*.x=1", ""])
    def test_what_is_no_assignment(self, write, override):
        with pytest.raises(QdeployError) as caught:
            Recipe.load(write(FULL), [override])
        assert repr(override) in str(caught.value)
        assert "allowed: section.key=value" in str(caught.value)


class TestMistakes:
    @pytest.mark.parametrize(
        ("override", "key", "allowed"),
        [
            ("train.lr=-1", "train.lr: given -1", "above 0"),
            ("train.lr=fast", "train.lr: given 'fast'", "a number"),
            ("train.lr=nan", "train.lr: given nan", "a finite number"),
            ("train.epochs=-1", "train.epochs: given -1", "0 or more"),
            ("train.epochs=1.5", "train.epochs: given 1.5", "a whole number"),
            ("train.epochs=true", "train.epochs: given True", "a whole number"),
            ("train.label_smoothing=1", "train.label_smoothing: given 1", "below 1"),
            ("train.optimizer=sdg", "train.optimizer: given 'sdg'", "'sgd', 'adam' or 'adamw'"),
            ("train.betas=[0.9,0.9,0.9]", "train.betas: given [0.9, 0.9, 0.9]", "2 values"),
            ("train.milestones=3", "train.milestones: given 3", "a list"),
            ("train=3", "train: given 3", "a table"),
            ("data.flip=1", "data.flip: given 1", "true or false"),
            ("data.batch_size=1", "data.batch_size: given 1", "2 or more"),
            ("data.std=[0.0]", "data.std.0: given 0.0", "above 0"),
            ("train.regime=3", "train.regime: given 3", "a list"),
            ("train.regime=[3]", "train.regime.0: given 3", "a table"),
            ("train.regime=[{epoch=0,lr=0}]", "train.regime.0.lr: given 0", "above 0"),
            ("train.regime=[{epoch=-1}]", "train.regime.0.epoch: given -1", "0 or more"),
            (
                "data.regime=[{step=0,batch_size=1}]",
                "data.regime.0.batch_size: given 1",
                "2 or more",
            ),
            ("train.distill=1.5", "train.distill: given 1.5", "1.0 or less"),
            ("model.network=3", "model.network: given 3", "text in quotes"),
            ("quantize.weight_bits=17", "quantize.weight_bits: given 17", "16 or less"),
            ("quantize.act_bits=0", "quantize.act_bits: given 0", '1 to 16, or "float"'),
            ("quantize.layers.fc1=flaot", "quantize.layers.fc1: given 'flaot'", "'float'"),
            ("quantize.layers.fc1=3", "quantize.layers.fc1: given 3", "a table"),
            (
                'quantize.layers."conv*".weight_bits=0',
                'quantize.layers."conv*".weight_bits: given 0',
                "1 or more",
            ),
            (
                "quantize.layers.fc1.act_bits=17",
                "quantize.layers.fc1.act_bits: given 17",
                '1 to 16, or "float"',
            ),
            ("export.min_agreement=99.9", "export.min_agreement: given 99.9", "1.0 or less"),
        ],
    )
    def test_values_name_key_given_and_allowed(self, write, override, key, allowed):
        path = write(FULL)
        with pytest.raises(QdeployError) as caught:
            Recipe.load(path, [override])
        assert f"{path} with {override}: {key}, allowed: {allowed}" in str(caught.value)

    @pytest.mark.parametrize(
        ("override", "unknown", "nearest"),
        [
            ("train.epoch=3", "train.epoch", "train.epochs"),
            ("trian.lr=3", "trian", "train"),
            ("data.batchsize=3", "data.batchsize", "data.batch_size"),
            (
                "data.regime=[{input_size=3}]",
                "data.regime.0.input_size",
                "data.regime.0.image_size",
            ),
            (
                "train.regime=[{epoch=0}, {epoch=1, weight_decy=3}]",
                "train.regime.1.weight_decy",
                "train.regime.1.weight_decay",
            ),
            (
                'quantize.layers."conv*".weight_bit=3',
                'quantize.layers."conv*".weight_bit',
                'quantize.layers."conv*".weight_bits',
            ),
        ],
    )
    def test_unknown_keys_are_told_the_nearest(self, write, override, unknown, nearest):
        with pytest.raises(QdeployError) as caught:
            Recipe.load(write(FULL), [override])
        assert f": unknown key {unknown}. Did you mean {nearest}?" in str(caught.value)

    def test_a_key_like_no_other_is_told_all(self, write):
        with pytest.raises(QdeployError) as caught:
            Recipe.load(write(MINIMAL), ["export.zzz=1"])
        assert str(caught.value).endswith(
            "unknown key export.zzz. Allowed in [export]: target, input, input_names, "
            "output_names, readable, dynamic, max_drop, min_agreement, min_sqnr, gates, max_differing, "
            "max_size"
        )

    def test_missing_keys(self, write):
        path = write("[model]\n[quantize]\nweight_bits = 1\n")
        with pytest.raises(QdeployError) as caught:
            Recipe.load(path)
        missing = [line.split(" is missing")[0] for line in str(caught.value).splitlines()]
        assert missing == [f"{path}: {key}" for key in ("model.network", "data", "quantize.method")]

    @pytest.mark.parametrize(
        ("overrides", "message"),
        [
            (["data.mean=[0.1, 0.2]"], "mean and std go together"),
            (["data.mean=[]", "data.std=[]"], "mean and std go together"),
            (["data.dataset=folder", "data.pad_crop=2"], "pad_crop does not apply to image files"),
            (
                ["data.dataset=mnist", "data.scan=full", "data.resize=whole", "data.flip=true"],
                "resize, scan in .data. does not apply to mnist, whose images are no files",
            ),
            (
                ["data.dataset=mnist", "data.regime=[{epoch = 1, augmentation = 'none'}]"],
                "augmentation in .data. does not apply",
            ),
            (["train.milestones=[]"], "needs milestones"),
            (["train.nesterov=true", "train.momentum=0"], "needs momentum"),
            (
                ["train.nesterov=true", "train.regime=[{epoch = 3, momentum = 0.0}]"],
                "needs momentum",
            ),
            (["train.regime=[{epoch = 3, lr = 0.1}]"], "both step the learning rate; remove one"),
            (
                ["train.regime=[{lr = 0.1}]"],
                "starts at an epoch or at a step, counted from 0: give",
            ),
            (["data.regime=[{epoch = 1, step = 9}]"], r"data\.regime\.0: a phase starts at"),
            (
                ["data.regime=[{epoch = 3}, {step = 1}, {epoch = 3}]"],
                "data: the phases of a regime start one after the other; epochs given: 3, 3",
            ),
            (
                [
                    *("data.dataset=folder", "data.flip=false", "data.pad_crop=0"),
                    "data.regime=[{epoch = 1, pad_crop = 1}]",
                ],
                "pad_crop does not apply",
            ),
            (
                ["train.distill=0.5"],
                r"mine\.toml with .*: train\.distill needs a trained float net",
            ),
            (
                ["train.distill=0.5", "quantize={method = 'float'}"],
                "train.distill teaches a quantized network",
            ),
        ],
    )
    def test_keys_that_contradict_each_other(self, write, overrides, message):
        with pytest.raises(QdeployError, match=message):
            Recipe.load(write(FULL), overrides)

    def test_invalid_toml_names_file_and_line(self, write):
        path = write(f"{MINIMAL}batch_size = = 3\n")
        with pytest.raises(QdeployError, match=r"mine\.toml is not valid TOML: .*line 6"):
            Recipe.load(path)

    def test_bytes_that_are_no_text(self, tmp_path):
        (tmp_path / "mine.toml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(QdeployError, match=r"mine\.toml is not valid TOML"):
            Recipe.load(tmp_path / "mine.toml")

    def test_no_such_file(self, tmp_path):
        with pytest.raises(QdeployError, match=r"nowhere\.toml: No such file"):
            Recipe.load(tmp_path / "nowhere.toml")


class TestPaths:
    def test_a_path_starts_at_the_recipe_if_it_exists_there(self, write, tmp_path, monkeypatch):
        for folder in (tmp_path, tmp_path / "elsewhere"):
            folder.mkdir(exist_ok=True)
            (folder / "both.pt").touch()
        (tmp_path / "elsewhere" / "only.pt").touch()
        monkeypatch.chdir(tmp_path / "elsewhere")
        path = write(MINIMAL)
        for typed, expected in [
            ("both.pt", tmp_path / "both.pt"),
            ("only.pt", tmp_path / "elsewhere" / "only.pt"),
            ("neither.pt", tmp_path / "elsewhere" / "neither.pt"),
            (str(tmp_path / "absolute.pt"), tmp_path / "absolute.pt"),
        ]:
            recipe = Recipe.load(path, [f"model.weights={typed}", f"data.root={typed}"])
            assert recipe.model.weights == recipe.data.root == str(expected)

    def test_a_file_of_a_network_is_made_absolute(self, write, tmp_path):
        (tmp_path / "net.py").touch()
        recipe = Recipe.load(write(MINIMAL), ["model.network=net.py:build"])
        assert recipe.model.network == f"{tmp_path / 'net.py'}:build"

    @pytest.mark.parametrize("network", ["lenet5", "package.module:function"])
    def test_other_networks_stay_as_they_are(self, write, network):
        recipe = Recipe.load(write(MINIMAL), [f"model.network={network}"])
        assert recipe.model.network == network


class TestZoo:
    def test_the_default_recipe_is_in_the_zoo(self):
        assert "lenet5-digits-slb-w1a8" in zoo_recipes()
        recipe = Recipe.load("lenet5-digits-slb-w1a8", ["train.epochs=1"])
        assert recipe.name == "lenet5-digits-slb-w1a8"
        assert (recipe.quantize.method, recipe.quantize.weight_bits) == ("slb", 1)
        assert recipe.train.epochs == 1

    def test_every_recipe_loads_and_says_what_it_is(self):
        for name in zoo_recipes():
            assert Recipe.load(name).name == name
            assert len(zoo_summary(name)) > 10
            assert not zoo_summary(name).startswith("#")

    def test_unknown_name(self):
        with pytest.raises(QdeployError) as caught:
            Recipe.load("lenet5-digits-slb")
        assert "Did you mean lenet5-digits-slb-w1a8" in str(caught.value)
        assert "`qdeploy models`" in str(caught.value)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.floats(1e-9, 1e9)
fractions = st.floats(0, 1, exclude_max=True)
channels = st.lists(st.floats(0.01, 1), min_size=3, max_size=3)
act_bits = st.sampled_from(["float", 2, 3, 4, 5, 6, 7, 8])
values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
options = st.dictionaries(text, values, max_size=3)
layers = st.dictionaries(
    text,
    st.just("float")
    | st.fixed_dictionaries(
        {},
        optional={
            "method": text,
            "weight_bits": st.integers(1, 8),
            "act_bits": act_bits,
            "options": options,
        },
    ),
    max_size=3,
)
recipes = st.builds(
    Recipe,
    name=text.filter(bool),
    model=st.builds(
        ModelSection, network=text, options=options, weights=st.sampled_from([None, "a.pt", "/b c"])
    ),
    data=st.builds(
        DataSection,
        dataset=st.sampled_from(["digits", "mnist", "fashion-mnist", "cifar10"]),
        mean=channels,
        std=channels,
        batch_size=st.integers(2, 4096),
        flip=st.booleans(),
        regime=st.lists(
            st.builds(DataPhase, step=st.integers(0, 9), image_size=st.none() | st.integers(1, 99)),
            max_size=1,
        ),
    )
    | st.builds(DataSection, dataset=st.just("folder"), image_size=st.none() | st.integers(1, 512)),
    quantize=st.builds(
        QuantizeSection,
        method=text,
        weight_bits=st.integers(1, 8),
        act_bits=act_bits,
        options=options,
        layers=layers,
    ),
    train=st.builds(
        TrainSection,
        epochs=st.integers(1, 1000),
        lr=numbers,
        betas=st.lists(fractions, min_size=2, max_size=2),
        milestones=st.lists(st.integers(1, 100)),
        clip_norm=st.none() | numbers,
        regime=st.lists(
            st.builds(
                TrainPhase,
                epoch=st.integers(0, 9),
                lr=st.none() | numbers,
                betas=st.none() | st.lists(fractions, min_size=2, max_size=2),
            ),
            max_size=1,
        ),
    ),
    export=st.builds(
        ExportSection,
        max_drop=st.none() | numbers,
        min_agreement=st.none() | fractions,
        max_differing=st.none() | st.integers(0, 2**40),
        max_size=st.none() | st.integers(1, 2**40),
    ),
)


class TestWithoutTraining:
    def test_it_needs_weights_or_epochs_in_float(self, write):
        with pytest.raises(QdeployError, match=r"epochs = 0 only calibrates.*model\.weights, or"):
            Recipe.load(write(MINIMAL), ["train.epochs=0"])
        for trained in ("train.float_epochs=1", "model.weights=net.pt"):
            recipe = Recipe.load(write(MINIMAL), ["train.epochs=0", trained])
            assert recipe.train.epochs == 0

    @pytest.mark.parametrize("setting", ["ranges=minmax", "correct_bias=false", "percentile=99"])
    def test_what_replaces_training_is_refused_beside_it(self, write, setting):
        with pytest.raises(QdeployError, match=r"instead of training; remove it, or set train\.ep"):
            Recipe.load(write(MINIMAL), [f"calibrate.{setting}"])

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("ranges=mean2", r"calibrate\.ranges: given 'mean2', allowed: 'mean', 'minmax', 'perc"),
            ("percentile=0.99", r"calibrate\.percentile: given 0\.99, allowed: above 50"),
            ("percentile=100.5", r"calibrate\.percentile: given 100\.5, allowed: 100\.0 or less"),
            ("range=mse", r"unknown key calibrate\.range\. Did you mean calibrate\.ranges\?"),
        ],
    )
    def test_mistakes(self, write, setting, message):
        with pytest.raises(QdeployError, match=message):
            Recipe.load(write(MINIMAL), ["train.epochs=0", f"calibrate.{setting}"])


@given(recipes)
def test_toml_of_a_recipe_loads_as_the_same_recipe(tmp_path_factory, recipe):
    path = tmp_path_factory.getbasetemp() / "round-trip.toml"
    path.write_text(recipe.to_toml(), "utf-8", newline="")
    assert Recipe.load(path) == recipe


def test_toml_is_written_out_with_its_defaults(write):
    table = tomli.loads(Recipe.load(write(FULL)).to_toml())
    assert table["name"] == "mine"
    assert (
        table["quantize"]["act_bits"] == table["quantize"]["layers"]["fc3"]["act_bits"] == "float"
    )
    assert table["quantize"]["layers"]["conv*"] == {"act_bits": 4}
    assert table["train"]["momentum"] == 0.9
    assert "clip_norm" not in table["train"]


class TestExtends:
    """A recipe takes from another what it leaves out."""

    @pytest.fixture
    def write(self, tmp_path):
        def write(name, text):
            (tmp_path / name).write_text(text)
            return tmp_path / name

        return write

    def test_what_is_left_out_comes_from_the_other_and_what_is_given_wins(self, write):
        write("base.toml", 'extends = "lenet5-mnist-float"\n[train]\nepochs = 3\nlr = 0.5')
        own = write(
            "own.toml",
            'extends = "base.toml"\n[quantize]\nmethod = "simqat"\nact_bits = 4\n[train]\nlr = 0.25',
        )
        recipe, zoo = Recipe.load(own, ["train.seed=7"]), Recipe.load("lenet5-mnist-float")
        assert recipe.name == "own"
        assert (recipe.model, recipe.data) == (zoo.model, zoo.data)
        assert (recipe.quantize.method, recipe.quantize.act_bits) == ("simqat", 4)
        train = zoo.train.model_copy(update={"epochs": 3, "lr": 0.25, "seed": 7})
        assert recipe.train == train

    def test_a_run_keeps_the_whole_recipe(self, write):
        recipe = Recipe.load(write("own.toml", 'extends = "lenet5-mnist-float"'))
        assert Recipe.load(write("whole.toml", recipe.to_toml())) == recipe
        assert "extends" not in recipe.to_toml()

    def test_options_of_another_method_are_left_behind(self, write):
        base = 'extends = "lenet5-digits-slb-w1a8"\n[quantize]\n'
        assert Recipe.load("lenet5-digits-slb-w1a8").quantize.options
        own = write("own.toml", f'{base}method = "dorefa"\noptions = {{ grad_bits = 6 }}')
        assert Recipe.load(own).quantize.options == {"grad_bits": 6}
        kept = write("kept.toml", f"{base}weight_bits = 2")
        same = Recipe.load("lenet5-digits-slb-w1a8").quantize.options
        assert Recipe.load(kept).quantize.options == same
        overrides = ["quantize.method=dorefa", "quantize.options.grad_bits=4"]
        found = Recipe.load("lenet5-digits-slb-w1a8", overrides).quantize
        assert (found.method, found.options) == ("dorefa", {"grad_bits": 4})

    def test_paths_count_from_the_recipe_that_they_stand_in(self, write, tmp_path):
        (tmp_path / "below").mkdir()
        for file in ("net.py", "task.py", "data.py", "net.pt"):
            write(file, "")
        write(
            "base.toml",
            'extends = "lenet5-mnist-float"\n[model]\nnetwork = "net.py:make"\nweights = "net.pt"\n'
            '[task]\nkind = "task.py:Mine"\n[data]\ndataset = "data.py:make"\nroot = "below"',
        )
        recipe = Recipe.load(write("below/child.toml", 'extends = "../base.toml"'))
        assert (recipe.model.network, recipe.model.weights) == (
            f"{tmp_path / 'net.py'}:make", str(tmp_path / "net.pt"),
        )  # fmt: skip
        assert (recipe.task.kind, recipe.data.dataset, recipe.data.root) == (
            f"{tmp_path / 'task.py'}:Mine", f"{tmp_path / 'data.py'}:make", str(tmp_path / "below"),
        )  # fmt: skip

    def test_names_stay_names_beside_folders_that_are_called_so(self, write, tmp_path):
        (tmp_path / "below").mkdir()
        for folder in ("lenet5", "mnist", "classification"):
            (tmp_path / folder).mkdir()
        base = '[model]\nnetwork = "lenet5"\n[data]\ndataset = "mnist"\n[task]\nkind = "classification"\n'
        write("base.toml", base + '[quantize]\nmethod = "simqat"')
        recipe = Recipe.load(write("below/child.toml", 'extends = "../base.toml"'))
        named = recipe.model.network, recipe.data.dataset, recipe.task.kind
        assert named == ("lenet5", "mnist", "classification")

    def test_a_circle_through_another_spelling_of_the_path(self, write, tmp_path):
        (tmp_path / "below").mkdir()
        first = write("below/first.toml", 'extends = "../below/first.toml"')
        with pytest.raises(QdeployError, match=f"in a circle: {first} -> {first}$"):
            Recipe.load(first)

    @pytest.mark.parametrize("name", zoo_recipes())
    def test_without_defaults_it_is_the_same_recipe_in_fewer_bytes(self, write, name):
        recipe = Recipe.load(name)
        short = recipe.to_toml(defaults=False)
        assert Recipe.load(write("short.toml", short)) == recipe
        assert len(short) < 450 < len(recipe.to_toml())

    def test_a_circle_is_an_error_that_shows_it(self, write):
        first = write("first.toml", 'extends = "second.toml"')
        second = write("second.toml", 'extends = "first.toml"')
        with pytest.raises(QdeployError, match=f"in a circle: {first} -> {second} -> {first}"):
            Recipe.load(first)

    @pytest.mark.parametrize(
        ("base", "said"),
        [('"lenet5-mnist-flaot"', "Did you mean lenet5-mnist-float"), ("3", "extends: given 3"),
         ('"gone.toml"', "cannot read the recipe")],
    )  # fmt: skip
    def test_a_base_that_is_not_there_is_named(self, write, base, said):
        with pytest.raises(QdeployError, match=said):
            Recipe.load(write("own.toml", f"extends = {base}"))


EVERY_KEY = (Path(__file__).parents[1] / "docs" / "every-key.toml").read_text()


@pytest.mark.parametrize(
    "name", ["model", "task", "data", "quantize", "calibrate", "train", "export"]
)
def test_the_page_of_recipes_has_every_key_with_its_default(name):
    section = next(part for part in EVERY_KEY.split("\n[") if part.startswith(f"{name}]"))
    kind = Recipe.model_fields[name].annotation
    named = re.findall(r"^(?:# )?(\w+) = ", section, re.MULTILINE)
    assert sorted(named) == sorted(kind.model_fields)
    given = tomli.loads(EVERY_KEY)[name]
    needed = {key: given[key] for key, field in kind.model_fields.items() if field.is_required()}
    assert kind.model_validate(given) == kind.model_validate(needed)
    without_default = {key for key, value in kind.model_validate(needed) if value is None}
    assert without_default == set(named) - set(given)
