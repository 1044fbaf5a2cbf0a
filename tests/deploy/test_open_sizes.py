"""Files of open sizes: what they compute at each, and what is refused."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from networks import Network, conv
from sized_networks import (
    FORWARDS,
    SIZES,
    converted,
    distance,
    images,
    network,
    pooled,
    resized,
    run,
    same,
    session_of,
    windows,
)
from torch import nn

import qdeploy
from qdeploy.deploy.open_axes import asked_axes
from qdeploy.errors import QdeployError

IMAGE = {"input": {2: "height", 3: "width"}}
needs_free_sizes = pytest.mark.skipif(
    torch.__version__ < "2.11", reason="torch.export sets bounds to sizes that are open"
)


def export(integers, folder, x=None, dynamic=("height", "width"), **options):
    x = images() if x is None else x
    return qdeploy.export(integers, folder / "m.onnx", x, dynamic=dynamic, **options)


@pytest.mark.filterwarnings("ignore:the file does at every size")
@pytest.mark.parametrize(
    "forward",
    [pytest.param(f, marks=[needs_free_sizes] if f in (same, windows) else []) for f in FORWARDS],
    ids=lambda f: f.__name__,
)
def test_the_file_gives_what_the_integers_and_the_network_give_at_every_size(forward, tmp_path):
    integers = converted(forward)
    session = session_of(export(integers, tmp_path))
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    for height, width in [*SIZES, (32, 14)]:
        x = images(height, width, batch=3)
        found = run(session, x)
        with torch.no_grad():
            assert np.array_equal(found, integers(x).numpy()), (height, width)
            assert distance(found, network(forward)(x).numpy()) < 0.06


@needs_free_sizes
@pytest.mark.filterwarnings("ignore:the file does at every size")
def test_sizes_are_rounded_up_as_python_does(tmp_path):
    """-(-15 // 2) is 8; ONNX's Div cuts off towards 0."""
    integers = converted(same)
    session = session_of(export(integers, tmp_path))
    assert run(session, images(15, 17)).shape == integers(images(15, 17)).shape == (2, 5, 8, 9)


@needs_free_sizes
def test_one_axis_alone_is_open(tmp_path):
    session = session_of(export(converted(pooled), tmp_path, dynamic=["height"]))
    assert session.get_inputs()[0].shape == ["batch", 3, "height", 16]


@pytest.mark.parametrize(
    "options", [{"target": "tensorrt"}, {"uint8_input": ([0.5] * 3, [0.25] * 3)}], ids=str
)
def test_targets_and_pixels(options, tmp_path):
    integers = converted(resized)
    file = export(integers, tmp_path, **options)
    session = session_of(file)
    for height, width in SIZES:
        pixels = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
        x = (pixels / 255 - 0.5) / 0.25
        with torch.no_grad():
            expected = integers(x).numpy()
        given = pixels if "uint8_input" in options else x
        assert distance(run(session, given), expected) < 0.05


def test_a_sequence_of_any_length(tmp_path):
    def forward(self, x):
        return self.last(F.relu(self.first(x)).mean(2))

    torch.manual_seed(0)
    model = Network(forward, first=nn.Conv1d(4, 6, 3, padding=1), last=nn.Linear(6, 5)).eval()
    x = torch.randn(2, 4, 24)
    prepared = qdeploy.prepare(model, x, "simqat")
    qdeploy.calibrate(prepared, [x])
    session = session_of(export(prepared, tmp_path, x, ["length"]))
    assert session.get_inputs()[0].shape == ["batch", 4, "length"]
    for length in (24, 9, 50):
        x = torch.randn(3, 4, length)
        assert distance(run(session, x), model(x).detach().numpy()) < 0.06


class Compared(nn.Module):
    """Words beside a table that all samples share."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(6, 8)

    def forward(self, words, table):
        return F.relu(self.first(words)) @ F.relu(self.second(table)).transpose(0, 1)


def test_axes_of_several_inputs_by_name(tmp_path):
    model, given = Compared().eval(), (torch.randn(2, 5, 6), torch.randn(7, 6))
    file = export(
        model,
        tmp_path,
        given,
        {"words": {1: "length"}, "table": {-2: "rows"}},
        batch_axes={"table": None},
    )
    session = session_of(file)
    assert [one.shape for one in session.get_inputs()] == [["batch", "length", 6], ["rows", 6]]
    given = torch.randn(3, 11, 6), torch.randn(2, 6)
    np.testing.assert_allclose(run(session, *given), model(*given).detach(), rtol=1e-4, atol=1e-5)


@needs_free_sizes
def test_axes_that_have_to_be_equal_get_one_name(tmp_path):
    def square(self, x):
        assert x.shape[2] == x.shape[3]
        return self.conv(x)

    model = Network(square, conv=conv()).eval()
    with pytest.raises(QdeployError, match=r"has to be equal to .* give both axes one name"):
        export(model, tmp_path)
    session = session_of(export(model, tmp_path, dynamic={"input": {2: "side", 3: "side"}}))
    assert session.get_inputs()[0].shape == ["batch", 3, "side", "side"]


def test_a_decision_by_size_is_said_with_its_line(tmp_path):
    def assured(self, x):
        assert x.shape[2] % 4 == 0
        return self.conv(x)

    prepared = qdeploy.prepare(Network(assured, conv=conv()).eval(), images(), "simqat")
    qdeploy.calibrate(prepared, [images()])
    with pytest.warns(UserWarning, match=r"test_open_sizes.py, line \d+: assert x.shape\[2\] % 4"):
        export(prepared, tmp_path)


def flattened(self, x):
    return self.last(F.relu(self.conv(x)).flatten(1))


def quartered(self, x):
    return self.last(F.adaptive_avg_pool2d(self.conv(x), 2).flatten(1))


def averaged(self, x):
    return self.last(F.avg_pool2d(y := self.conv(x), y.shape[2:]).flatten(1))


def branched(self, x):
    """torch.export decides once, without a word."""
    return self.conv(x) * (3 if x.shape[2] > 16 else 1)


REFUSED = {
    flattened: (
        6 * 16 * 16,
        "takes no other height and width than 16x16, .* with 13x9 it stops with",
    ),
    quartered: (24, "adaptive_avg_pool2d to 2x2, and windows are numbers in ONNX"),
    averaged: (6, "avg_pool2d with a window computed of sizes"),
    branched: (1, "at 21x25 the file computes something else"),
}


@pytest.mark.parametrize("forward", REFUSED, ids=lambda f: f.__name__)
def test_a_network_that_fixes_a_size_is_refused_and_nothing_is_written(forward, tmp_path):
    inputs, said = REFUSED[forward]
    model = Network(forward, conv=conv(), last=nn.Linear(inputs, 5)).eval()
    with pytest.raises(QdeployError, match=said):
        export(model, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("dynamic", "said"),
    [
        (["hight"], "dynamic is .*hight.*allowed: for an input of 4 axes a list of height, width"),
        ("height", "allowed: for an input of 4 axes a list of height, width"),
        ({"image": {2: "height"}}, r"allowed: \{input: \{axis: name\}\} of input"),
        ({"input": {4: "height"}}, r"axes of input, which is \[2, 3, 16, 12\]: 0, 1, 2, 3"),
        ({"input": {2: "the height"}}, "names of letters, digits and _"),
        ({"input": {0: "batch"}}, "any other name than batch: the batch is open anyway"),
        ({"input": {2: "side", 3: "side"}}, "axes of 16 and of 12 side"),
    ],
)  # fmt: skip
def test_what_dynamic_may_be(dynamic, said):
    with pytest.raises(QdeployError, match=said):
        asked_axes(dynamic, ["input"], [images(16, 12)])


def test_a_list_is_for_one_input():
    with pytest.raises(QdeployError, match=r"several inputs \{input: \{axis: name\}\} of x, y"):
        asked_axes(["height"], ["x", "y"], [images(), images()])


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"image": 0}, "batch_axes names 'image'; allowed: .* of words, table"),
        ({"words": 5}, r"batch_axes says 5 of words, .* allowed: 0, 1, 2, or None"),
        ({"words": 2}, "takes no longer batch on these axes"),
    ],
)
def test_what_batch_axes_may_be(said, words, tmp_path):
    given = torch.randn(2, 5, 6), torch.randn(7, 6)
    with pytest.raises(QdeployError, match=words):
        qdeploy.export(Compared().eval(), tmp_path / "m.onnx", given, batch_axes=said)


def test_a_batch_is_where_it_is_said_to_be(tmp_path):
    """Samples on either axis would do here."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU()).eval()
    for axis in (0, 1):
        file = qdeploy.export(
            model, tmp_path / "m.onnx", torch.randn(3, 5, 6), batch_axes={"input": axis}
        )
        (value,) = onnx.load(file).graph.input
        names = [one.dim_param for one in value.type.tensor_type.shape.dim]
        assert names == ["batch" if place == axis else "" for place in range(3)]


def test_settings_of_few_bits_are_as_exact(tmp_path):
    integers = converted(pooled, "lsq", 2, 2)
    session = session_of(export(integers, tmp_path))
    for height, width in SIZES:
        x = images(height, width)
        assert np.array_equal(run(session, x), integers(x).detach().numpy())


def test_the_page_s_lines_of_python_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "sizes.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    exec(block, {"qdeploy": qdeploy, "network": network(pooled), "images": images()})
    assert "sizes: 16x16, 13x9, 21x25" in capsys.readouterr().out
