"""The folder of a run: configuration, best weights, records, state and result, whole at every moment."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from anode import CheckpointError, InputError, storage
from train_flows.run import distributed

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS_FILE = "metrics.jsonl"
STATE_FILE = "state.pt"
FRAMES_FILE = "frames.npz"  # arrays of an animation of the training
RESULT_FILE = "result.json"
LONGER_FILE = "longer.json"  # settings that --resume has changed
SAMPLES_FOLDER = "samples"  # pictures of samples during training
TENSORBOARD_FOLDER = "tensorboard"
PICTURES = (
    *("samples.png", "marginals.png", "flow.gif", "curves.png", "features.png", "mistakes.png", "interpolations.png"),
    *("forecast.png", "plane.png", "states.png", "forecast.gif", "plane.gif"),
)
JSON_FILES = (RESULT_FILE, LONGER_FILE, METRICS_FILE)
FILES = (*PICTURES, "features.npz", FRAMES_FILE, *JSON_FILES, STATE_FILE, storage.WEIGHTS_FILE, storage.CONFIG_FILE)
DIGEST_BYTES = 64  # at the end of state.pt: the SHA-256 of all bytes before, in hexadecimal


class Run:
    """A run folder that can be resumed after a kill at any moment.

    ``config.json`` states how the run was started, ``model.safetensors`` holds its best weights, ``metrics.jsonl`` one
    record per line, ``state.pt`` the state to resume from, ``result.json`` the final figures. Files are written under a
    temporary name and renamed. A record is appended; it counts once a state was saved after it. Digests detect damage.
    Of several processes, only the first one writes.

    Attributes:
        folder: path of the folder.
        config: content of ``config.json``.
        tensorboard: write records for TensorBoard as well.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self.config = config
        self.tensorboard = False
        self._events: SummaryWriter | None = None

    @classmethod
    def create(
        cls,
        folder: str | Path,
        kind: str,
        settings: Mapping[str, Any],
        arguments: Mapping[str, Any] | None,
        data: Mapping[str, Any],
        overwrite: bool = False,
    ) -> Run:
        """Make a run folder, which is missing or empty, or with ``overwrite`` that of a run, whose files are removed.

        Args:
            folder: its path.
            kind: kind of the model, such as ``"density"``.
            settings: settings of the program, by section.
            arguments: plain values that rebuild the model.
            data: name, digest, notes, columns, classes.
            overwrite: replace an existing run.
        """
        path = Path(folder)

        def write() -> None:
            _clear(path, overwrite)
            storage.write_config(path, kind, arguments, settings=dict(settings), data=dict(data), **provenance())

        distributed.from_first(write)
        return cls.open(path, kind)

    @classmethod
    def open(cls, folder: str | Path, *kinds: str) -> Run:
        """Open the folder of a run with a model of one of the kinds."""
        config = storage.read_config(folder, *kinds)
        if not {"settings", "data"} <= set(config):
            raise CheckpointError(f"{folder} holds a model but not a run: its settings and data are unknown")
        run = cls(Path(folder), config)
        run._change(_read_signed(run.folder / LONGER_FILE, "restore it or train again") or {})
        return run

    @classmethod
    def temporary(cls) -> Run:
        """Return a run in a temporary folder, for a model of any kind; the folder is removed with the run."""
        folder = tempfile.TemporaryDirectory(prefix="train-flows-", ignore_cleanup_errors=True)
        storage.write_config(folder.name, "temporary", {}, settings={}, data={})
        run = cls.open(folder.name)
        weakref.finalize(run, folder.cleanup)
        return run

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the run was started with, or lengthened to, by section."""
        return self.config["settings"]

    def lengthen(self, changes: Mapping[str, Mapping[str, Any]]) -> None:
        """Change settings, by section, of a run that is trained further; it loses its result.

        They replace ``longer.json``, since the weights belong to ``config.json`` as it is.
        """

        def write() -> None:
            _write_signed(self.folder / LONGER_FILE, {section: dict(values) for section, values in changes.items()})
            (self.folder / RESULT_FILE).unlink(missing_ok=True)

        distributed.from_first(write)
        self._change(changes)

    def _change(self, changes: Mapping[str, Mapping[str, Any]]) -> None:
        for section, values in changes.items():
            self.config["settings"][section] = {**self.config["settings"].get(section, {}), **values}

    @property
    def step(self) -> int:
        """The step of the saved state; 0 before the first one."""
        saved = self._saved()
        return saved["step"] if saved else 0

    def log(self, record: dict[str, Any]) -> None:
        """Append a record to ``metrics.jsonl``; it is on the disk before a state refers to it."""
        if distributed.rank():
            return
        with (self.folder / METRICS_FILE).open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._events is not None:
            for name in set(record) - {"step"}:
                self._events.add_scalar(name, record[name], record["step"])
            self._events.flush()

    def records(self) -> list[dict[str, Any]]:
        """Return the records up to the saved state; without a state, all of them.

        Raises:
            CheckpointError: if they have changed since, or are damaged.
        """
        return self._records(self._saved())

    def save_state(self, step: int, state: Mapping[str, Any]) -> None:
        """Replace the state to resume from: tensors, plain values, and lists, tuples and dictionaries of them."""
        if distributed.rank():
            return
        metrics, buffer = self._metrics(), io.BytesIO()
        about = {"step": step, "metrics_bytes": len(metrics), "metrics_sha256": _sha256(metrics)}
        torch.save({**about, "state": dict(state)}, buffer)
        content = buffer.getvalue()
        storage.write_atomically(self.folder / STATE_FILE, content + _sha256(content).encode())

    def load_state(self) -> dict[str, Any] | None:
        """Return the saved state, on the CPU, and drop later records; None before the first state.

        Raises:
            CheckpointError: if state or records are damaged, or the state is missing although training has begun.
        """
        saved = self._saved()
        if len(self._records(saved)) > 1 and saved is None:  # a kill before the first state leaves one record
            raise CheckpointError(
                f"{self.folder / STATE_FILE} is missing although training has begun: restore it or train again"
            )
        kept = saved["metrics_bytes"] if saved else 0
        if len(metrics := self._metrics()) > kept:
            storage.write_atomically(self.folder / METRICS_FILE, metrics[:kept])
        if self.tensorboard:  # which hides events after the state in older files
            later = saved["step"] + 1 if saved else 0
            self._events = summary_writer()(str(self.folder / TENSORBOARD_FOLDER), purge_step=later)
        return saved["state"] if saved else None

    def keep_best(self, model: nn.Module) -> None:
        """Store the weights of a model as the best ones."""
        if distributed.rank() == 0:
            storage.write_weights(self.folder, model.state_dict())

    def load_best(self, model: nn.Module) -> bool:
        """Give a model the best weights; return False if there are none."""

        def load() -> bool:
            found = (self.folder / storage.WEIGHTS_FILE).exists()
            if found:
                storage.load_weights(self.folder, model)
            return found

        found = distributed.from_first(load)
        distributed.align(model)
        return found

    def write_result(self, figures: Mapping[str, Any], notes: Sequence[str] = ()) -> None:
        """Write ``result.json``: the final figures, where they come from, and notes lest they mislead."""
        if distributed.rank():
            return
        about = {
            "command": self.config.get("command"),
            "settings": {name: values for name, values in self.settings.items() if name not in ("data", "run")},
            "seed": self.settings.get("run", {}).get("seed"),
        }
        result = provenance() | about | dict(figures) | ({"notes": list(notes)} if notes else {})
        _write_signed(self.folder / RESULT_FILE, result)

    def result(self) -> dict[str, Any] | None:
        """Return the content of ``result.json``; None if the run has not ended. Raise a CheckpointError if damaged."""
        return _read_signed(self.folder / RESULT_FILE, "restore it, or measure again with train-flows evaluate")

    def _metrics(self) -> bytes:
        path = self.folder / METRICS_FILE
        return path.read_bytes() if path.is_file() else b""

    def _records(self, saved: dict[str, Any] | None) -> list[dict[str, Any]]:
        path, content = self.folder / METRICS_FILE, self._metrics()
        if saved is not None:
            content = content[: saved["metrics_bytes"]]
            if _sha256(content) != saved["metrics_sha256"]:
                raise CheckpointError(f"{path} was cut or edited: restore it or train again")
        whole = content[: content.rfind(b"\n") + 1]  # a kill can cut the last line
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged ({error}): restore it or train again") from error

    def _saved(self) -> dict[str, Any] | None:
        """Return the content of ``state.pt``; no code from it is run."""
        path = self.folder / STATE_FILE
        if not path.is_file():
            return None
        content = path.read_bytes()
        content, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
        if _sha256(content).encode() != digest:
            raise CheckpointError(f"{path} is damaged: its digest does not match; restore it or train again")
        try:
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds
            raise CheckpointError(f"{path} does not hold a state ({error}): restore it or train again") from error


def summary_writer() -> type[SummaryWriter]:
    """Return torch's writer of TensorBoard files; raise an InputError if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        remedy = "python -m pip install 'augmented-flows[tensorboard]'"
        raise InputError(f"--tensorboard needs tensorboard: {remedy}") from error
    return SummaryWriter


def provenance() -> dict[str, Any]:
    """Return command line, machine, versions and commit, for files of results."""
    packages = ("augmented-flows", "torch", "torchdiffeq", "numpy")
    found = {
        "command": shlex.join(["train-flows", *map(_without_folders, sys.argv[1:])]),
        "machine": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }
    source = Path(__file__).parents[2]
    if (source / ".git").exists():  # a checkout
        with suppress(OSError, subprocess.CalledProcessError):
            call = ["git", "-C", str(source), "rev-parse", "HEAD"]
            found["commit"] = subprocess.run(call, capture_output=True, check=True, text=True).stdout.strip()
    return found


def _without_folders(argument: str) -> str:
    """Return an argument as typed, but only the last part of an absolute path."""
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{Path(value).name}" if Path(value).is_absolute() else argument


def _clear(folder: Path, overwrite: bool) -> None:
    """Make an empty run folder; temporary files of a kill do not count as content.

    ``config.json`` is removed last, so that a kill in between leaves a folder that is still known as a run.
    """
    config = folder / storage.CONFIG_FILE
    ours = _temporary_paths(folder)
    if not _is_free(folder):
        if not overwrite:
            raise InputError(
                f"{folder} exists: pass another --out, continue with --resume {folder}, or replace it with --overwrite"
            )
        if not (config.is_file() and b'"settings"' in config.read_bytes()):
            raise InputError(f"{folder} is not a run, so --overwrite leaves it alone: pass another --out")
        for name in (TENSORBOARD_FOLDER, SAMPLES_FOLDER):
            shutil.rmtree(folder / name, ignore_errors=True)
        ours += [folder / name for name in FILES]
    for path in ours:
        path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def free_folder(folder: Path) -> Path:
    """Return the folder if it is missing or empty, otherwise the first free one of FOLDER-2, FOLDER-3, ..."""
    numbered = (folder.with_name(f"{folder.name}-{i}") for i in itertools.count(2))
    return next(path for path in itertools.chain([folder], numbered) if _is_free(path))


def _is_free(folder: Path) -> bool:
    """Return True if a folder is missing or holds nothing but temporary files of a kill."""
    return not folder.exists() or (folder.is_dir() and set(folder.iterdir()) <= set(_temporary_paths(folder)))


def _temporary_paths(folder: Path) -> list[Path]:
    return [storage.temporary_path(folder / name) for name in FILES]


def _write_signed(path: Path, content: dict[str, Any]) -> None:
    """Write plain values as a JSON file with its digest, atomically."""
    signed = {**content, "sha256": _sha256(json.dumps(content).encode())}
    storage.write_atomically(path, (json.dumps(signed, indent=2) + "\n").encode())


def _read_signed(path: Path, remedy: str) -> dict[str, Any] | None:
    """Return the content of a JSON file with its digest; None if it is missing. Raise a CheckpointError if damaged."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        intact = content.pop("sha256") == _sha256(json.dumps(content).encode())
    except (ValueError, LookupError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise CheckpointError(f"{path} was cut or edited: {remedy}")
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
