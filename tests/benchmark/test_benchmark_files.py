"""The whole measurement on two small files."""

import dataclasses
import json
import subprocess
import sys

import pytest
from graphs import float_network, integer_network, write

from qdeploy.benchmark import benchmark_files
from qdeploy.errors import QdeployError


@pytest.fixture
def files(tmp_path):
    return [
        write(float_network(), tmp_path / "float.onnx"),
        write(integer_network(), tmp_path / "model.onnx"),
    ]


def test_there_is_a_row_for_each_file_and_batch_size(files):
    result = benchmark_files(files, "cpu", batch_sizes=(1, 4), rounds=5)
    assert [(row.file, row.batch) for row in result.latency] == [
        ("float.onnx", 1),
        ("model.onnx", 1),
        ("float.onnx", 4),
        ("model.onnx", 4),
    ]
    assert [row.speedup for row in result.latency if row.file == "float.onnx"] == [1.0, 1.0]
    assert all(row.p50_ms <= row.p90_ms <= row.p99_ms for row in result.latency)
    assert [placed.file for placed in result.placements] == ["float.onnx", "model.onnx"]


def test_the_result_is_json(files):
    result = benchmark_files(files, "cpu", rounds=5)
    data = json.loads(json.dumps(dataclasses.asdict(result)))
    assert data["placements"][1]["operators"]["com.microsoft::QLinearConv"] == 1
    assert data["latency"][1]["file_bytes"] == files[1].stat().st_size
    assert data["machine"]["gpu"] is None or isinstance(data["machine"]["gpu"], str)


def test_files_of_one_name_are_told_apart_by_their_paths(files, tmp_path):
    (tmp_path / "other").mkdir()
    twin = write(integer_network(), tmp_path / "other" / "model.onnx")
    result = benchmark_files([*files, twin], "cpu", rounds=5)
    assert [p.file for p in result.placements] == ["float.onnx", str(files[1]), str(twin)]


def test_the_same_file_twice_is_refused(files):
    with pytest.raises(QdeployError, match="more than once"):
        benchmark_files([files[0], files[0]], "cpu")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"threads": 0}, "threads is 0"),
        ({"rounds": -1}, "rounds is -1"),
        ({"batch_sizes": (1, 0)}, "batch size is 0"),
        ({"batch_sizes": ()}, "batch size is 0"),
    ],
)
def test_counts_below_one_are_refused(files, counts, message):
    with pytest.raises(QdeployError, match=message):
        benchmark_files(files, "cpu", **counts)


def test_neither_room_imports_torch():
    program = "import sys, qdeploy.benchmark, qdeploy.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
