"""Loading a network by its zoo name, from a file, from a package."""

import sys

import pytest
import torch

from qdeploy import QdeployError, load_network
from qdeploy.models import NETWORKS
from qdeploy.network_loading import network_source

FILE = """
from torch import nn

class Tiny(nn.Linear):
    pass

def tiny(inputs=3, outputs=2):
    return Tiny(inputs, outputs)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to write network files to; what they import is forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def reference(folder, text, function="tiny", name="network.py"):
    (folder / name).write_text(text)
    return f"{folder / name}:{function}"


def refused(given, match, **arguments):
    path = list(sys.path)
    with pytest.raises(QdeployError, match=match):
        load_network(given, **arguments)
    assert sys.path == path


@pytest.mark.parametrize("name", NETWORKS)
def test_the_zoo_gives_logits(name):
    small = {"image_size": 32, "depth": 1} if name == "vit_b16" else {}
    network = load_network(name, {"num_classes": 7, **small})
    images = torch.zeros(2, 1, 28, 28) if name == "lenet5" else torch.zeros(2, 3, 32, 32)
    assert network(images).shape == (2, 7)
    assert network_source(name).startswith(b'"""')


def test_the_zoo_is_complete():
    assert list(NETWORKS) == [
        "efficientnet_b0", "lenet5", "mobilenet_v2", "mobilenet_v3_small", "nin", "resnet18", "resnet20",
        "resnet20s", "resnet50", "vit_b16",
    ]  # fmt: skip


def test_a_file_gives_its_function_called_with_options(folder):
    network = load_network(reference(folder, FILE), {"outputs": 5})
    assert type(network).__name__ == "Tiny"
    assert network.weight.shape == (5, 3)


def test_a_class_serves_as_function(folder):
    network = load_network(reference(folder, FILE, "Tiny"), {"in_features": 4, "out_features": 1})
    assert network.weight.shape == (1, 4)


def test_the_source_of_a_file_is_its_bytes_and_nothing_is_run(folder):
    text = "# coding: latin-1\n# ü\nraise SystemExit\n".encode("latin-1")
    (folder / "network.py").write_bytes(text)
    assert network_source(f"{folder / 'network.py'}:tiny") == text


def test_a_file_may_import_its_neighbours_when_loaded_and_when_called(folder):
    (folder / "tiny_blocks.py").write_text(FILE)
    (folder / "tiny_late_blocks.py").write_text(FILE)
    text = (
        "from tiny_blocks import Tiny\n"
        "def tiny():\n"
        "    from tiny_late_blocks import tiny\n"
        "    assert issubclass(Tiny, object)\n"
        "    return tiny()\n"
    )
    path = list(sys.path)
    network = load_network(reference(folder, text))
    assert type(network).__module__ == "tiny_late_blocks"
    assert sys.path == path


def test_two_files_of_one_name_do_not_meet(folder):
    (folder / "other").mkdir()
    first = load_network(reference(folder, FILE))
    text = FILE.replace("inputs=3", "inputs=9")
    second = load_network(reference(folder / "other", text))
    assert first.weight.shape == (2, 3)
    assert second.weight.shape == (2, 9)


def test_the_copy_is_loaded_when_the_file_has_changed_or_gone(folder):
    given = reference(folder, FILE)
    copy = folder / "run" / "network.py"
    copy.parent.mkdir()

    def inputs():
        return load_network(given, copy=copy).weight.shape[1]

    assert inputs() == 3, "there is no copy yet"
    copy.write_text(FILE)
    (folder / "network.py").write_text(FILE.replace("inputs=3", "inputs=9"))
    assert inputs() == 3, "the file has changed"
    (folder / "network.py").write_text("a syntax error")
    assert inputs() == 3, "the file has changed and is broken"
    (folder / "network.py").unlink()
    assert inputs() == 3, "the file has gone"


def test_a_copy_still_imports_the_neighbours_of_the_file(folder):
    (folder / "tiny_neighbour.py").write_text(FILE)
    text = "from tiny_neighbour import tiny"
    given = reference(folder, text)
    (folder / "run").mkdir()
    (folder / "run" / "network.py").write_text(text)
    (folder / "network.py").write_text("raise RuntimeError('changed')")
    assert load_network(given, copy=folder / "run" / "network.py").weight.shape == (2, 3)


def test_a_file_that_has_not_changed_is_loaded_itself(folder):
    text = FILE + "\nassert 'run' not in __file__\n"
    given = reference(folder, text)
    (folder / "run").mkdir()
    (folder / "run" / "network.py").write_text(text)
    assert load_network(given, copy=folder / "run" / "network.py").weight.shape == (2, 3)


def test_a_package_gives_its_function(folder):
    (folder / "tiny_package").mkdir()
    (folder / "tiny_package" / "__init__.py").touch()
    (folder / "tiny_package" / "parts.py").write_text(FILE)
    (folder / "tiny_package" / "nets.py").write_text(
        "from functools import partial\nfrom .parts import tiny\nwide = partial(tiny, outputs=8)\n"
    )
    sys.path.append(str(folder))
    assert load_network("tiny_package.nets:tiny").weight.shape == (2, 3)
    assert load_network("tiny_package.nets:wide", {"inputs": 4}).weight.shape == (8, 4)
    assert network_source("tiny_package.nets:tiny").decode() == FILE, "where it is defined"
    assert b"partial" in network_source("tiny_package.nets:wide")


@pytest.mark.parametrize("given", ["lenet6", "network.py", "some.module", ":tiny", "network.py:"])
def test_what_is_no_reference_is_refused_with_the_forms(given):
    refused(given, rf"unknown network '{given}'\..* Give a zoo name .*file\.py:function or package")


def test_a_misspelt_zoo_name_is_hinted_at():
    refused("lenet", r"unknown network 'lenet'\. Did you mean lenet5\? Give")


def test_a_missing_file_is_named(folder):
    refused(f"{folder / 'none.py'}:tiny", "there is no network file .*none.py; give a zoo name")


def test_a_missing_function_is_named_with_those_there(folder):
    text = FILE + "from math import floor\nTINY = 3\n"
    refused(
        reference(folder, text, "tony"),
        r"network\.py has no function 'tony'\. Did you mean tiny\? It has Tiny, tiny$",
    )
    refused(reference(folder, text, "TINY"), "has no function 'TINY'")
    refused(reference(folder, "x = 1", name="empty.py"), "It has none")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("def tiny(:\n", r"cannot be loaded: SyntaxError: .*network\.py, line 1"),
        ("import nowhere_at_all", "cannot be loaded: ModuleNotFoundError: .*nowhere_at_all"),
        ("x = 1\n1 / 0", r"cannot be loaded: ZeroDivisionError: .*network\.py, line 2"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_named_with_the_reason(folder, text, match):
    refused(reference(folder, text), match)


@pytest.mark.parametrize("error", ["RuntimeError", "KeyError", "AssertionError", "TypeError"])
def test_a_function_that_raises_is_told_from_wrong_options(folder, error):
    text = f"def tiny(width=3):\n    raise {error}('no luck')\n"
    refused(
        reference(folder, text),
        rf"with options {{'width': 4}} raised {error}: .*no luck.*network\.py, line 2\).*"
        r"signature is \(width=3\)",
        options={"width": 4},
    )


def test_options_that_the_function_does_not_have_are_refused_with_its_signature(folder):
    refused(
        reference(folder, FILE),
        r"does not take options \{'depth': 18\}: .*'depth'; its signature is \(inputs=3, outputs=2\)",
        options={"depth": 18},
    )


@pytest.mark.parametrize("result", ["None", "[]", "'lenet5'", "lambda x: x"])
def test_a_function_that_returns_no_module_is_refused(folder, result):
    refused(
        reference(folder, f"def tiny():\n    return {result}\n"),
        "returned .*; it must return a torch.nn.Module",
    )


def test_a_missing_package_is_named():
    refused("no_such_package.nets:tiny", "'no_such_package.nets' cannot be imported: .*PYTHONPATH")


def test_a_package_that_raises_is_named(folder):
    (folder / "tiny_broken.py").write_text("raise OSError('no licence')")
    sys.path.append(str(folder))
    refused("tiny_broken:tiny", "'tiny_broken' cannot be imported: OSError: no licence")
