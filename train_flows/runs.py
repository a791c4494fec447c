"""What the programs share about runs: the device, the stored configuration, and where a figure comes from."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from anode import InputError, storage
from cnf.models import KIND


def device(name: str) -> torch.device:
    """The device of a name; ``auto`` is a GPU where there is one.

    Raises:
        InputError: when there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used here ({reason}): pass --device cpu or auto") from error
    return chosen


def config(folder: str | Path) -> dict[str, Any]:
    """The configuration of a run of ``train-flows density``.

    Raises:
        InputError: when the folder is something else.
    """
    content = storage.read_config(folder, KIND)
    if "settings" not in content:
        raise InputError(f"{folder} holds a model but no run of train-flows density: pass the data set to use")
    return content


def provenance() -> dict[str, Any]:
    """Command line, machine and versions, for files of results."""
    packages = ("augmented-flows", "torch", "torchdiffeq", "numpy")
    return {
        "command": " ".join(["train-flows", *sys.argv[1:]]),
        "machine": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }
