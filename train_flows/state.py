"""The state of a training as one safetensors file: its tensors, and in the header everything else as JSON.

Reading it runs no code, as unpickling might. JSON knows neither tuples nor keys other than texts nor infinite numbers,
so whatever is not a plain value of it is written as a mapping of one entry, which names what it is:

    {"tensor": "0"}, {"float": "inf"}, {"tuple": [...]}, {"dict": [[key, value], ...]}
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from anode import CheckpointError
from anode.reading import read_tensors
from anode.storage import digest_tensors


def pack(state: Mapping[str, Any]) -> bytes:
    """The content of a file for a state of tensors, numbers, texts, None, and lists, tuples and mappings of these.

    Tensors that share memory are stored one by one.

    Raises:
        TypeError: for anything else.
    """
    structure, tensors = _flat(state)
    return safetensors.torch.save(tensors, {"structure": structure, "sha256": digest_parts(structure, tensors)})


def digest(state: Mapping[str, Any]) -> str:
    """The SHA-256 of a state, to tell whether two are the same."""
    return digest_parts(*_flat(state))


def digest_parts(structure: str, tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of the JSON and the tensors of a state."""
    return hashlib.sha256(f"{structure}\n{digest_tensors(tensors)}".encode()).hexdigest()


def unpack(path: Path, device: torch.device | str = "cpu") -> dict[Any, Any]:
    """The state in a file that :func:`pack` has made, with its tensors on a device.

    Raises:
        CheckpointError: when the file is missing or damaged.
    """
    tensors, header = read_tensors(path)
    structure = header.get("structure", "")
    if header.get("sha256") != digest_parts(structure, tensors):
        raise CheckpointError(f"{path} is damaged: its digest does not match; restore it or train again")
    try:
        state = _restored(json.loads(structure), {name: tensor.to(device) for name, tensor in tensors.items()})
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} holds no state ({error}): restore it or train again") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds no state: restore it or train again")
    return state


def _flat(state: Mapping[str, Any]) -> tuple[str, dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    return json.dumps(_plain(state, tensors), allow_nan=False), tensors


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON has it; its tensors are added to those there are."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[_plain(key, tensors), _plain(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_plain(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_plain(item, tensors) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a state holds no {type(value).__name__}: {value!r}")


def _restored(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that :func:`_plain` has written."""
    if isinstance(plain, list):
        return [_restored(item, tensors) for item in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float(content)
    items = [_restored(item, tensors) for item in content]
    return {"tuple": tuple, "dict": dict}[kind](items)
