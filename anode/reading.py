"""Reading files that may be damaged or crafted: JSON and safetensors of a bounded size, from which no code is run."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from anode.errors import CheckpointError

LARGEST_JSON = 2**24  # bytes
LARGEST_TENSORS = 2**34  # bytes of a file of tensors

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_bytes(path: Path, largest: int) -> bytes:
    """The content of a file, which may be of so many bytes.

    Raises:
        CheckpointError: when it is larger.
    """
    _check_size(path, largest)
    return path.read_bytes()


def read_json(path: Path, largest: int = LARGEST_JSON) -> Any:
    """The content of a JSON file of a bounded size.

    Raises:
        CheckpointError: when it is larger, truncated, or no JSON.
    """
    content = read_bytes(path, largest)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is truncated or no JSON ({error}); restore it or train again") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and the texts of its header; their digests are for the caller to check.

    Raises:
        CheckpointError: when the file is missing, too large or damaged.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def describe_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The same by the header alone, of tensors on the ``meta`` device, which have no content.

    Raises:
        CheckpointError: as :func:`read_tensors`, and for types that torch cannot compute with.
    """
    with _opened(path) as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        unknown = [name for name, part in parts.items() if part.get_dtype() not in _TYPES]
        if unknown:
            raise CheckpointError(f"{path}: {unknown[0]} is of no type that weights have; restore it or train again")
        tensors = {
            name: torch.empty(part.get_shape(), dtype=_TYPES[part.get_dtype()], device="meta")
            for name, part in parts.items()
        }
        return tensors, file.metadata() or {}


@contextmanager
def _opened(path: Path) -> Generator[Any]:
    """A safetensors file, which is mapped, not read; the offsets in its header are checked to be within the file."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: restore it or train again")
    _check_size(path, LARGEST_TENSORS)
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except CheckpointError:
        raise
    except Exception as error:  # safetensors and torch raise many kinds
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({error}); restore it or train again"
        ) from error


def _check_size(path: Path, largest: int) -> None:
    size = path.stat().st_size
    if size > largest:
        raise CheckpointError(f"{path} is of {size:,} bytes, and at most {largest:,} are read: it is of something else")
