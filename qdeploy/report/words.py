"""Numbers as a reader wants them; None is always "not measured"."""

import math

from qdeploy.record import Figures
from qdeploy.scores import Score

NOT_MEASURED = "not measured"


def percent(share: float | None) -> str:
    """A fraction of 1, as "98.94 %"."""
    return NOT_MEASURED if share is None else f"{100 * share:.2f} %"


def capitalized(words: str) -> str:
    """As a heading: the first letter alone, so that mIoU and R2 stay what they are."""
    return words[:1].upper() + words[1:] if words[:2].islower() else words


def figure(score: Score, figures: Figures | None) -> str:
    """One form's figure of a score, as "98.94 %" or "31.4 dB"."""
    value = None if figures is None else figures.get(score.name)
    return NOT_MEASURED if value is None else score.text(value)


def decibel(ratio: float | None) -> str:
    """A signal-to-noise ratio, as "54.2 dB"; of equal values it is infinite."""
    if ratio is None:
        return NOT_MEASURED
    return "equal" if math.isinf(ratio) else f"{significant(ratio)} dB"


def size(count: int | None) -> str:
    """Bytes in decimal units, as "60.1 kB"."""
    if count is None:
        return NOT_MEASURED
    return f"{count} bytes" if count < 1000 else _scaled(count, ("kB", "MB", "GB"))


def quantity(count: int) -> str:
    """A large number, as "158 M"."""
    return str(count) if count < 1000 else _scaled(count, ("k", "M", "G", "T"))


def _scaled(count: int, units: tuple[str, ...]) -> str:
    power = min(int(math.log10(count)) // 3, len(units))
    return f"{significant(count / 1000**power)} {units[power - 1]}"


def milliseconds(time: float | None) -> str:
    """Milliseconds to three digits, as "12.5 ms"."""
    return NOT_MEASURED if time is None else f"{significant(time)} ms"


def duration(seconds: float) -> str:
    """A time span in its largest fitting unit, as "0.381 s", "12.5 min" or "3.20 h"."""
    if seconds < 60:
        return f"{significant(seconds)} s"
    if seconds < 3600:
        return f"{significant(seconds / 60)} min"
    return f"{significant(seconds / 3600)} h"


def significant(value: float) -> str:
    """Three significant digits, whole numbers from 100 on: "0.0124", "12.5", "11,532"."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def exact(value: float | None) -> str:
    """A number with all its digits, as "0.25" or "1,572,864"."""
    return NOT_MEASURED if value is None else f"{value:,.10g}"


def times(ratio: float) -> str:
    """A ratio, as "28.4x"."""
    return f"{significant(ratio)}x"


def bits(count: int | None) -> str:
    """Bits of a layer that may be left in float."""
    return "float" if count is None else f"{count} bit"


def kernels(counts: dict[str, int]) -> str:
    """{kernel: count} as "20 QLinearConv, 1 QGemm"."""
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def plural(count: int, noun: str) -> str:
    """A count with its noun, as "1 thread" or "4 threads"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def provider(name: str) -> str:
    """ONNX Runtime's "CUDAExecutionProvider" as "CUDA"."""
    return name.removesuffix("ExecutionProvider")
