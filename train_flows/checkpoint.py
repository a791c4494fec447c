"""The folder of a run: its records, the state to resume from, and how both survive a stop at any moment."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from anode import InputError
from anode.storage import CONFIG, WEIGHTS, read_config, write_atomically

METRICS = "metrics.jsonl"
RESULT = "result.json"
STATE = "state"
POINTER = "latest"
TENSORBOARD = "tensorboard"
PICTURES = ("samples.png", "flow.gif", "curves.png", "features.png", "mistakes.png")


class Run:
    """A run folder: ``config.json``, ``model.safetensors``, ``metrics.jsonl``, ``state/`` and pictures.

    ``state/`` holds a folder for each saved step and a pointer to the newest complete one; the pointer is replaced
    by renaming, so that a kill at any moment leaves a whole state behind. ``tensorboard/`` is for those who ask for it.

    Args:
        folder: where it lies.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @classmethod
    def create(cls, folder: str | Path, overwrite: bool = False) -> Run:
        """Make an empty run folder.

        Raises:
            InputError: when the folder has content, unless ``overwrite`` is set and it is a run. Then the files that a
                run writes are removed, and others in the folder left alone.
        """
        run = cls(folder)
        if run.folder.exists() and (not run.folder.is_dir() or any(run.folder.iterdir())):
            if not overwrite:
                raise InputError(
                    f"{folder} exists: pass another --out, continue it with --resume {folder}, or replace it "
                    "with --overwrite"
                )
            run._remove()
        run.folder.mkdir(parents=True, exist_ok=True)
        return run

    def _remove(self) -> None:
        try:
            ours = {"schema", "kind", "settings"} <= set(json.loads((self.folder / CONFIG).read_bytes()))
        except (OSError, ValueError, TypeError):
            ours = False
        if not ours:
            raise InputError(f"{self.folder} is not a run, so --overwrite leaves it alone: pass another --out")
        for name in (STATE, TENSORBOARD):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in (WEIGHTS, METRICS, RESULT, *PICTURES, CONFIG):
            (self.folder / name).unlink(missing_ok=True)

    def config(self, kind: str) -> dict[str, Any]:
        """The configuration of a run, whose model is of the given kind.

        Raises:
            InputError: when the folder is something else.
        """
        content = read_config(self.folder, kind)
        if "settings" not in content:
            raise InputError(f"{self.folder} holds a model but no run: its settings and data are not known")
        return content

    def log(self, record: dict[str, Any]) -> None:
        """Append one record, a line of JSON, to ``metrics.jsonl``."""
        with (self.folder / METRICS).open("a") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """The records so far; a last line cut short by a kill is left out."""
        path = self.folder / METRICS
        records = []
        for line in path.read_text().splitlines() if path.is_file() else []:
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return records

    def save_state(self, step: int, state: dict[str, Any]) -> None:
        """Keep the state of a step (tensors and plain values) to resume from, and drop the one before."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        states = self.folder / STATE
        (states / str(step)).mkdir(parents=True, exist_ok=True)
        write_atomically(states / str(step) / "state.pt", buffer.getvalue())
        write_atomically(states / POINTER, str(step).encode())
        for old in states.iterdir():
            if old.is_dir() and old.name != str(step):
                shutil.rmtree(old)

    def load_state(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The newest state, or None before the first; records made after it are dropped.

        Raises:
            InputError: when the state is missing or damaged although the run has begun.
        """
        pointer = self.folder / STATE / POINTER
        if not pointer.is_file():
            self._keep_records(until=-1)
            return None
        path = self.folder / STATE / pointer.read_text() / "state.pt"
        try:
            state = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # torch and zipfile raise many kinds
            raise InputError(f"{path} is missing or damaged ({str(error).splitlines()[0]}): train again") from error
        self._keep_records(until=state["step"])
        return state

    def _keep_records(self, until: int) -> None:
        kept = [json.dumps(record) + "\n" for record in self.records() if record["step"] <= until]
        write_atomically(self.folder / METRICS, "".join(kept).encode())
