"""Data sets that a function of the user's returns."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from qdeploy.data import Share, open_data
from qdeploy.data.own_data import OwnBatches, as_own_data
from qdeploy.errors import QdeployError
from qdeploy.recipe import DataSection

SECTION = DataSection(dataset="data.py:make", batch_size=4, workers=0)


class Noisy(Dataset):
    """Items that say their number and what they drew from each generator."""

    def __init__(self, count=10):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        drawn = [torch.rand(()).item(), np.random.rand(), random.random()]
        return torch.tensor([number, *drawn]), number


class Stream(IterableDataset):
    def __init__(self, count=10):
        self.count, self.told = count, []

    def __len__(self):
        return self.count

    def set_epoch(self, epoch):
        self.told.append(epoch)

    def __iter__(self):
        for number in range(self.count):
            yield torch.tensor([number, random.random()]), number


def batches(data, seed=7, share=Share(), section=SECTION, **kwargs):  # noqa: B008
    own = as_own_data("mine", (data, data))
    return OwnBatches("mine", own.train, section, own.collate, "cpu", seed, share, **kwargs)


def rows(batches, epoch=0):
    return torch.cat([inputs for inputs, _ in batches.epoch(epoch)])


def test_training_is_shuffled_by_the_epoch_and_testing_in_order():
    numbers = [rows(batches(Noisy()), epoch)[:, 0].tolist() for epoch in (0, 1)]
    assert sorted(numbers[0]) == sorted(numbers[1]) == list(range(10))
    assert numbers[0] != numbers[1] != list(range(10))
    assert rows(batches(Noisy(), seed=None))[:, 0].tolist() == list(range(10))


def test_what_an_item_draws_depends_on_seed_epoch_and_number_alone():
    first = rows(batches(Noisy()))
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    assert torch.equal(rows(batches(Noisy())), first)
    other = rows(batches(Noisy()), epoch=1)
    by_number = (part[part[:, 0].argsort()][:, 1:] for part in (first, other))
    assert not torch.isclose(*by_number).any()
    assert len(first[:, 1:].unique()) == 30


def test_generators_of_the_run_stay_as_they_are():
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = torch.rand(()), np.random.rand(), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    list(batches(Noisy()).epoch(0))
    assert (torch.rand(()), np.random.rand(), random.random()) == expected


def test_workers_give_the_same_batches():
    section = SECTION.model_copy(update={"workers": 2})
    assert torch.equal(rows(batches(Noisy(), section=section)), rows(batches(Noisy())))


@pytest.mark.parametrize("data", [Noisy, Stream])
def test_processes_share_the_very_same_batches(data):
    whole = [inputs for inputs, _ in batches(data()).epoch(3)]
    shares = [[x for x, _ in batches(data(), share=Share(rank, 2)).epoch(3)] for rank in (0, 1)]
    for batch, one, other in zip(whole, *shares, strict=True):
        assert torch.equal(batch[0::2], one)
        assert torch.equal(batch[1::2], other)


def test_a_stream_keeps_its_order_and_is_told_the_epoch():
    data = Stream()
    own = batches(data)
    assert rows(own, 2)[:, 0].tolist() == list(range(10))
    assert torch.equal(rows(own, 2), rows(own, 2))
    assert not torch.equal(rows(own, 2), rows(own, 3))
    assert data.told[:2] == [2, 2]


def test_a_batch_of_one_is_left_out_of_training_alone():
    own, tested = batches(Noisy(9)), batches(Noisy(9), seed=None)
    assert [len(x) for x, _ in own.epoch(0)] == [4, 4]
    assert [len(x) for x, _ in tested.epoch(0)] == [4, 4, 1]
    assert own.steps_before(2) == 4


def opened(tmp_path, source, **section):
    file = tmp_path / "data.py"
    file.write_text("import torch\nimport numpy as np\n\n\n" + source)
    section = DataSection(dataset=f"{file}:make", batch_size=4, workers=0, **section)
    return open_data(section, None, False, "cpu", seed=0)


def several_of_each(items):
    """Inputs [N, 4], and a list that has tensors of another length for every item."""
    inputs, numbers = zip(*items, strict=True)
    return torch.stack(inputs), [torch.arange(number) for number in numbers]


@pytest.mark.parametrize("kind", [Noisy, Stream])
@pytest.mark.parametrize("samples", [1, 4, 6, 99])
def test_the_first_samples_are_whole_whatever_collate_makes_of_them(kind, samples):
    tested = OwnBatches("mine", kind(), SECTION, several_of_each, "cpu")
    parts = list(tested.shortened(samples).epoch(0))
    lengths = [len(target) for _, targets in parts for target in targets]
    assert lengths == list(range(min(samples, 10)))
    assert [len(inputs) for inputs, _ in parts] == [len(targets) for _, targets in parts]
    assert sum(len(inputs) for inputs, _ in tested.epoch(0)) == 10


class TestWhatIsReturned:
    def test_a_pair_of_tensors_will_do(self, tmp_path):
        pair = "(torch.ones(6, 2), torch.zeros(6)), (np.ones((4, 2)), np.zeros(4))"
        source = f"def make():\n    return {pair}\n"
        data = opened(tmp_path, source)
        assert (data.train.samples, data.test.samples, data.classes, data.mean) == (6, 4, (), None)
        assert (data.input_shape, data.title) == ((2,), "data.py:make")

    def test_a_dict_says_more_and_options_and_the_root_are_handed_on(self, tmp_path):
        source = (
            "def make(root, size):\n"
            "    x = torch.ones(6, 3, size, size)\n"
            "    return {'train': (x, x), 'test': (x, x), 'classes': [str(root)], 'mean': [1, 2, 3],\n"
            "            'std': [1, 1, 1]}\n"
        )
        data = opened(tmp_path, source, options={"size": 8}, root=str(tmp_path))
        assert (data.input_shape, data.classes) == ((3, 8, 8), (str(tmp_path),))
        assert (data.mean, data.std) == ((1, 2, 3), (1, 1, 1))

    def test_several_inputs_and_targets_of_any_structure(self, tmp_path):
        source = (
            "class Items(torch.utils.data.Dataset):\n"
            "    def __len__(self):\n        return 5\n\n"
            "    def __getitem__(self, i):\n"
            "        return (torch.ones(3), torch.ones(2, 2)), {'box': torch.ones(4), 'what': i}\n\n\n"
            "def make():\n    return Items(), Items()\n"
        )
        data = opened(tmp_path, source)
        assert [list(x.shape) for x in data.example] == [[2, 3], [2, 2, 2]]
        (_, targets) = next(iter(data.test.epoch(0)))
        assert targets["box"].shape == (4, 4)
        assert targets["what"].tolist() == [0, 1, 2, 3]

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("def make():\n    return 3\n", "returned int; it must return"),
            ("def make():\n    return {'train': 1}\n", "returned no test; it must return"),
            ("def make():\n    return {'train': 1, 'test': 1, 'clases': []}\n", "returned clases; it must"),
            ("def make():\n    return 3, 4\n", "its train is int; it must return"),
            ("def make():\n    return (torch.ones(0), torch.ones(0)), 4\n", "its train holds 0 items, two"),
            ("def make(size):\n    return 3\n", "does not take options {}"),
            ("def make():\n    return 1 / 0\n", "raised ZeroDivisionError"),
            (
                "def make():\n    x = torch.ones(3, 2), torch.ones(3), torch.ones(3)\n    return x, x\n",
                "gives batches of 3 parts; an item is",
            ),
            (
                "class D(torch.utils.data.Dataset):\n    def __len__(self):\n        return 3\n\n"
                "    def __getitem__(self, i):\n        return torch.ones(i + 1), 0\n\n\n"
                "def make():\n    return D(), D()\n",
                "gives no batch: RuntimeError: stack expects each tensor",
            ),
            (
                "class D(torch.utils.data.IterableDataset):\n    __iter__ = None\n\n\n"
                "def make():\n    return D(), D()\n",
                "its train has no length",
            ),
            (
                "def make():\n    x = torch.ones(3), torch.ones(3)\n"
                "    return {'train': x, 'test': x, 'std': [1]}\n",
                "mean and std go together",
            ),
            ("def make():\n    return (torch.ones(4), torch.ones(3)), 4\n", r"is \[4\] of .* and \[3\]"),
            ("def make():\n    return {'train': None, 'test': 4}\n", "returned no train; it must return"),
        ],
    )  # fmt: skip
    def test_anything_else_is_named(self, tmp_path, source, said):
        with pytest.raises(QdeployError, match=said):
            opened(tmp_path, source)

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ({"classes": 3}, "its classes is 3; give a list of names"),
            ({"classes": "cat"}, "its classes is 'cat'; give a list of names"),
            ({"mean": 0.5, "std": 0.5}, "its mean is 0.5; give a list of numbers, one a channel"),
            ({"mean": [0.5], "std": ["x"]}, r"its std is \['x'\]; give a list of numbers"),
            ({"mean": [0.5], "std": [0.0]}, r"its std \(0.0,\); give one finite number a channel"),
            ({"mean": [0.5, 0.5], "std": [1.0]}, "give one finite number a channel in both"),
            ({"collate": 3}, "its collate is 3, no function"),
            ({1: 2}, "returned 1; it must return"),
        ],
    )
    def test_what_is_said_beside_the_parts_is_looked_at(self, more, said):
        part = torch.ones(3), torch.ones(3)
        with pytest.raises(QdeployError, match=said):
            as_own_data("mine", {"train": part, "test": part, **more})


def test_what_the_function_decides_cannot_be_set_beside_it():
    with pytest.raises(
        ValueError, match=r"flip cannot be given for .*data\.py:make, whose function"
    ):
        DataSection(dataset="data.py:make", flip=True)
    with pytest.raises(ValueError, match="options are for a data set that is a function"):
        DataSection(dataset="digits", options={"size": 3})
