"""A model on disk: ``config.json`` (plain values) beside ``model.safetensors``; loading runs no code from either.

Both files carry SHA-256 digests. The digest of the weights, and that of the configuration they belong to, sit in the
header of the weights file itself, so that renaming one file replaces weights and digest together. Digests tell of
damage, not of who wrote a file: see :mod:`anode.rebuilding` for what is asked of one besides.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from anode.errors import CheckpointError, InputError
from anode.reading import describe_tensors, read_json, read_tensors
from anode.rebuilding import check_alike, rebuild

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
        CheckpointError: when the folder is missing, damaged, or of something else.
    """
    config = read_config(folder, kind)
    described = _described(folder)
    try:
        model = rebuild(build, config.get("model"), described)
    except ValueError as error:
        raise CheckpointError(f"{folder} describes no {kind} model: {error}; restore it or train again") from error
    load_weights(folder, model.to_empty(device=device or "cpu"))
    return model.eval()


def write_atomically(path: Path, data: bytes) -> None:
    """Write under a temporary name, flush to the disk and rename, so that ``path`` is whole at every moment."""
    with written_atomically(path) as file:
        file.write(data)


@contextmanager
def written_atomically(path: Path) -> Generator[BinaryIO]:
    """A file to write to piece by piece, as :func:`write_atomically` does at once; after an error nothing is left."""
    temporary = partial(path)
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


def partial(path: Path) -> Path:
    """Where a file lies while it is written, and what a kill leaves of it."""
    return path.with_name(f".{path.name}.partial")


def write_config(folder: str | Path, kind: str, config: Mapping[str, Any]) -> None:
    """Write ``config.json``.

    Args:
        folder: created when missing.
        kind: what the folder holds, such as ``"density"``; checked by :func:`read_config`.
        config: plain values that rebuild the model.

    Raises:
        InputError: for numbers that are not finite, which JSON does not know.
    """
    folder = Path(folder)
    content = {"schema": SCHEMA, "kind": kind, **config}
    try:
        content["sha256"] = _digest_config(content)
    except ValueError as error:
        raise InputError(f"config holds a number that is not finite ({error}): pass finite ones") from error
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CONFIG, (json.dumps(content, indent=2) + "\n").encode())


def read_config(folder: str | Path, *kinds: str) -> dict[str, Any]:
    """Read and check ``config.json`` of a model that is of one of the kinds.

    Raises:
        CheckpointError: when the folder or file is missing, damaged, of another schema or of another kind of model.
    """
    path, kind = Path(folder) / CONFIG, " or ".join(kinds)
    if not path.is_file():
        raise CheckpointError(f"{folder} is not the folder of a {kind} model: it has no {CONFIG}")
    content = read_json(path)
    if not isinstance(content, dict) or not {"schema", "kind", "sha256"} <= set(content):
        raise CheckpointError(f"{path} is of another program: pass the folder of a {kind} model")
    if content.pop("sha256") != _digest_read(path, content):
        raise CheckpointError(f"{path} was edited: its digest does not match; restore it or train again")
    if content["schema"] != SCHEMA:
        raise CheckpointError(
            f"{path} has schema {content['schema']}, this version reads {SCHEMA}: use the version it is of"
        )
    if content["kind"] not in kinds:
        raise CheckpointError(f"{folder} holds a {content['kind']} model, not a {kind}")
    return content


def write_weights(folder: str | Path, state: Mapping[str, Tensor]) -> None:
    """Write ``model.safetensors`` beside the ``config.json`` it belongs to."""
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    config = json.loads((folder / CONFIG).read_bytes())
    header = {"sha256": digest_tensors(tensors), "config_sha256": config["sha256"]}
    write_atomically(folder / WEIGHTS, safetensors.torch.save(tensors, header))


def read_weights(folder: str | Path, device: torch.device | str | None = None) -> dict[str, Tensor]:
    """Read and check ``model.safetensors``.

    Raises:
        CheckpointError: when the file is missing, damaged, or belongs to another ``config.json``.
    """
    path = Path(folder) / WEIGHTS
    tensors, header = read_tensors(path)
    if header.get("sha256") != digest_tensors(tensors):
        raise CheckpointError(f"{path} is damaged: its digest does not match; restore it or train again")
    _check_pair(folder, header)
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def load_weights(folder: str | Path, model: nn.Module) -> None:
    """Give a model the weights of ``model.safetensors``, which have to be those of such a model.

    Raises:
        CheckpointError: as :func:`read_weights`, and when names, shapes or types differ.
    """
    described = _described(folder)
    try:
        check_alike(model.state_dict(), described)
    except ValueError as error:
        path = Path(folder) / WEIGHTS
        raise CheckpointError(f"{path} holds the weights of another model: {error}; restore it") from error
    model.load_state_dict(read_weights(folder))


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of names, types, shapes and content of tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _described(folder: str | Path) -> dict[str, Tensor]:
    """Names, shapes and types of the stored weights."""
    tensors, header = describe_tensors(Path(folder) / WEIGHTS)
    _check_pair(folder, header)
    return tensors


def _check_pair(folder: str | Path, header: Mapping[str, str]) -> None:
    path, config = Path(folder) / WEIGHTS, read_json(Path(folder) / CONFIG)
    if "config_sha256" not in header:
        raise CheckpointError(f"{path} has no digest: it is of another program; restore it or train again")
    if not isinstance(config, dict) or header["config_sha256"] != config.get("sha256"):
        raise CheckpointError(f"{path} belongs to another {CONFIG} than the one beside it; restore both")


def _digest_read(path: Path, content: Mapping[str, Any]) -> str:
    try:
        return _digest_config(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} holds what no configuration does ({error}); restore it") from error


def _digest_config(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
