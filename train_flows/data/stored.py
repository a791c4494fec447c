"""Tables that are too large for memory: NPY and Parquet, read some rows at a time.

A mapped file counts as memory of the process while its pages are in use. Files are therefore mapped anew for each
read, which lets go of the pages read before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from anode import InputError
from train_flows.data import tables

LARGE = 2**30  # bytes as float64: tables beyond stay on disk
ROWS = 50_000  # read together


@dataclass(frozen=True)
class Stored:
    """A large table on disk.

    Attributes:
        path: of the file.
        columns: D names.
        rows: N.
        frames: reads it from its beginning, some rows at a time.
        mapped: maps it as an array (N, D); None for a format that cannot be mapped.
    """

    path: Path
    columns: tuple[str, ...]
    rows: int
    frames: Callable[[], Iterator[pd.DataFrame]]
    mapped: Callable[[], np.ndarray] | None = None

    def __len__(self) -> int:
        return self.rows

    def chunks(self) -> Iterator[np.ndarray]:
        """The numbers (n, D), float64, some rows at a time.

        Raises:
            InputError: after the last row, when some are no finite numbers, in the words of :func:`tables.read`;
                nothing comes after the first of them. And when there are not as many rows as the file says.
        """
        found: dict[tuple[int, int], list] = {}  # by column and kind of fault: how many, the first row, its value
        row = 0
        for frame in self.frames():
            numbers = np.empty(frame.shape)
            for i in range(frame.shape[1]):
                column = frame.iloc[:, i]
                numbers[:, i], faults = tables.parse(str(self.path), column)
                for kind, bad in enumerate(faults):
                    if bad.any():
                        first = int(bad.argmax())
                        found.setdefault((i, kind), [0, row + first, column.iloc[first]])[0] += int(bad.sum())
            if not found:
                yield numbers
            row += len(frame)
        if found:
            (i, kind), (count, first, value) = min(found.items(), key=lambda item: item[0])
            raise tables.fault(str(self.path), self.columns[i], kind, count, self.rows, first, value)
        if row != self.rows:
            raise InputError(f"{self.path} is damaged: it says {self.rows} rows and holds {row}; write it again")


def open_large(path: str | Path) -> Stored | None:
    """A table that is too large for memory; None for anything else, which :func:`tables.read` reads or refuses."""
    path = Path(path)
    found = {".npy": _numpy, ".parquet": _parquet}.get(path.suffix.lower(), lambda _: None)(path)
    if found is None or len(found.columns) < 2 or found.rows < tables.LEAST_ROWS:
        return None
    return found if 8 * found.rows * len(found.columns) > LARGE else None


def _numpy(path: Path) -> Stored | None:
    def mapped() -> np.ndarray:
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def frames() -> Iterator[pd.DataFrame]:
        for start in range(0, rows, ROWS):
            yield pd.DataFrame(np.array(mapped()[start : start + ROWS]), columns=columns)

    try:
        array = mapped()
    except Exception:  # numpy raises many kinds; the reader of small tables explains them
        return None
    if not isinstance(array, np.memmap) or array.ndim != 2 or array.dtype.kind not in "biuf":
        return None
    rows, columns = len(array), tuple(f"x{i}" for i in range(array.shape[1]))
    return Stored(path, columns, rows, frames, mapped)


def _parquet(path: Path) -> Stored | None:
    def frames() -> Iterator[pd.DataFrame]:
        in_pieces = {"pre_buffer": False, "buffer_size": 2**16}  # rather than whole groups of rows
        with tables.parquet_errors(path), parquet.ParquetFile(path, **in_pieces) as file:
            for batch in file.iter_batches(ROWS):
                yield pyarrow.Table.from_batches([batch]).to_pandas()

    try:
        import pyarrow
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            rows, columns = file.metadata.num_rows, file.schema_arrow.empty_table().to_pandas().columns
    except Exception:  # as above
        return None
    return None if columns.has_duplicates else Stored(path, tuple(map(str, columns)), rows, frames)
