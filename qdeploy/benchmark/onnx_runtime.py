"""ONNX Runtime, imported when it is first needed: which build of it there is, is the user's choice.

The builds (onnxruntime, onnxruntime-gpu, onnxruntime-directml and others) are packages of their own
with the same files in the same folder, so pip cannot be told that any one of them will do.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import warnings
from typing import Any

from qdeploy.errors import QdeployError

WITH_GPU = 'pip install "qdeploy[gpu]"'
CHOICE = (
    f'pip install "qdeploy[cpu]", or with an NVIDIA GPU {WITH_GPU}. '
    "Any other build of ONNX Runtime does as well, such as onnxruntime-directml or "
    "onnxruntime-openvino"
)


@functools.cache
def onnx_runtime() -> Any:
    """The module onnxruntime, its telemetry turned off; a warning where builds overwrote each other.

    Errors: QdeployError if there is none, or if what there is cannot be loaded.
    """
    # Since 1.29 builds for Linux and macOS send telemetry as well, from their first moment.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise _unusable(str(error)) from error
    if not hasattr(onnxruntime, "InferenceSession"):  # files that a build left behind
        raise _unusable("some of its files are missing")
    onnxruntime.disable_telemetry_events()
    if len(builds()) > 1:
        warnings.warn(f"{mixed(builds())}.", stacklevel=2)
    return onnxruntime


def builds() -> tuple[str, ...]:
    """The builds of ONNX Runtime in the folder that is imported, by their names on PyPI."""
    folders: dict[str, set[str]] = {}
    for package in importlib.metadata.distributions():
        # pip's own list: since Python 3.13 `package.files` leaves out what is no longer there.
        installed = package.read_text("RECORD") or ""
        if (package.name or "").startswith(("onnxruntime", "ort")) and (
            "onnxruntime/__init__.py," in installed
        ):
            folders.setdefault(str(package.locate_file("")), set()).add(package.name)
    return tuple(sorted(next(iter(folders.values()), ())))


def mixed(names: tuple[str, ...]) -> str:
    """That several builds share a folder, and the two commands that leave one."""
    return (
        f"{' and '.join(names)} are installed at once and have overwritten each other's files. "
        f"Leave one of them: {instead_of(names)}"
    )


def instead_of(names: tuple[str, ...], choice: str = CHOICE) -> str:
    """The commands that put a build in the place of these."""
    return f"pip uninstall -y {' '.join(names)}, and then {choice}" if names else choice


def _unusable(reason: str) -> QdeployError:
    names = builds()
    if not names:
        return QdeployError(f"this needs ONNX Runtime, which is not installed: {CHOICE}.")
    way_out = mixed(names) if len(names) > 1 else f"Install it anew: {instead_of(names)}"
    return QdeployError(f"ONNX Runtime cannot be loaded ({reason}). {way_out}.")
