"""Puts tests/data/published.py on the import path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "data"))
