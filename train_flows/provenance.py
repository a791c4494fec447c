"""Where a figure comes from: command line, machine and versions."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def device_name(device: torch.device) -> str:
    """What computes: the name of the GPU, or that of the processor and how many threads of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {platform.machine()}, threads: {torch.get_num_threads()}"


def provenance() -> dict[str, Any]:
    """Command line, machine and versions, for files of results."""
    packages = ("augmented-flows", "torch", "torchdiffeq", "numpy")
    return {
        "command": shlex.join(["train-flows", *map(_shown, sys.argv[1:])]),
        "machine": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def _shown(argument: str) -> str:
    """An argument as it was typed, but of a place on this machine the name alone."""
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{Path(value).name}" if Path(value).is_absolute() else argument
