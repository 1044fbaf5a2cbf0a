from importlib.metadata import EntryPoint

import pytest

from qdeploy import QdeployError, extensions, methods
from qdeploy.cli import main
from qdeploy.methods import Method

GROUP = "qdeploy.methods"
FOREIGN = Method(
    summary="somebody else's",
    paper="",
    weight=None,
    activation=None,
    weight_bits=(3,),
    act_bits=(),
    options=methods.Options,
)
NOT_A_METHOD = {"summary": "a dictionary"}


@pytest.fixture
def foreign(monkeypatch):
    """Installs entry points without installing a package; only the right group sees them."""

    def install(**entries):
        points = [EntryPoint(name, f"{__name__}:{what}", GROUP) for name, what in entries.items()]
        monkeypatch.setattr(
            extensions, "entry_points", lambda group: points if group == GROUP else []
        )

    return install


def test_the_packages_own_methods_are_found_by_their_file_names():
    assert {"simqat", "slb"} <= set(methods.available())
    for name in methods.available():
        assert isinstance(methods.find(name), Method)


@pytest.mark.parametrize("name", ["method", "registry", "__init__", ""])
def test_modules_that_are_no_methods_are_not_found(name):
    assert name not in methods.available()
    with pytest.raises(QdeployError, match="unknown method"):
        methods.find(name)


def test_an_unknown_name_is_answered_with_what_there_is_and_the_nearest():
    with pytest.raises(QdeployError) as caught:
        methods.find("simqt")
    message = str(caught.value)
    assert "unknown method 'simqt'" in message
    assert "Did you mean simqat?" in message
    assert "slb" in message
    assert GROUP in message


def test_a_name_that_is_near_to_nothing_gets_no_suggestion():
    with pytest.raises(QdeployError) as caught:
        methods.find("zzzzzz")
    assert "Did you mean" not in str(caught.value)


def test_another_package_adds_a_method_by_an_entry_point(foreign):
    own = methods.available()
    foreign(theirs="FOREIGN", another="FOREIGN")
    assert methods.find("theirs") is FOREIGN
    assert methods.available() == sorted([*own, "another", "theirs"])
    with pytest.raises(QdeployError, match="Did you mean theirs"):
        methods.find("their")


def test_an_entry_point_that_gives_something_else_is_refused(foreign):
    foreign(broken="NOT_A_METHOD")
    with pytest.raises(QdeployError, match=r"entry point 'broken'.*gives dict, not.*Method"):
        methods.find("broken")


def test_an_entry_point_cannot_take_the_name_of_an_own_method(foreign):
    foreign(slb="FOREIGN")
    assert methods.find("slb") is not FOREIGN
    assert methods.available().count("slb") == 1


def test_options_of_a_method_by_default():
    options = methods.Options()
    assert options.covers(None)
    assert (options.fold_mode, options.freeze_bn_steps) == ("none", None)


def test_a_package_that_cannot_be_loaded_is_named_and_the_others_are_there(foreign, capsys):
    foreign(broken="DOES_NOT_EXIST")
    with pytest.raises(QdeployError, match=r"method 'broken' cannot be loaded from .*Attribute"):
        methods.find("broken")
    main(["methods"], standalone_mode=False)
    printed = capsys.readouterr()
    assert "simqat " in printed.out
    assert "cannot be loaded" in printed.err
