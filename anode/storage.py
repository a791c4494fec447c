"""A model on disk: ``config.json`` (plain values) and ``model.safetensors``; loading runs no code from either.

Both files carry SHA-256 digests. The header of the weights file holds its own digest and that of the configuration it
belongs to, so that renaming one file replaces weights and digests together. Digests detect damage, not forgery. A
model is therefore built without memory first, and gets memory once its weights are known to be the stored ones.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from anode.errors import CheckpointError, InputError

M = TypeVar("M", bound=nn.Module)

SCHEMA = 2
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MAX_JSON_BYTES = 2**24
MAX_WEIGHTS_BYTES = 2**34
REAL_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def save_model(
    folder: str | Path, kind: str, model: nn.Module, arguments: Mapping[str, Any] | None, **notes: Any
) -> None:
    """Store a model with the plain values that rebuild it.

    Args:
        folder: created when missing; the two files are replaced.
        kind: kind of the model, such as ``"density"``.
        model: the model.
        arguments: arguments of its constructor; None for a model composed by hand.
        notes: further plain values for ``config.json``.
    """
    write_config(folder, kind, arguments, **notes)
    write_weights(folder, model.state_dict())


def load_model(folder: str | Path, kind: str, build: Callable[..., M], device: torch.device | str | None = None) -> M:
    """Rebuild a stored model in evaluation mode, in no more memory than its file takes.

    Args:
        folder: a folder written by :func:`save_model`, or a run.
        kind: the kind that the model must be.
        build: its constructor.
        device: the CPU when omitted.

    Raises:
        CheckpointError: if the folder is missing, damaged, or holds something else.
        InputError: if the device cannot be used.
    """
    device = check_device(device or "cpu")
    config = read_config(folder, kind)
    weights = read_weights(folder, config)
    try:
        dtypes = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point() or tensor.is_complex()}
        if len(dtypes) != 1 or not dtypes <= set(REAL_TYPES):
            raise ValueError("the weights do not have one type of real numbers")
        with torch.device("meta"):
            model = build(**config["model"]).to(dtypes.pop())
        _check_same_tensors(model.state_dict(), weights)
    except Exception as error:  # a crafted value can raise any exception
        raise CheckpointError(f"{folder} does not describe a {kind} model ({error}); restore it") from error
    model.to_empty(device=device).load_state_dict(weights)
    return model.eval()


def check_device(device: torch.device | str) -> torch.device:
    """Return a device, or raise an :class:`InputError` if it cannot be used here."""
    try:
        found = torch.device(device)
        torch.zeros(1).to(found).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:100]
        reason = "unknown type" if reason.startswith("Expected one of") else reason  # a long list follows
        raise InputError(f"device={str(device)!r} cannot be used here ({reason}): pass another one, or cpu") from error
    return found


def write_config(folder: str | Path, kind: str, arguments: Mapping[str, Any] | None, **notes: Any) -> None:
    """Write ``config.json``; the arguments are those of :func:`save_model`."""
    if arguments is None:
        raise InputError("a model composed by hand cannot be rebuilt from plain values: keep its state_dict() instead")
    folder = Path(folder)
    content = {"schema": SCHEMA, "kind": kind, "model": dict(arguments), **notes}
    try:
        content["sha256"] = _digest(content)
    except ValueError as error:
        raise InputError(f"config.json cannot hold a number that is not finite ({error}): pass finite ones") from error
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_FILE, content)


def read_config(folder: str | Path, *kinds: str) -> dict[str, Any]:
    """Read and check the ``config.json`` of a model of one of the kinds, or of any kind if none is named."""
    path, kind = Path(folder) / CONFIG_FILE, " or ".join(kinds) or "stored"
    if not path.is_file():
        raise CheckpointError(f"{folder} is not the folder of a {kind} model: it does not have {CONFIG_FILE}")
    content = read_json(path)
    if not isinstance(content, dict) or not {"schema", "kind", "sha256"} <= set(content):
        raise CheckpointError(f"{path} was written by another program: pass the folder of a {kind} model")
    if content["schema"] != SCHEMA:
        remedy = "Train again, or install the version that wrote it" + " (0.1)" * (content["schema"] == 1)
        raise CheckpointError(f"{path} has schema {content['schema']}; this version reads schema {SCHEMA}. {remedy}")
    try:
        digest = _digest({name: value for name, value in content.items() if name != "sha256"})
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a valid configuration ({error}); restore it") from error
    if content["sha256"] != digest:
        raise CheckpointError(f"{path} was edited: its digest does not match; restore it or train again")
    if kinds and content["kind"] not in kinds:
        raise CheckpointError(f"{folder} holds a {content['kind']} model, not a {kind} model")
    return content


def write_weights(folder: str | Path, state: Mapping[str, Tensor]) -> None:
    """Write the state dict of a model to ``model.safetensors``, next to the ``config.json`` that it belongs to."""
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    header = {"sha256": _digest_tensors(tensors), "config_sha256": read_json(folder / CONFIG_FILE)["sha256"]}
    write_atomically(folder / WEIGHTS_FILE, safetensors.torch.save(tensors, header))


def load_weights(folder: str | Path, model: nn.Module) -> None:
    """Read the weights of ``model`` from a folder; those of another model are a :class:`CheckpointError`."""
    weights = read_weights(folder)
    try:
        _check_same_tensors(model.state_dict(), weights)
    except ValueError as error:
        raise CheckpointError(f"{folder} holds the weights of another model ({error}); restore it") from error
    model.load_state_dict(weights)


def read_weights(folder: str | Path, config: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """Read and check the state dict in ``model.safetensors``; ``config.json`` is read, too, unless it is given."""
    path, config = Path(folder) / WEIGHTS_FILE, config or read_config(folder)
    _check_size(path, MAX_WEIGHTS_BYTES)
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:  # checks that offsets are in the file
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            header = file.metadata() or {}
        digest = _digest_tensors(tensors)
    except Exception as error:  # safetensors and torch raise many kinds
        raise CheckpointError(f"{path} is truncated or not a safetensors file ({error}); restore it") from error
    if "config_sha256" not in header:
        raise CheckpointError(f"{path} does not have a digest: another program wrote it; restore it or train again")
    if header["config_sha256"] != config["sha256"]:
        raise CheckpointError(f"{path} belongs to another {CONFIG_FILE} than {folder} holds; restore both")
    if header.get("sha256") != digest:
        raise CheckpointError(f"{path} is damaged: its digest does not match; restore it or train again")
    return tensors


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file of at most ``limit`` bytes."""
    _check_size(path, limit)
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is truncated or not JSON ({error}); restore it or train again") from error


def write_json(path: Path, content: Any) -> None:
    """Write plain values as a JSON file, atomically; a number that is not finite is a ValueError."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file at once; see :func:`written_atomically`."""
    with written_atomically(path) as file:
        file.write(data)


@contextmanager
def written_atomically(path: Path) -> Generator[BinaryIO]:
    """Yield a file that is flushed to the disk and takes the name ``path`` at the end; an error leaves the old one."""
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Return the name of a file while it is written; a kill can leave it behind."""
    return path.with_name(f".{path.name}.partial")


def _digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and content of tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _check_size(path: Path, limit: int) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: restore it or train again")
    size = path.stat().st_size
    if size > limit:
        raise CheckpointError(f"{path} has {size:,} bytes, and at most {limit:,} are read: it is a different file")


def _check_same_tensors(wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Raise a ValueError unless names, shapes and types agree."""
    both = [{name: f"{tuple(x.shape)} of {x.dtype}" for name, x in tensors.items()} for tensors in (wanted, stored)]
    for name in (*wanted, *stored):
        own, other = (described.get(name, "missing") for described in both)
        if own != other:
            raise ValueError(f"{name} is {other}, in the model {own}")
