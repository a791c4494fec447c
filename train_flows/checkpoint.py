"""The folder of a run: its records, the state to resume from, and how both survive a stop at any moment."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from anode import CheckpointError, InputError
from anode.plain import fits
from anode.reading import read_bytes, read_json
from anode.storage import CONFIG, WEIGHTS, partial, read_config, write_atomically
from train_flows import sections
from train_flows.state import pack, unpack

METRICS = "metrics.jsonl"
RESULT = "result.json"
STATE = "state"
STATE_FILE = "state.safetensors"
POINTER = "latest"
TENSORBOARD = "tensorboard"
LARGEST_METRICS = 2**30  # bytes
LARGEST_POINTER = 2**12  # bytes
SAMPLES = "samples"  # pictures of what the model draws while it learns
OF_IMAGES = ("interpolations.png", "neighbours.png", "temperatures.png")
PICTURES = ("samples.png", "flow.gif", "curves.png", "features.png", "mistakes.png", *OF_IMAGES)
FILES = (WEIGHTS, METRICS, RESULT, *PICTURES, CONFIG)


class Run:
    """A run folder: ``config.json``, ``model.safetensors``, ``metrics.jsonl``, ``state/`` and pictures.

    ``state/`` holds a folder for each saved step and a pointer to the newest complete one; the pointer is replaced
    by renaming, so that a kill at any moment leaves a whole state behind. With it stands the digest of the records
    until then, so that altered ones are noticed. ``samples/`` holds pictures of a density of images while it learns;
    ``tensorboard/`` is for those who ask for it.

    Args:
        folder: where it lies.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @classmethod
    def create(cls, folder: str | Path, overwrite: bool = False) -> Run:
        """Make an empty run folder; what a kill left of a file that was being written does not count.

        Raises:
            InputError: when the folder has content, unless ``overwrite`` is set and it is a run. Then the files that a
                run writes are removed, and others in the folder left alone.
        """
        run = cls(folder)
        left = {partial(run.folder / name) for name in FILES}
        if run.folder.exists() and (not run.folder.is_dir() or set(run.folder.iterdir()) - left):
            if not overwrite:
                raise InputError(
                    f"{folder} exists: pass another --out, continue it with --resume {folder}, or replace it "
                    "with --overwrite"
                )
            run._remove()
        for path in left:
            path.unlink(missing_ok=True)
        run.folder.mkdir(parents=True, exist_ok=True)
        return run

    def _remove(self) -> None:
        try:
            ours = {"schema", "kind", "settings"} <= set(read_json(self.folder / CONFIG))
        except (OSError, ValueError, TypeError):
            ours = False
        if not ours:
            raise InputError(f"{self.folder} is not a run, so --overwrite leaves it alone: pass another --out")
        for name in (STATE, TENSORBOARD):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for path in (*(self.folder / name for name in FILES), *(self.folder / SAMPLES).glob("step-*.png")):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # of what is not ours
            (self.folder / SAMPLES).rmdir()

    def config(self, kind: str) -> dict[str, Any]:
        """The configuration of a run, whose model is of the given kind.

        Raises:
            CheckpointError: when the folder is something else, or damaged.
        """
        content = read_config(self.folder, kind)
        if "settings" not in content:
            raise CheckpointError(f"{self.folder} holds a model but no run: its settings and data are not known")
        return content | {"settings": _check_run(self.folder / CONFIG, kind, content)}

    def log(self, record: dict[str, Any]) -> None:
        """Append one record, a line of JSON, to ``metrics.jsonl``; it is on the disk before a state relies on it."""
        with (self.folder / METRICS).open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def records(self) -> list[dict[str, Any]]:
        """The records so far; a last line cut short by a kill is left out.

        Raises:
            CheckpointError: for any other line that is no record, and when records from before the newest state are
                not what they were.
        """
        return [record for _, record in self._lines()]

    def save_state(self, step: int, state: dict[str, Any]) -> None:
        """Keep the state of a step (tensors and plain values) to resume from, and drop the one before."""
        states = self.folder / STATE
        (states / str(step)).mkdir(parents=True, exist_ok=True)
        write_atomically(states / str(step) / STATE_FILE, pack(state))
        written = self._written()
        pointer = {"step": step, "bytes": len(written), "sha256": hashlib.sha256(written).hexdigest()}
        write_atomically(states / POINTER, json.dumps(pointer).encode())
        for old in states.iterdir():
            if old.is_dir() and old.name != str(step):
                shutil.rmtree(old)

    @property
    def step(self) -> int:
        """The step of the newest state, 0 before the first."""
        pointer = self._pointer()
        return 0 if pointer is None else pointer["step"]

    def load_state(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The newest state, or None before the first; records made after it are dropped. No code from it is executed.

        Raises:
            CheckpointError: when the state, or the records until then, are missing or damaged although the run has
                begun.
        """
        pointer = self._pointer()
        if pointer is None:
            if any(record["step"] > 0 for record in self.records()):
                raise CheckpointError(
                    f"{self.folder / STATE / POINTER} is missing although training has begun: restore it, or train anew"
                )
            self._keep_records(until=-1)
            return None
        path = self.folder / STATE / str(pointer["step"]) / STATE_FILE
        state = unpack(path, device)
        if state.get("step") != pointer["step"]:
            raise CheckpointError(f"{path} is of another step, {state.get('step')}: restore it, or train again")
        self._keep_records(until=pointer["step"])
        return state

    def _keep_records(self, until: int) -> None:
        kept = [line + b"\n" for line, record in self._lines() if record["step"] <= until]
        write_atomically(self.folder / METRICS, b"".join(kept))

    def _lines(self) -> list[tuple[bytes, dict[str, Any]]]:
        """The lines of ``metrics.jsonl`` and what they record."""
        content, pointer = self._written(), self._pointer()
        if pointer is not None:
            until = content[: pointer["bytes"]]
            if len(until) < pointer["bytes"] or hashlib.sha256(until).hexdigest() != pointer["sha256"]:
                raise CheckpointError(f"{self.folder / METRICS} was cut or edited: restore it, or train again")
        *lines, last = content.split(b"\n")
        found = []
        for line in [*lines, *([last] if last else [])]:
            record = _record(line)
            if record is None and len(found) == len(lines):
                break
            if record is None:
                raise CheckpointError(
                    f"{self.folder / METRICS}: line {len(found) + 1} is no record: remove it, or restore the file"
                )
            found.append((line, record))
        return found

    def _written(self) -> bytes:
        path = self.folder / METRICS
        return read_bytes(path, LARGEST_METRICS) if path.is_file() else b""

    def _pointer(self) -> dict[str, Any] | None:
        """Step of the newest state, and length and digest of the records until then; None before the first state."""
        path = self.folder / STATE / POINTER
        if not path.is_file():
            return None
        pointer = read_json(path, LARGEST_POINTER)
        types = {"step": int, "bytes": int, "sha256": str}
        if not isinstance(pointer, dict) or {name: type(value) for name, value in pointer.items()} != types:
            raise CheckpointError(f"{path} points to no state: restore it, or train again")
        return pointer


def columns_of(content: dict[str, Any], path: str | Path) -> tuple[str, ...]:
    """The names of the columns that a model was trained on, by its configuration; none where they are not known.

    Raises:
        CheckpointError: when they are no names.
    """
    columns = content.get("columns", [])
    if not fits(columns, list[str]):
        raise CheckpointError(f"{path} holds columns without names: restore it or train again")
    return tuple(columns)


def classes_of(content: dict[str, Any], path: str | Path) -> tuple[str, ...]:
    """The names of the classes that a density is given, by its configuration; none for one of samples alone.

    Raises:
        InputError: when it is given something else.
        CheckpointError: when they are no names, or not as many as the model takes.
    """
    context, names = content["model"].get("context", 0), content.get("classes") or []
    if context and not names:
        raise InputError(f"{path} is a density given {context} numbers that are no classes: use it by cnf.load")
    if not fits(names, list[str]) or len(names) != context:
        raise CheckpointError(f"{path} holds other classes than its model takes: restore it or train again")
    return tuple(names)


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None for a line that is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


def _check_run(path: Path, kind: str, content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of a run, by section.

    Raises:
        CheckpointError: where its configuration is of another form than runs have.
    """
    data = content.get("data")
    if not isinstance(data, dict) or not all(isinstance(data.get(name), str) for name in ("name", "sha256")):
        raise CheckpointError(f"{path} does not say what data the run is of: restore it or train again")
    if not fits(content.get("classes"), list[str] | None):
        raise CheckpointError(f"{path} holds classes without names: restore it or train again")
    columns_of(content, path)
    try:
        return sections.checked(kind, content["settings"])
    except ValueError as error:
        raise CheckpointError(f"{path} does not say how the run was started, {error}: train again") from error
