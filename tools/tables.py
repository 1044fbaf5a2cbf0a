"""Writes the tables of README, qdeploy/models/ and docs/ from the files in results/: python tools/tables.py

Each table stands between `<!-- table: NAME -->` and `<!-- end -->`, each file between
`<!-- file: PATH -->` and `<!-- end -->`; nothing there is typed by hand.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accuracy
import runtime_table
import task_table
from rich.console import Console

from qdeploy.record import Record
from qdeploy.report.table import record_table

ROOT = Path(__file__).parent.parent
PAGES = (
    ROOT / "README.md",
    ROOT / "qdeploy/models/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
Rows = list[tuple[str, ...]]


def latency(results: dict[str, Any]) -> Rows:
    """Files as tools/latency.py timed them."""
    head = ("file", "bytes", "load ms", "p50 ms", "speed", "integer kernels")
    kernels = {placed["file"]: placed["operators"] or {} for placed in results["placements"]}
    rows: Rows = [head]
    for row in results["latency"]:
        numbers = (f"{row['file_bytes']:,}", f"{row['load_ms']:.0f}", f"{row['p50_ms']:.2f}")
        found = ", ".join(
            f"{n} {_short(op)}" for op, n in kernels[row["file"]].items() if "::Q" in op
        )
        rows.append((row["file"], *numbers, f"{row['speedup']:.2f}x", found or "none"))
    return rows


def calibration(results: list[dict[str, Any]]) -> Rows:
    """Top-1 as tools/compare_calibration.py measured it."""
    head = ("network", "weights", "float", "quantize_static", "ours", *_plain(results[0]))
    return [head, *(_calibrated(row) for row in results)]


def _plain(row: dict[str, Any]) -> list[str]:
    """What stands beside the default: the ranges alone, and what may be added."""
    return [
        name for name in row["top1"] if name not in ("float", "quantize_static", row["default"])
    ]


def _calibrated(row: dict[str, Any]) -> tuple[str, ...]:
    names = ("float", "quantize_static", row["default"], *_plain(row))
    network = f"{row['network']}, {row['data']}"
    return (network, f"{row['weight_bits']} bits", *(f"{row['top1'][n]:.2%}" for n in names))


def exactness(results: dict[str, Any]) -> Rows:
    """Codes that differ, as tools/exactness.py counted them."""
    rows: Rows = [
        ("network", "width", "codes", "tensors", "differ", "behind float operators", "logits")
    ]
    for row in results["files"].values():
        name = row["network"], row["width"]
        if "error" in row:
            rows.append((*name, f"refused: {row['error']}", "", "", "", ""))
            continue
        behind = "none"
        if row["behind_float"]:
            steps = f", by {row['behind_float_steps']}" if row["behind_float_steps"] else ""
            behind = f"{row['behind_float_differing']:,} of {row['behind_float']:,}{steps}"
        off = row["largest_logit_difference"]
        logits = "equal bit for bit" if off == 0 else f"{off:.1e} of {row['largest_logit']:.1f}"
        counted = f"{row['codes']:,}", str(row["tensors"]), f"{row['differing']:,}"
        rows.append((*name, *counted, behind, logits))
    return rows


def exactness_cost(results: dict[str, Any]) -> Rows:
    """What the check of prepare and exact integers cost, in CPU seconds."""
    rows: Rows = [("network", "prepare", "with its check", "ratio", "plain", "exact", "ratio")]
    for row in results["costs"].values():
        cells = []
        for before, after in (("prepare", "prepare_checked"), ("plain", "exact")):
            cells += [
                f"{row[before]:.2f} s",
                f"{row[after]:.2f} s",
                f"{row[after] / row[before]:.2f}x",
            ]
        rows.append((row["network"], *cells))
    return rows


def afterwards(results: dict[str, Any]) -> Rows:
    """What tools make of a finished file, as tools/afterwards.py measured it: sizes against the export's."""
    files = list(dict.fromkeys(row["file"] for row in results["rows"]))
    columns = (name for file in files for name in (file, "packed again"))
    rows: Rows = [("tool", *columns, "outputs", "integer kernels")]
    for tool in dict.fromkeys(row["tool"] for row in results["rows"]):
        found = [row for row in results["rows"] if row["tool"] == tool]
        failed = [row["error"] for row in found if "error" in row]
        if failed:
            reason = failed[0].partition(":")[0]
            rows.append((tool, *[""] * 2 * len(files), reason, ""))
            continue
        sizes = (cell for row in found for cell in _sizes(row))
        equal = all(row["bit_equal"] for row in found)
        kept = all(row["integer_behind"] == row["integer"] for row in found)
        counted = ", ".join(f"{row['integer_behind']} of {row['integer']}" for row in found)
        rows.append(
            (tool, *sizes, "equal bit for bit" if equal else "differ", "all" if kept else counted)
        )
    return rows


def _sizes(row: dict[str, Any]) -> tuple[str, str]:
    behind = f"{row['bytes_behind'] / row['bytes']:.2f}x"
    if "bytes_packed" not in row:
        return behind, "no ONNX file"
    if "pack_bit_equal" not in row:
        return behind, "still packed"
    same = row["pack_bit_equal"] and row["integer_packed"] == row["integer_behind"]
    return behind, f"{row['bytes_packed'] / row['bytes']:.2f}x" + ("" if same else ", others")


def reduced_range(results: list[dict[str, Any]]) -> Rows:
    """Top-1 and layers that may saturate, as tools/compare_reduce_range.py found them."""
    head = (
        "network",
        "SimQAT W8A8",
        "float",
        "8-bit codes",
        "may saturate",
        "7-bit codes",
        "may saturate",
    )
    return [
        head,
        *(
            (
                f"{row['network']}, {row['data']}",
                row["way"],
                f"{row['float']:.2%}",
                f"{row['8 bits']:.2%}",
                f"{row['8 bits saturate']} of {row['layers']} layers",
                f"{row['7 bits']:.2%}",
                f"{row['7 bits saturate']} of {row['layers']}",
            )
            for row in results
        ),
    ]


def _short(operator: str) -> str:
    return operator.rpartition("::")[2]


def inference(results: dict[str, Any]) -> Rows:
    """Contenders as tools/compare_inference.py measured them: float in ms, the others against it."""
    settings: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in results["latency"]:
        setting = (row["network"], row["batch"], row["threads"])
        settings.setdefault(setting, {})[row["contender"]] = row
    names = list(dict.fromkeys(row["contender"] for row in results["latency"]))
    head = ("network", "batch", "threads", f"{names[0]}, ms", *names[1:])
    return [
        head,
        *((*map(str, setting), *_speeds(names, rows)) for setting, rows in settings.items()),
    ]


def _speeds(names: list[str], rows: dict[str, Any]) -> Iterator[str]:
    yield f"{rows[names[0]]['p50_ms']:.2f}"
    for name in names[1:]:
        speed = rows[name]["speed"] if name in rows else None
        yield "not measured" if speed is None else f"{speed:.2f}x"


def training(results: dict[str, Any]) -> Rows:
    """Steps as tools/compare_training.py measured them, against float stored channels last."""
    head = ("network", "batch", "way", "step ms", "time", "memory")
    return [head, *(_step(row) for row in results["steps"] if "failure" not in row)]


def _step(row: dict[str, Any]) -> tuple[str, ...]:
    ratios = (f"{row['time']:.2f}x", f"{row['memory']:.2f}x")
    return (
        row["network"],
        str(row["batch"]),
        row["contender"],
        f"{row['step_ms']:.0f}",
        *ratios,
    )


def compiled(results: dict[str, Any]) -> Rows:
    """Steps under torch.compile as tools/compare_compiled.py measured them."""
    head = ("network", "batch", "way", "plain ms", "compiled ms", "speed")
    return [
        head,
        *(
            (
                row["network"],
                str(row["batch"]),
                row["way"],
                f"{row['plain_ms']:.0f}",
                f"{row['compiled_ms']:.0f}",
                f"{row['speed']:.2f}x",
            )
            for row in results["steps"]
            if "failure" not in row
        ),
    ]


def feeding(results: dict[str, Any]) -> Rows:
    """Loaders as tools/compare_feeding.py measured them."""
    head = ("images", "loader alone, images/s", "float training, images/s", "ratio")
    return [
        head,
        *(
            (
                row["data"],
                f"{row['loader_per_s']:,.0f}",
                f"{row['training_per_s']:,.1f}",
                f"{row['ratio']:.1f}x",
            )
            for row in results["loaders"]
        ),
    ]


def processes(results: dict[str, Any]) -> Rows:
    """An epoch by processes that share out each batch, as tools/compare_feeding.py measured it."""
    measured = results["processes"]
    head = ("processes", "s an epoch", "speed", "training loss of each epoch")
    alone = measured["epoch_seconds"]["1"]
    return [
        head,
        *(
            (
                count,
                f"{seconds:.1f}",
                f"{alone / seconds:.2f}x",
                ", ".join(f"{loss:.4f}" for loss in measured["train_loss"][count]),
            )
            for count, seconds in measured["epoch_seconds"].items()
        ),
    ]


def loading(results: dict[str, Any]) -> Rows:
    """Loads as tools/loading.py measured them, against that of the int8 file."""
    rows: Rows = [("network", "file", "MB", "load, ms", "to int8", "memory, MB", "to int8")]
    files = {(row["network"], row["file"]): row for row in results["files"]}
    for (network, name), row in files.items():
        int8 = files[network, "int8"]
        time, memory = (row[key] / int8[key] for key in ("load_ms", "peak_mb"))
        taken = f"{row['load_ms']:.0f}", f"{time:.2f}x", f"{row['peak_mb']:.0f}", f"{memory:.2f}x"
        rows.append((network, name, f"{row['bytes'] / 1e6:.2f}", *taken))
    return rows


def exports(results: dict[str, Any]) -> Rows:
    """What writing the files took, as tools/compare_inference.py measured it."""
    head = (
        "network",
        "export, s",
        "peak memory, MB",
        "float, MB",
        "int8, MB",
        "quantize_static, MB",
    )
    return [head, *(_exported(row) for row in results["files"])]


def _exported(row: dict[str, Any]) -> tuple[str, ...]:
    ours = row["made"]["int8_file"]
    names = ("float.onnx", "int8.onnx", "static.onnx")
    return (
        row["network"],
        f"{ours['seconds']['export']:.1f}",
        f"{ours['peak_mb']:,.0f}",
        *(f"{row['bytes'][name] / 1e6:.2f}" for name in names),
    )


def statistics(results: dict[str, Any]) -> Rows:
    """Top-1 by batches of calibration, as tools/compare_statistics.py measured it."""
    head = ("run", *(f"batches: {count}" for count in results["batches"]))
    return [
        head,
        *((row["run"], *(f"{top1:.2%}" for top1 in row["top1"])) for row in results["runs"]),
    ]


def gpu_latency(results: dict[str, Any]) -> Rows:
    """Files under each provider, as tools/gpu_checks.py timed them."""
    rows: Rows = [("provider", "batch", "file", "p50 ms", "speed")]
    for provider, measured in results["providers"].items():
        rows += [
            (
                provider,
                str(row["batch"]),
                row["file"],
                f"{row['p50_ms']:.2f}",
                f"{row['speedup']:.2f}x",
            )
            for row in measured["latency"]
        ]
    return rows


def gpu_steps(results: dict[str, Any]) -> Rows:
    """Training steps as tools/gpu_checks.py timed them, against float stored channels last."""
    head = ("network", "batch", "way", "step ms", "time", "memory of a step, MB")
    return [
        head,
        *(
            (
                row["network"],
                str(row["batch"]),
                row["way"],
                f"{row['step_ms']:.1f}",
                f"{row['time']:.2f}x",
                f"{row['peak_mb']:.0f}",
            )
            for row in results["steps"]
            if "failure" not in row
        ),
    ]


def gpu_codes(results: dict[str, Any]) -> Rows:
    """The share of codes that differ between two computers, as tools/gpu_checks.py counted it."""
    pairs = [name for name in results["networks"][0] if " / " in name]
    rows: Rows = [("network", *pairs)]
    for one in results["networks"]:
        shares = (one[pair]["differing"] / one[pair]["codes"] for pair in pairs)
        rows.append((f"{one['network']}, {one['given']}", *(f"{share:.2%}" for share in shares)))
    return rows


def demo(results: dict[str, Any]) -> str:
    """What `qdeploy export` printed for the demo, from its report.json."""
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(record_table(Record.from_json(json.dumps(results))))
    return "```text\n" + console.export_text() + "```"


def families(results: dict[str, Any]) -> Rows:
    """The smallest network of each family of timm, as tools/timm_families.py tried it."""
    head = ("family", "network", "parameters", "image", "integer products", "error")
    return [head, *(_family(row) for row in results.values())]


def _family(row: dict[str, Any]) -> tuple[str, ...]:
    figures = (f"{row['share']:.0%}", f"{row['error']:.1%}")
    if row["reason"]:
        figures = ("", row["reason"].replace("|", "/"))
    size = str(row["size"] or "")
    return (row["family"], row["network"], f"{row['parameters']:,}", size, *figures)


def families_in_all(results: dict[str, Any]) -> str:
    through = sum(not row["reason"] for row in results.values())
    return f"{through} of {len(results)} families go through."


def compatibility(results: dict[str, Any]) -> Rows:
    """Versions and the tests that ran with them, as tools/compatibility.py noted them."""
    shown = ("torch", "onnxruntime", "onnx", "numpy", "pydantic")
    rows: Rows = [("run", "Python", *shown, "tests", "passed", "failed", "skipped", "commit")]
    for name, row in results["tests"].items():
        packages = row["packages"]
        packages["onnxruntime"] = packages.get("onnxruntime") or packages["onnxruntime-gpu"]
        counts = (f"{row[ended]:,}" for ended in ("passed", "failed", "skipped"))
        versions = (packages[package] for package in shown)
        rows.append(
            (name, row["python"], *versions, row["chosen"] or "all", *counts, row["commit"])
        )
    return rows


def installs(results: dict[str, Any]) -> Rows:
    """What pip installed, as tools/compatibility.py weighed it."""
    rows: Rows = [("install", "MB", "packages", "heaviest, MB")]
    for name, row in results["installs"].items():
        heaviest = ", ".join(f"{one} {size / 1e6:.0f}" for one, size in row["heaviest"].items())
        weighed = f"{row['bytes'] / 1e6:,.0f}", str(row["packages"])
        rows.append((f"`{name}`", *weighed, heaviest))
    return rows


def litert(results: dict[str, Any]) -> Rows:
    """Codes of LiteRT that differ, as tools/litert_codes.py counted them."""
    rows: Rows = [("network", "width", "codes", "XNNPACK", "own kernels")]
    for row in results["rows"]:
        counts = (f"{row[kind]['differing'] / row['codes']:.2%}" for kind in ("XNNPACK", "own"))
        rows.append((row["network"], row["width"], f"{row['codes']:,}", *counts))
    return rows


TABLES: dict[str, tuple[str, Callable[[Any], Rows | str]]] = {
    "demo": ("results/demo.json", demo),
    "latency": ("results/latency.json", latency),
    "inference": ("results/inference.json", inference),
    "loading": ("results/loading.json", loading),
    "exports": ("results/inference.json", exports),
    "training": ("results/training.json", training),
    "compiled": ("results/compiled.json", compiled),
    "feeding": ("results/feeding.json", feeding),
    "processes": ("results/feeding.json", processes),
    "calibration": ("results/calibration.json", calibration),
    "exactness": ("results/exactness.json", exactness),
    "afterwards": ("results/afterwards.json", afterwards),
    "exactness-cost": ("results/exactness.json", exactness_cost),
    "reduce-range": ("results/reduce_range.json", reduced_range),
    "statistics": ("results/statistics.json", statistics),
    "timm": ("results/timm.json", families),
    "timm-in-all": ("results/timm.json", families_in_all),
    "compatibility": ("results/compatibility.json", compatibility),
    "installs": ("results/compatibility.json", installs),
    "litert": ("results/litert.json", litert),
    "gpu-latency": ("results/gpu/latency.json", gpu_latency),
    "gpu-steps": ("results/gpu/steps.json", gpu_steps),
    "gpu-codes": ("results/gpu/codes.json", gpu_codes),
}


LANGUAGES = {".py": "python", ".toml": "toml", ".mjs": "js", ".cpp": "cpp"}


def markdown(rows: Rows | str) -> str:
    if isinstance(rows, str):
        return rows
    head, *body = rows
    lines = ["| " + " | ".join(row) + " |" for row in [head, tuple("---" for _ in head), *body]]
    return "\n".join(lines)


def filled(text: str) -> str:
    """The text with every table and every quoted file made anew."""
    text = re.sub(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", _table, text, flags=re.DOTALL)
    return re.sub(r"(<!-- file: (\S+) -->\n).*?(<!-- end -->)", _file, text, flags=re.DOTALL)


def _table(place: re.Match[str]) -> str:
    return f"{place[1]}\n{markdown(rows_of(place[2]))}\n\n{place[3]}"


def rows_of(name: str) -> Rows | str:
    """`zoo`, `tasks`, `widths:PLAN`, `accuracy:PLAN`, `accuracy:PLAN:QUESTION`, `runtimes:TARGET`, or more.

    Others are those of TABLES.
    """
    if name == "zoo":
        return accuracy.of_zoo()
    if name == "tasks":
        return task_table.of_tasks()
    if name.startswith("widths:"):
        return accuracy.of_widths(name.partition(":")[2])
    if name.startswith("runtimes:"):
        rows, letters = runtime_table.of_target(name.partition(":")[2])
        return f"{markdown(rows)}\n\n{letters}."
    if name.startswith("accuracy:"):
        return accuracy.of_plan(*name.split(":")[1:])
    file, make = TABLES[name]
    return make(json.loads((ROOT / file).read_text()))


def _file(place: re.Match[str]) -> str:
    path = ROOT / place[2]
    language = LANGUAGES[path.suffix]
    return f"{place[1]}\n```{language}\n{path.read_text()}```\n\n{place[3]}"


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
