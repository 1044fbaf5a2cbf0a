"""An HTML page as a reader and a browser see it, with the charts that bokeh will draw in it."""

import base64
import gzip
import html
import json
import re
from html.parser import HTMLParser

import numpy as np

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """The text that a reader sees, the addresses that a browser would load, bokeh's documents."""

    def __init__(self, source):
        super().__init__()
        self.text, self.addresses, self.scripts, self.open = [], [], [], []
        self.titles = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.text += data.split()
            self.titles += [data] if self.open[-1:] == ["h2"] else []

    def charts(self):
        """The figures of bokeh, as the JSON in the page describes them."""
        found = []
        for script in self.scripts:
            for text in re.findall(r"const docs_json = '(.*)';", script):
                documents = json.loads(html.unescape(text).replace("\\\\", "\\"))
                found += [root for document in documents.values() for root in document["roots"]]
        return found

    def curves(self):
        """{title: Chart} of a page in which every heading has one."""
        return dict(zip(self.titles, map(Chart, self.charts()), strict=True))


class Chart:
    """One figure in bokeh's JSON: whether its values stand on a logarithmic axis, and its lines."""

    def __init__(self, root):
        self.attributes = root["attributes"]
        self.is_log = self.attributes.get("y_scale", {}).get("name") == "LogScale"
        self.x_range, self.y_range = (self.ends(name) for name in ("x_range", "y_range"))
        renderers = [renderer["attributes"] for renderer in self.attributes["renderers"]]
        self.lines = [Line(one) for one in renderers if one["glyph"]["name"] == "Line"]

    def ends(self, name):
        """[first, last] of an axis; None where bokeh fits it to the data."""
        found = self.attributes[name]
        if found["name"] == "DataRange1d":
            return None
        return [{"start": 0, "end": 1, **found["attributes"]}[end] for end in ("start", "end")]

    @property
    def ticks(self):
        """The fixed ticks of the axis of values."""
        return self.attributes["left"][0]["attributes"]["ticker"]["attributes"]["ticks"]


class Line:
    """One line: label, colour, dashes and points."""

    def __init__(self, renderer):
        entries = dict(renderer["data_source"]["attributes"]["data"]["entries"])
        glyph = renderer["glyph"]["attributes"]
        self.label = entries["line"][0]
        self.color = glyph["line_color"]
        self.dash = glyph.get("line_dash", [])
        self.epochs, self.values = (numbers(entries[name]) for name in ("epoch", "value"))


def numbers(array):
    """An array in bokeh's JSON, as a list."""
    assert array["type"] == "ndarray"
    buffer = base64.b64decode(array["array"]["data"])
    if buffer[:2] == b"\x1f\x8b":  # bokeh compresses them since 3.7
        buffer = gzip.decompress(buffer)
    return np.frombuffer(buffer, array["dtype"]).tolist()
