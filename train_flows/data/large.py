"""Tables too large for memory as data sets: surveyed once from end to end, and read again as batches need them."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from functools import partial
from typing import BinaryIO

import numpy as np
import torch

from anode import InputError
from train_flows.data import tabular
from train_flows.data.dataset import Dataset
from train_flows.data.rows import Rows
from train_flows.data.stored import Stored
from train_flows.moments import Moments

PART = 100_000  # rows at most to validate on, to test on, and to stand for the training rows where they must be at hand
FEW = f"{tabular.FEW}; consider adding noise as wide as the gaps between them"
RIDGE = 1e-10  # added to correlations, which may be singular


def load(stored: Stored, seed: int = 0, jitter: bool = False) -> Dataset:
    """Split a large table by ``seed`` into rows to validate and test on, a tenth each at most, and the others.

    Two passes go through the file, one over its numbers and one for its digest. A Parquet file is copied in the first,
    as numbers of single precision, to an unnamed temporary file that ends with the process: rows from all over a
    Parquet file could not be read without reading nearly all of it. ``TMPDIR`` says where.

    Args:
        stored: the table.
        seed: of the split.
        jitter: cannot be had.

    Raises:
        InputError: as :func:`train_flows.data.tabular.load`; and when the copy finds no room.
    """
    name = stored.path.name
    if jitter:
        raise InputError(f"{name} is too large for --jitter: drop it, and add noise to the columns in the file")
    part = min(PART, stored.rows // 10)
    wanted = np.random.default_rng(seed).choice(stored.rows, 3 * part, replace=False)
    held = np.sort(wanted[: 2 * part])
    copy = None if stored.mapped else _copy(stored)
    moments, drawn = _survey(stored, held, wanted, copy)
    validation, test, shown = (torch.from_numpy(values) for values in np.split(drawn, 3))
    train = _with_moments(shown, moments)
    notes = (
        f"a table of {stored.rows:,} rows stays on disk: {part:,} to validate and to test on, each; columns are "
        f"looked at in {part:,} others, and rows met twice are not looked for",
        *tabular.notes(train.numpy(), stored.columns, *tabular.repeats(shown.numpy()), FEW),
    )
    shape = (stored.rows, len(stored.columns))
    disk = Rows(stored.path, stored.mapped or partial(np.memmap, copy, np.float32, "r", shape=shape), held)
    if copy:
        weakref.finalize(disk, copy.close)
    return Dataset(name, train, validation, test, stored.columns, table=True, notes=notes, disk=disk)


def _copy(stored: Stored) -> BinaryIO:
    """A temporary file with room for the table."""
    size, folder = 4 * stored.rows * len(stored.columns), tempfile.gettempdir()
    if shutil.disk_usage(folder).free < size:
        raise InputError(
            f"{stored.path.name} takes {size / 1e9:.1f} GB as numbers, more than {folder} has room for: "
            "set TMPDIR to a folder of a larger disk"
        )
    return tempfile.TemporaryFile()


def _survey(stored: Stored, held: np.ndarray, wanted: np.ndarray, copy: BinaryIO | None) -> tuple[Moments, np.ndarray]:
    """The moments of the training rows, and the rows wanted, in their order; all rows are checked, and copied."""
    name, columns, moments = stored.path.name, stored.columns, Moments()
    drawn = np.empty((len(wanted), len(columns)), dtype=np.float32)
    order = np.argsort(wanted)
    largest, low, high = np.zeros(len(columns)), np.full(len(columns), np.inf), np.full(len(columns), -np.inf)
    start = 0
    for values in stored.chunks():
        largest = np.maximum(largest, np.abs(values).max(axis=0))
        with np.errstate(over="ignore"):  # refused below
            single = values.astype(np.float32)
        end = start + len(single)
        found = order[slice(*np.searchsorted(wanted, [start, end], sorter=order))]
        drawn[found] = single[wanted[found] - start]
        train = np.delete(single, held[slice(*np.searchsorted(held, [start, end]))] - start, axis=0)
        if len(train):
            moments.add(torch.from_numpy(train))
            low, high = np.minimum(low, train.min(axis=0)), np.maximum(high, train.max(axis=0))
        if copy:
            copy.write(single.tobytes())
        start = end
    tabular.check_size(name, largest[None], columns)
    tabular.check_varied(name, low, high, columns)
    if copy:
        copy.flush()
    return moments, drawn


def _with_moments(x: torch.Tensor, moments: Moments) -> torch.Tensor:
    """Random rows (N, D), moved and turned by the little that gives them the mean and covariance of all.

    What is fitted to them, such as a standardisation, is then as good as fitted to all. A column of rare values, all
    alike in these rows, becomes a normal one.
    """
    scale = (moments.scatter.diagonal() / moments.count).sqrt()
    normal = moments.mean + scale * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    x = torch.where(x.amin(0) < x.amax(0), x.double(), normal)
    own = Moments()
    own.add(x)
    root, wanted = (_root(each, scale) for each in (own, moments))
    centred = (x - own.mean) / scale
    moved = torch.linalg.solve_triangular(root, centred.T, upper=False).T @ wanted.T
    return (moments.mean + moved * scale).float()


def _root(moments: Moments, scale: torch.Tensor) -> torch.Tensor:
    """The lower triangular root of a covariance in units of a scale."""
    covariance = moments.scatter / moments.count / torch.outer(scale, scale)
    return torch.linalg.cholesky(covariance + RIDGE * torch.eye(len(scale), dtype=torch.float64))
