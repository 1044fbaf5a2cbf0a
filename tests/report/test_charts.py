"""What the charts are made to draw."""

from sample_records import layer

from qdeploy.report.charts import ACCENT, bars, histogram


def drawn(chart):
    """The data of a chart's glyphs, in the order they are drawn."""
    return [renderer.data_source.data for renderer in chart.renderers]


def test_bars_carry_their_labels_and_one_stands_out():
    bar, text = drawn(bars({"int8": 200, "exported": 50}, ["200 bytes", "50 bytes"], "exported"))
    assert list(bar["right"]) == [200, 50]
    assert [color == ACCENT for color in bar["fill_color"]] == [False, True]
    assert list(zip(text["y"], text["text"], strict=True)) == [
        ("int8", "200 bytes"),
        ("exported", "50 bytes"),
    ]


def test_a_histogram_leaves_room_for_every_code():
    for bits in (1, 2, 4, 8):
        one = layer("conv", "Conv2d", 5000, bits)
        chart = histogram(one)
        (bar,) = drawn(chart)
        assert dict(zip(bar["x"], bar["top"], strict=True)) == one.levels
        assert chart.x_range.start < min(one.levels)
        assert max(one.levels) < chart.x_range.end
        assert max(one.levels.values()) < chart.y_range.end


def test_bars_of_codes_far_apart_stay_apart():
    one = layer("conv", "Conv2d", 100, 1)
    (renderer,) = histogram(one).renderers
    assert 1 < renderer.glyph.width < 2  # the codes are -1 and 1
