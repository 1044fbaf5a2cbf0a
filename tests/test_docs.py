"""What the pages quote is what is there today."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "tools"))

import tables


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_tables_and_quoted_files_are_those_of_today(page):
    text = page.read_text()
    assert tables.filled(text) == text, "run python tools/tables.py"
