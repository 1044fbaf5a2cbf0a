"""The machine that numbers were measured on."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import onnxruntime as ort

from qdeploy.record import Machine


def this_machine() -> Machine:
    """Describes the machine that runs this process."""
    return Machine(
        cpu=_cpu(),
        cores=_cores(),
        gpu=_gpu(),
        system=platform.platform(terse=True),
        python=platform.python_version(),
        onnxruntime=ort.__version__,
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: a container may be given fewer than there are
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    names = answer.stdout.splitlines()
    return names[0] if answer.returncode == 0 and names else None
