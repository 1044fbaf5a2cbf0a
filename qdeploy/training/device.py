"""Which device a run uses."""

import torch

from qdeploy.errors import QdeployError


def pick_device(name: str) -> torch.device:
    """The device for `auto` (CUDA where there is one, else CPU), `cpu` or `cuda`.

    Raises QdeployError for any other name, and for `cuda` where torch finds no CUDA device:
    a run never falls back silently.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise QdeployError(f"unknown device {name!r}; choose auto, cpu or cuda")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise QdeployError(
            f"device cuda was asked for, but torch {torch.__version__} finds no CUDA device; "
            "check the driver and that torch is a CUDA build, or choose cpu or auto"
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")
