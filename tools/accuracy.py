"""Tables of accuracy, from the figures that tools/reproduce.py kept."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence

from plans import Figures, Plan, is_whole, plans

from qdeploy.recipe import Recipe, zoo_recipes, zoo_summary

Rows = list[tuple[str, ...]]
HEAD = (
    "row", "seeds", "bits", "epochs", "float", "trained", "ONNX", "drop", "agreement", "bytes",
    "smaller than float",
)  # fmt: skip
OF_A_WIDTH = ("bits", "row", "seeds", "ONNX", "drop", "agreement", "bytes", "smaller than float")
PUBLISHED = re.compile(r"published ([\d.]+)")


def of_plan(name: str, about: str | None = None) -> Rows:
    """The rows of a plan that answer one question; without one, the others and the best of each.

    The best is sought among the rows of the most seeds.
    """
    plan = Plan.load(name)
    measured = by_row(plan.figures())
    baseline = measured.get(plan.baseline, [])
    rows = asked(plan, measured, about)
    if about is None:
        questions = dict.fromkeys(row.about for row in plan.rows.values() if row.about)
        answers = (asked(plan, measured, question) for question in questions)
        rows += [max(found, key=lambda row: standing(measured[row])) for found in answers if found]
    return [
        HEAD,
        *(_row(row, measured, baseline, plan.rows[row].starts_from) for row in rows),
    ]


def of_widths(name: str) -> Rows:
    """Of each width the best row of a plan, sought as `of_plan` does, widest first."""
    plan = Plan.load(name)
    measured = by_row(plan.figures())
    baseline = measured.get(plan.baseline, [])
    by_width = {
        widths(measured[row][0]): row
        for row in sorted(measured, key=lambda row: standing(measured[row]))
    }
    best = sorted(by_width.values(), key=lambda row: breadth(measured[row][0]), reverse=True)
    rows = (_row(row, measured, baseline, plan.rows[row].starts_from) for row in best)
    return [OF_A_WIDTH, *(tuple(cells[HEAD.index(name)] for name in OF_A_WIDTH) for cells in rows)]


def asked(plan: Plan, measured: Mapping[str, Sequence[Figures]], about: str | None) -> list[str]:
    return [name for name, row in plan.rows.items() if row.about == about and name in measured]


def standing(figures: Sequence[Figures]) -> tuple[int, float]:
    """The number of seeds, then the mean top-1 of their files."""
    return len(figures), statistics.mean(top1(figures, "onnx"))


def by_row(figures: Iterable[Figures]) -> dict[str, list[Figures]]:
    """{row: its figures, one of each seed}."""
    found: dict[str, list[Figures]] = {}
    for one in figures:
        found.setdefault(one["row"], []).append(one)
    return found


def _row(
    name: str,
    measured: Mapping[str, Sequence[Figures]],
    baseline: Sequence[Figures],
    start: str | None,
) -> tuple[str, ...]:
    figures = measured[name]
    size, own = figures[0]["size"], figures[0]["epochs"]
    return (
        name,
        str(len(figures)),
        widths(figures[0]),
        f"{measured[start][0]['epochs']} + {own}" if start else str(own),
        spread(top1(of_seeds(baseline, figures), "onnx")),
        *(spread(top1(figures, which)) for which in ("trained", "onnx")),
        spread(drops(figures, baseline), "+.2f", " points"),
        spread([shared(one["agreement"]) for one in figures if one["agreement"]]),
        f"{size['onnx']:,}",
        f"{size['float'] / size['onnx']:.1f}x",
    )


def shared(agreement: Figures) -> float:
    """The share of images in the same class, as this version calls it or an older one."""
    return float(agreement["share"] if "share" in agreement else agreement["top1"])


def widths(figures: Figures) -> str:
    return bits(figures["method"], *figures["bits"])


def breadth(figures: Figures) -> tuple[float, ...]:
    """Ascends from 1 bit to float."""
    if figures["method"] == "float":
        return math.inf, math.inf
    weights, acts = figures["bits"]
    return weights, math.inf if acts is None else acts


def bits(method: str, weights: int, acts: int | None) -> str:
    """W2A8, or "float"."""
    return "float" if method == "float" else f"W{weights}A{acts or 'float'}"


def top1(figures: Iterable[Figures], which: str) -> list[float]:
    found = (one["accuracy"][which] for one in figures)
    return [accuracy["top1"] for accuracy in found if accuracy is not None]


def drops(figures: Sequence[Figures], baseline: Sequence[Figures]) -> list[float]:
    """Points of top-1 that each seed's file loses against the baseline of its seed."""
    known = of_seeds(figures, baseline)
    pairs = zip(top1(of_seeds(baseline, known), "onnx"), top1(known, "onnx"), strict=True)
    return [100 * (whole - own) for whole, own in pairs]


def of_seeds(figures: Iterable[Figures], others: Iterable[Figures]) -> list[Figures]:
    """Those of the seeds that the others have too, in the order of the seeds."""
    seeds = {one["seed"] for one in others}
    return sorted((one for one in figures if one["seed"] in seeds), key=lambda one: one["seed"])


def spread(values: Sequence[float], form: str = ".2%", unit: str = "") -> str:
    """Mean and standard deviation over the seeds."""
    if not values:
        return "not measured"
    mean = f"{statistics.mean(values):{form}}{unit}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):{form.lstrip('+')}}"


def of_zoo() -> Rows:
    """Every recipe: what was published, and what its whole run gave here.

    Drops are points of top-1 below the float recipe of the same network and data.
    """
    measured: dict[str, list[Figures]] = {}
    for one in (figures for name in plans() for figures in Plan.load(name).figures()):
        if is_whole(one):
            measured.setdefault(one["recipe"], []).append(one)
    head = ("recipe", "bits", "epochs", "published", "drop", "ours, ONNX", "drop", "seeds", "data")
    rows = (_recipe(name, measured) for name in zoo_recipes())
    return [(*head, "device", "date"), *rows]


def _recipe(name: str, measured: Mapping[str, Sequence[Figures]]) -> tuple[str, ...]:
    recipe = Recipe.load(name)
    quantize, figures = recipe.quantize, measured.get(name, [])
    float_recipe = "-".join((*name.split("-")[:2], "float"))
    own = bits(quantize.method, quantize.weight_bits, quantize.act_bits)
    known = (name, own, str(recipe.train.epochs), *_published(name, float_recipe))
    if not figures:
        return (*known, "not run", *[""] * 5)
    return (
        *known,
        spread(top1(figures, "onnx")),
        spread(drops(figures, measured.get(float_recipe, [])), "+.2f"),
        str(len(figures)),
        figures[0]["data"]["title"],
        figures[0]["device"],
        max(one["created"] for one in figures)[:10],
    )


def _published(name: str, float_recipe: str) -> tuple[str, str]:
    """Top-1 as the first line of a recipe names it, and how far it is below that of float."""
    own, whole = published(name), published(float_recipe)
    return (
        "" if own is None else f"{own:.2f}%",
        "" if own is None or whole is None else f"{whole - own:+.2f}",
    )


def published(name: str) -> float | None:
    found = PUBLISHED.search(zoo_summary(name)) if name in zoo_recipes() else None
    return float(found[1]) if found else None
