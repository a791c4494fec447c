"""Frames of an animation of the training: an array for each record of a run, kept through kills and resuming."""

from __future__ import annotations

import io
from collections.abc import Callable
from zipfile import BadZipFile

import numpy as np

from anode import CheckpointError, SolverError, storage
from train_flows.run import distributed
from train_flows.run.folder import FRAMES_FILE, Run

FRAMES = 60  # at most


def keep_frame(run: Run, compute: Callable[[], np.ndarray]) -> None:
    """Compute and store the frame of the record to come, to be called by validations; a failed solve leaves a note.

    Every 2^k-th record has a frame, with the smallest k for which the frames do not exceed 60. Frames are stored by the
    number of their record, so that a resumed run replaces the frame that a kill left without a record.

    Args:
        run: its records are numbered from 0.
        compute: return the frame, an array of the same shape for all records.
    """
    if distributed.rank():
        return
    record = len(run.records())
    stride = 1 << (record // FRAMES).bit_length()
    if record % stride:
        return
    kept = {number: frame for number, frame in _stored(run).items() if number % stride == 0}
    try:
        kept[record] = compute()
    except SolverError as error:
        print(f"note: the frame of record {record} is missing: {error}")
        return
    content = io.BytesIO()
    np.savez(content, records=np.array(list(kept)), frames=np.stack(list(kept.values())))
    storage.write_atomically(run.folder / FRAMES_FILE, content.getvalue())


def frames(run: Run) -> dict[int, np.ndarray]:
    """Return the frames of a run by the step of their record.

    Raises:
        CheckpointError: if the file of frames is damaged.
    """
    steps = [record["step"] for record in run.records()]
    return {steps[number]: frame for number, frame in sorted(_stored(run).items()) if number < len(steps)}


def _stored(run: Run) -> dict[int, np.ndarray]:
    """Return the stored frames by the number of their record."""
    path = run.folder / FRAMES_FILE
    if not path.exists():
        return {}
    try:
        with np.load(path) as stored:
            return dict(zip(stored["records"].tolist(), stored["frames"], strict=True))
    except (ValueError, LookupError, EOFError, BadZipFile) as error:
        raise CheckpointError(f"{path} is damaged ({error}): remove it, only an animation needs it") from error
