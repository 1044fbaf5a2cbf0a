"""What the command line says without training anything; tests/pipeline has the long way."""

import re
from dataclasses import replace
from importlib.metadata import version

import click
import pytest
import tomli
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from qdeploy.cli import main
from qdeploy.cli.train import DEFAULT_RECIPE
from qdeploy.cli.zoo import explained, spans
from qdeploy.methods import Options, available, find
from qdeploy.models import NETWORKS
from qdeploy.recipe import zoo_recipes


def printed(*arguments, code=0):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_explains_itself(command):
    assert f"{command} " in printed("--help")
    text = printed(command, "--help")
    assert "Usage:" in text
    assert printed(command, "-h") == text


def test_every_option_has_its_help():
    options = [
        (name, option.name)
        for name, command in main.commands.items()
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    ]
    assert options == []


def test_the_default_recipe_is_in_the_zoo_and_named_in_the_help():
    assert DEFAULT_RECIPE in zoo_recipes()
    assert DEFAULT_RECIPE in printed("train", "--help")


def test_the_version():
    assert printed("--version").strip().endswith(version("qdeploy"))


def test_methods_are_listed_with_what_they_can_do():
    lines = printed("methods").splitlines()
    assert [line.split()[0] for line in lines] == available()
    slb = next(line for line in lines if line.startswith("slb"))
    assert find("slb").summary in slb
    assert slb.endswith("[bits of weights 1-2, 4; of activations 8 or float]")


@pytest.mark.parametrize("name", available())
def test_a_method_is_explained_and_its_options_are_those_of_a_recipe(name):
    method, text = find(name), printed("methods", name)
    assert text.startswith(f"{method.summary}\n{method.paper}\n")
    options, explanation = text.partition("[quantize.options]")[2].split("\n\n", 1)
    defaults = method.options().model_dump(mode="json", exclude_none=True)
    assert tomli.loads(options) == defaults
    for option in method.options.model_fields:
        assert f"{option}" in options
        named = rf"^(\w+, )*{option}(, \w+)*(   |: )"
        assert re.search(named, explanation, re.MULTILINE), f"{option} is not explained"


def test_options_of_another_package_are_shown_whatever_they_are():
    class Others(Options):
        steps: int
        names: tuple[str, ...] = ("é", "🙂")
        table: dict[str, float] = Field(default_factory=lambda: {"a": 1e-05})
        rest: float | None = None

    text = explained(replace(find("lsq"), options=Others)).partition("[quantize.options]\n")[2]
    assert tomli.loads(text) == {"names": ["é", "🙂"], "table": {"a": 1e-05}}
    assert "# steps: has to be given\n" in text
    assert "# rest: not given" in text


@given(st.sets(st.integers(1, 16), min_size=1))
def test_spans_hold_what_they_are_given(bits):
    spoken = [span.split("-") for span in spans([*bits, *bits]).split(", ")]
    assert {b for span in spoken for b in range(int(span[0]), int(span[-1]) + 1)} == bits


def test_an_unknown_method_is_told_the_nearest():
    assert "Did you mean lsq?" in printed("methods", "lsqq", code=1)


def test_models_lists_networks_and_recipes_with_their_first_line():
    first, *rest = printed("models").splitlines()
    assert first == "networks: " + ", ".join(NETWORKS)
    assert [line.split()[0] for line in rest] == zoo_recipes()
    assert all(re.fullmatch(r"\S+ +\S+ \S+ .*", line) for line in rest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'"),
        (["train", "--device", "tpu"], "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        (["train", "a", "b"], "unexpected extra argument"),
        (["train", "--resume"], "--resume needs the run folder: give it with -o"),
        (["export"], "Missing argument 'RUN'"),
        (["export", "nowhere"], "'nowhere' does not exist"),
        (["benchmark"], "Missing argument"),
        (["report"], "Missing argument 'RUNS...'"),
        (["report", "nowhere"], "'nowhere' does not exist"),
        (["benchmark", "x.onnx", "--provider", "npu"], "'npu' is not one of 'auto', 'cpu'"),
    ],
)
def test_wrong_usage_ends_with_2(arguments, message):
    assert message in printed(*arguments, code=2)


def test_an_unexpected_error_keeps_its_traceback(monkeypatch):
    def broken():
        raise ZeroDivisionError

    monkeypatch.setattr("qdeploy.methods.available", broken)
    result = CliRunner().invoke(main, ["methods"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_an_interrupt_ends_with_130(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("qdeploy.methods.available", interrupted)
    assert printed("methods", code=130) == "interrupted\n"


PATHS = [
    (command.name, parameter)
    for command in main.commands.values()
    for parameter in command.params
    if isinstance(parameter.type, click.Path)
]


@pytest.mark.parametrize(("command", "parameter"), PATHS, ids=lambda one: getattr(one, "name", one))
def test_an_empty_path_is_refused_wherever_there_is_one(command, parameter):
    option = [] if isinstance(parameter, click.Argument) else [parameter.opts[0]]
    result = CliRunner().invoke(main, [command, *option, "", *([] if not option else ["."])])
    assert result.exit_code == 2
    assert "the path is empty" in result.output
