"""A model on disk: ``config.json`` (plain values) beside ``model.safetensors``; loading runs no code from either.

Both files carry SHA-256 digests. The digest of the weights, and that of the configuration they belong to, sit in the
header of the weights file itself, so that renaming one file replaces weights and digest together.
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

from anode.errors import InputError

M = TypeVar("M", bound=nn.Module)

SCHEMA = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def save_model(folder: str | Path, kind: str, model: nn.Module, config: Mapping[str, Any] | None, **notes: Any) -> None:
    """Store a model with the plain values that rebuild it.

    Args:
        folder: created when missing; the files of the two names are replaced.
        kind: what the model is, such as ``"density"``.
        model: the model.
        config: arguments of its constructor.
        notes: further plain values for ``config.json``.

    Raises:
        InputError: when ``config`` is None: the model was composed by hand.
    """
    if config is None:
        raise InputError("a model composed by hand cannot be rebuilt from plain values: keep its state_dict() instead")
    write_config(folder, kind, {"model": config, **notes})
    write_weights(folder, model.state_dict())


def load_model(folder: str | Path, kind: str, build: Callable[..., M], device: torch.device | str | None = None) -> M:
    """Rebuild a stored model, in evaluation mode; no code from the files is executed.

    Args:
        folder: written by :func:`save_model`, or a run.
        kind: what the model must be.
        build: its constructor.
        device: where to put it; the CPU when omitted.

    Raises:
        InputError: when the folder is missing, damaged, or of something else.
    """
    config = read_config(folder, kind)
    weights = read_weights(folder, device)
    model = build(**config["model"])
    dtype = next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point())
    model.to(device=device, dtype=dtype).load_state_dict(weights)
    return model.eval()


def write_atomically(path: Path, data: bytes) -> None:
    """Write under a temporary name, flush to the disk and rename, so that ``path`` is whole at every moment."""
    with written_atomically(path) as file:
        file.write(data)


@contextmanager
def written_atomically(path: Path) -> Generator[BinaryIO]:
    """A file to write to piece by piece, as :func:`write_atomically` does at once; after an error nothing is left."""
    temporary = path.with_name(f".{path.name}.partial")
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


def write_config(folder: str | Path, kind: str, config: Mapping[str, Any]) -> None:
    """Write ``config.json``.

    Args:
        folder: created when missing.
        kind: what the folder holds, such as ``"density"``; checked by :func:`read_config`.
        config: plain values that rebuild the model.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"schema": SCHEMA, "kind": kind, **config}
    content["sha256"] = _digest_config(content)
    write_atomically(folder / CONFIG, (json.dumps(content, indent=2) + "\n").encode())


def read_config(folder: str | Path, *kinds: str) -> dict[str, Any]:
    """Read and check ``config.json`` of a model that is of one of the kinds.

    Raises:
        InputError: when the folder or file is missing, damaged, of another schema or holds another kind of model.
    """
    path, kind = Path(folder) / CONFIG, " or ".join(kinds)
    if not path.is_file():
        raise InputError(f"{folder} is not the folder of a {kind} model: it has no {CONFIG}")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is truncated or no JSON ({error}); restore it or train again") from error
    if not isinstance(content, dict) or not {"schema", "kind", "sha256"} <= set(content):
        raise InputError(f"{path} is of another program: pass the folder of a {kind} model")
    if content.pop("sha256") != _digest_config(content):
        raise InputError(f"{path} was edited: its digest does not match; restore it or train again")
    if content["schema"] != SCHEMA:
        raise InputError(
            f"{path} has schema {content['schema']}, this version reads {SCHEMA}: use the version it is of"
        )
    if content["kind"] not in kinds:
        raise InputError(f"{folder} holds a {content['kind']} model, not a {kind}")
    return content


def write_weights(folder: str | Path, state: Mapping[str, Tensor]) -> None:
    """Write ``model.safetensors`` beside the ``config.json`` it belongs to."""
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    config = json.loads((folder / CONFIG).read_bytes())
    header = {"sha256": _digest_tensors(tensors), "config_sha256": config["sha256"]}
    write_atomically(folder / WEIGHTS, safetensors.torch.save(tensors, header))


def read_weights(folder: str | Path, device: torch.device | str | None = None) -> dict[str, Tensor]:
    """Read and check ``model.safetensors``.

    Raises:
        InputError: when the file is missing, damaged, or belongs to another ``config.json``.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise InputError(f"{path} is missing: the folder holds no weights; restore it or train again")
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is truncated or not a safetensors file ({error}); restore it or train again"
        ) from error
    if header.get("sha256") != _digest_tensors(tensors):
        raise InputError(f"{path} is damaged: its digest does not match; restore it or train again")
    if header.get("config_sha256") != json.loads((Path(folder) / CONFIG).read_bytes())["sha256"]:
        raise InputError(f"{path} belongs to another {CONFIG} than the one beside it; restore the pair")
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _digest_config(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
