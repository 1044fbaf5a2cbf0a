"""Records survive the way through JSON."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_records import BARE, FULL

from qdeploy.errors import QdeployError
from qdeploy.record import Agreement, Latency, Machine, Placement, Record, ShippedLayer
from qdeploy.report.html import report_page
from qdeploy.report.markdown import markdown

finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
# hypothesis builds the dataclasses from their annotations, except where JSON allows less.
st.register_type_strategy(float, finite)
records = st.builds(
    Record,
    recipe=st.dictionaries(st.text(), values, max_size=3),
    training=st.lists(st.dictionaries(st.text(), st.none() | finite, max_size=3)).map(tuple),
)


@given(records)
@settings(max_examples=50, deadline=None)
def test_every_record_comes_back_equal(record):
    assert Record.from_json(record.to_json()) == record


def test_the_samples_come_back_with_their_types():
    full = Record.from_json(FULL.to_json())
    assert full == FULL
    assert isinstance(full.layers[0], ShippedLayer)
    assert isinstance(full.latency[0], Latency)
    assert isinstance(full.placements[0], Placement)
    assert isinstance(full.machine, Machine)
    assert isinstance(full.agreement, Agreement)
    assert Record.from_json(BARE.to_json()) == BARE


def test_the_json_is_named_as_the_fields_are():
    data = json.loads(FULL.to_json())
    assert data["accuracy"]["onnx"] == {"top1": 0.9831, "top5": 0.9971}
    assert data["size"] == {"onnx": 16_480, "float": 467_800, "int8": 123_456, "bound": 14_700}
    assert data["layers"][0]["levels"].keys() == {"-1", "1"}
    assert json.loads(BARE.to_json())["agreement"] is None


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("no JSON", "the text"),
        ("[1, 2]", "the text"),
        (FULL.to_json()[:200], "the text"),
        (FULL.to_json().replace('"onnx": 16480', '"onnx": "small"'), "size.onnx"),
        (FULL.to_json().replace('"created"', '"creatd"'), "created"),
    ],
)
def test_what_is_no_record_is_refused_with_the_place(text, place):
    with pytest.raises(QdeployError, match=f"no report of qdeploy: {place}:"):
        Record.from_json(text)


def test_a_record_from_before_kernels_were_listed_is_read():
    data = json.loads(FULL.to_json())
    for placed in data["placements"]:
        for name in ("kernels", "products", "coverage"):
            del placed[name]
    found = Record.from_json(json.dumps(data))
    assert [placed.coverage for placed in found.placements] == [None, None]
    assert found.placements[1].operators == FULL.placements[1].operators
    for page in (report_page(found), markdown(found)):
        assert "quantized products ran" not in page
