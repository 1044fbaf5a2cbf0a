"""The commands `qdeploy methods` and `qdeploy models`: what there is to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import cleandoc
from typing import TYPE_CHECKING

import click

from qdeploy.cli.options import reports_errors
from qdeploy.errors import QdeployError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from qdeploy.methods import Method


@click.command()
@click.argument("method", required=False)
@reports_errors
def methods(method: str | None) -> None:
    """List the quantization methods, or explain METHOD and its options."""
    from qdeploy.methods import available, find

    if method is not None:
        click.echo(explained(find(method)))
        return
    for name in available():
        try:
            found = find(name)
        except QdeployError as error:  # of another package; ours are listed all the same
            click.echo(f"{name:14} {error}", err=True)
            continue
        click.echo(f"{name:14} {found.summary}  [{widths(found)}]")


def explained(method: Method) -> str:
    """What it is, and its options as a recipe has them, in TOML with their defaults."""
    lines = [method.summary, method.paper, widths(method)]
    if fields := method.options.model_fields:
        lines += ["", "[quantize.options]", *(option(*item) for item in fields.items())]
        lines += ["", cleandoc(method.options.__doc__ or "")]
    return "\n".join(lines)


def option(name: str, field: FieldInfo) -> str:
    if field.is_required():
        return f"# {name}: has to be given"
    import tomli_w

    default = field.get_default(call_default_factory=True)
    return f"# {name}: not given" if default is None else tomli_w.dumps({name: default}).rstrip()


def widths(method: Method) -> str:
    weights, acts = spans(method.weight_bits), spans(method.act_bits)
    return f"bits of weights {weights}; of activations {acts} or float"


def spans(bits: Sequence[int]) -> str:
    """The numbers, those in a row as one span: 1-8, 16."""
    bits = sorted(set(bits))
    starts = [bit for bit in bits if bit - 1 not in bits]
    ends = [bit for bit in bits if bit + 1 not in bits]
    pairs = zip(starts, ends, strict=True)
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in pairs)


@click.command()
@reports_errors
def models() -> None:
    """List the networks and recipes of the zoo."""
    from qdeploy.models import NETWORKS
    from qdeploy.recipe import zoo_recipes, zoo_summary

    click.echo("networks: " + ", ".join(NETWORKS))
    for name in zoo_recipes():
        click.echo(f"{name:36} {zoo_summary(name)}")
