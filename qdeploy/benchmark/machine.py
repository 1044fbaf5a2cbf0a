"""The machine that numbers were measured on."""

import functools
import os
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx.parser

from qdeploy.benchmark.onnx_runtime import onnx_runtime
from qdeploy.benchmark.providers import CPU, create
from qdeploy.record import Machine

# What integer kernels use, and what Linux calls it in /proc/cpuinfo.
INSTRUCTIONS = {
    "AVX2": {"avx2"},
    "AVX512": {"avx512bw"},
    "VNNI": {"avx512_vnni", "avx_vnni"},
    "AMX": {"amx_int8"},
    "NEON": {"asimd", "neon"},
    "dot products": {"asimddp"},
    "I8MM": {"i8mm"},
}

# 255 x 127 + 255 x 127 is 255 steps of 254, and 129 where it saturates at int16.
PAIR = """<ir_version: 10, opset_import: ["": 21]> pair (uint8[1, 2] x) => (uint8[1, 1] y)
    <float one = {1}, uint8 z = {0}, int8[2, 1] w = {127, 127}, int8 wz = {0}, float ys = {254}> {
    y = QLinearMatMul(x, one, z, w, one, wz, ys, z) }"""


def this_machine() -> Machine:
    """Describes the machine that runs this process."""
    return Machine(
        cpu=_cpu(),
        cores=_cores(),
        gpu=_gpu(),
        system=platform.platform(terse=True),
        python=platform.python_version(),
        onnxruntime=onnx_runtime().__version__,
        instructions=_instructions(),
        saturates=saturates(),
    )


@functools.cache
def saturates() -> bool:
    """Whether ONNX Runtime's integer kernels add pairs of products in int16 here.

    Found by running one, which holds for every system and processor.
    """
    session = create(onnx.parser.parse_model(PAIR).SerializeToString(), [CPU])
    (y,) = session.run(None, {"x": np.full((1, 2), 255, np.uint8)})
    return bool(y.item() < 255)


def _cpu() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _instructions() -> tuple[str, ...]:
    """Those of INSTRUCTIONS that the processor has, as far as the system says so."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    if platform.machine() in ("arm64", "ARM64"):  # macOS and Windows: every such processor has it
        flags.add("neon")
    return tuple(name for name, spellings in INSTRUCTIONS.items() if flags & spellings)


def _cpuinfo(field: str) -> str:
    """What Linux says of the first processor; "" elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    found = (line.partition(":")[2].strip() for line in lines if line.startswith(field))
    return next(found, "")


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
