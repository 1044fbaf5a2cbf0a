"""ONNX Runtime's kernels for x86 without VNNI: of this processor, or in QEMU's emulation of another.

Tests that ask for them are skipped where there is neither (on Debian: apt install qemu-user).
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qdeploy.benchmark.machine import saturates

QEMU = shutil.which("qemu-x86_64") if platform.machine() == "x86_64" else None
needs_kernels_without_vnni = pytest.mark.skipif(
    QEMU is None and not saturates(),
    reason="needs an x86 machine without VNNI, or with qemu-x86_64",
)

RUN = """
import sys
from pathlib import Path

import numpy as np
import onnxruntime

for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", sys.argv[2])
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = np.load(path.with_suffix(".npy"))
    (found,) = session.run(None, {session.get_inputs()[0].name: given})
    np.save(path.with_suffix(".found.npy"), found)
"""


def run_without_vnni(
    cases: dict[str, tuple[bytes, np.ndarray]], folder: Path, exact: bool = False
) -> dict[str, np.ndarray]:
    """The output of each model {name: (file, input)} with one input and one output.

    exact   with session.x64quantprecision = 1
    """
    for name, (file, given) in cases.items():
        (folder / f"{name}.onnx").write_bytes(file)
        np.save(folder / f"{name}.npy", given)
    emulator = [] if saturates() else [QEMU, "-cpu", "Haswell"]
    python = Path(sys.executable).resolve()
    paths = os.pathsep.join(filter(None, sys.path))
    subprocess.run(
        [*emulator, python, "-c", RUN, folder, str(int(exact))],
        check=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )
    return {name: np.load(folder / f"{name}.found.npy") for name in cases}
