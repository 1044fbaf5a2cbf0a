"""How the answers of other runtimes are judged, and what becomes of a runtime that dies."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "tools"))

import runtime_table
from runtimes import Runtime, run_all
from try_runtimes import compared, short


def test_outputs_are_equal_bit_for_bit_or_off_by_a_share_of_their_spread():
    expected = np.array([[0, 4], [2, 1]], np.float32)
    assert compared([expected], [expected.copy()]) == {"off": 0, "top1": 1}
    found = expected + np.array([[0, -1], [0, 2]], np.float32)
    assert compared([found], [expected]) == {"off": 0.5, "top1": 0.5}


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        ("Unsupported model IR version: 10, max supported IR version: 9", "IR 10 is too new"),
        (
            "NotImplemented: Could not find an implementation for DepthToSpace(13) node with name ''",
            "no kernel for DepthToSpace of opset 13",
        ),
        ("ValueError:  another\nthing", "ValueError: another thing"),
    ],
)
def test_a_message_comes_down_to_what_failed(message, plain):
    assert short(message) == plain


def test_a_runtime_that_dies_goes_on_behind_the_file_it_died_of(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        "#!/bin/sh\nshift 4\n"
        'for case; do [ "$case" = bad ] && kill -9 $$; echo "{\\"case\\": \\"$case\\"}"; done\n'
    )
    python.chmod(0o755)
    runtime = Runtime("any", "any", ("any",))
    answers = list(run_all(runtime, tmp_path, tmp_path, tmp_path, ["a", "bad", "b", "c"]))
    assert [answer["case"] for answer in answers] == ["a", "bad", "b", "c"]
    assert [answer.get("error") for answer in answers] == [None, "the process died", None, None]


def test_a_cell_is_the_worst_of_its_networks_with_letters_for_errors():
    cases = [{"off": 0.0, "top1": 1.0}, {"off": 2e-7, "top1": 1.0}, {"error": "no"}]
    errors = ["other"]
    assert runtime_table.cell(cases[:1], errors) == "equal"
    assert runtime_table.cell(cases, errors) == "2e-7; *b* 1 of 3"
    assert runtime_table.cell(cases[2:], errors) == "*b*"
    assert runtime_table.cell([{"off": 0.314, "top1": 0.5}], errors) == "0.31, top-1 50.0%"
    assert errors == ["other", "no"]
