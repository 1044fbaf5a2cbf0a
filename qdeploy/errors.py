"""The one error that qdeploy raises on purpose, and the hint that it may give."""

import difflib
from collections.abc import Callable, Iterable


class QdeployError(Exception):
    """Something the user can mend: says what was given, what is allowed, what to do.

    The command line prints the message and exits with 1. Any other exception is a bug of
    qdeploy and keeps its traceback.
    """


def did_you_mean(name: str, names: Iterable[str], written: Callable[[str], str] = str) -> str:
    """' Did you mean X?' for the nearest of `names`, formatted by `written`; '' if none is near."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {written(near[0])}?" if near else ""
