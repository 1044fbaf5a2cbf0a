"""The links of the proof, from the user's float network to the file, in words."""

from __future__ import annotations

from collections.abc import Iterator

from qdeploy.record import Agreement, Record
from qdeploy.report.words import NOT_MEASURED, decibel, figure, percent

Row = tuple[str, str, str]


def links(record: Record) -> Iterator[Row]:
    """Each link: what is compared, how, and what was found."""
    if record.method != "float":
        yield _prepared(record)
        yield _integers(record)
    yield _file(record)


def _prepared(record: Record) -> Row:
    found = {
        True: "Proven: equal to 1e-5 in evaluation, and in training where float trains on the batch.",
        False: "Not proven: prepare was told not to check.",
        None: NOT_MEASURED,
    }[record.checked]
    compared = "outputs, with weights and activations left unrounded"
    return "float network to prepared network", compared, found


def _integers(record: Record) -> Row:
    forms = record.accuracy.prepared, record.accuracy.trained
    prepared, trained = (figure(record.headline, form) for form in forms)
    found = f"Close: {prepared} and {trained}; biases are rounded to integers."
    return "prepared network to integers in PyTorch", f"{record.headline.title} of both", found


def _file(record: Record) -> Row:
    exactness, name = record.exactness, "integers in PyTorch to the file"
    if record.method == "float":
        name = "float network to the file"
    if exactness is None or not exactness.tensors:
        return name, *_outputs(record.agreement)
    verdict = "Not exact" if exactness.differing else "Proven"
    where = f"{exactness.samples:,} images on {record.machine.cpu}, {exactness.provider}"
    close = "; what float operators made is close, not proven" if exactness.behind_float else ""
    if record.sizes:
        where += f", at {', '.join(one.size for one in record.sizes)}"
    return name, f"every code, over {where}", f"{verdict}: {exactness}{close}."


def _outputs(found: Agreement | None) -> tuple[str, str]:
    """What of the outputs is compared, and how they agree."""
    if found is not None and found.share is None:
        return "every output", f"Close: {decibel(found.sqnr)} of outputs over their difference."
    decides = "image" if found is None else found.decides
    shared = NOT_MEASURED if found is None else percent(found.share)
    return f"the class of each {decides}", f"Close: {shared} the same."
