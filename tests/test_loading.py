"""What tools/loading.py measures: weights of the widths that files are named after, and memory."""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from artifact_files import by_hand
from onnx import helper

sys.path.append(str(Path(__file__).parents[1] / "tools"))

from loading import LEVELS, NETWORKS, load, take_levels
from tables import loading, markdown

RESULTS = Path(__file__).parents[1] / "results" / "loading.json"


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_all_weights_take_the_levels_and_zero_points_stay(levels):
    constants = {"w": np.zeros((40, 50), np.int8), "zero": np.zeros(40, np.int8)}
    nodes = [helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["y"], axis=0)]
    model = ir.from_proto(by_hand(nodes, constants | {"scale": np.ones(40, np.float32)}))
    take_levels(model, levels)
    found = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    assert set(np.unique(found["w"])) == set(levels)
    assert not found["zero"].any()


def test_memory_grows_by_the_weights_at_least(tmp_path):
    weights = np.random.default_rng(0).standard_normal((8, 2**20), dtype=np.float32)
    file = tmp_path / "m.onnx"
    onnx.save(by_hand([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weights}), file)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        load_ms, peak_mb, resident_mb = pool.submit(load, file).result()
    assert load_ms > 0
    assert weights.nbytes / 1e6 < resident_mb <= peak_mb < 10 * weights.nbytes / 1e6


def test_the_results_are_those_of_the_networks_and_widths():
    rows = json.loads(RESULTS.read_text())["files"]
    names = ["float", "int8", *LEVELS]
    assert [(row["network"], row["file"]) for row in rows] == [
        (network, name) for network in NETWORKS for name in names
    ]


def test_the_table_is_against_int8():
    files = [
        {"network": "n", "file": name, "bytes": 2e6, "load_ms": ms, "peak_mb": mb}
        for name, ms, mb in (("float", 30.0, 4.0), ("int8", 20.0, 8.0), ("1 bit", 25.0, 10.0))
    ]
    assert markdown(loading({"files": files})).splitlines()[2:] == [
        "| n | float | 2.00 | 30 | 1.50x | 4 | 0.50x |",
        "| n | int8 | 2.00 | 20 | 1.00x | 8 | 1.00x |",
        "| n | 1 bit | 2.00 | 25 | 1.25x | 10 | 1.25x |",
    ]
