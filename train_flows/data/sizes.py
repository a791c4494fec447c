"""Bounds on what a table takes when it is unpacked, so that a small file cannot ask for all memory there is.

A packed file (``.csv.gz``, ``.npz``, ``.parquet``) may unpack to 100 times its size, or to 256 MiB if that is more; an
array has to be of the size its header declares; a line of CSV is at most a mebibyte long.
"""

from __future__ import annotations

import gzip
import io
import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

RATIO = 100  # of the unpacked size to that of the file
SMALL = 2**28  # bytes that any file may unpack to
LONGEST_LINE = 2**20  # bytes
_NUMBER = 8  # bytes of one in a table


def opened(path: Path) -> io.BufferedReader:
    """The bytes of a CSV file, unpacked where its name ends in ``.gz``.

    Reading raises a ValueError where they are more than the file may unpack to, or a line is too long.
    """
    packed = path.suffix.lower() == ".gz"
    file: io.BufferedIOBase = gzip.open(path) if packed else path.open("rb")  # noqa: SIM115 - the reader closes it
    return io.BufferedReader(_Lines(file, most_bytes(path) if packed else math.inf), 2**16)


def most_bytes(path: Path) -> int:
    """What a packed file may unpack to."""
    return max(SMALL, RATIO * path.stat().st_size)


def check_arrays(path: Path) -> None:
    """Raise a ValueError unless the arrays of an NPY or NPZ file are as large as their headers declare."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            file.seek(0)
            _check_array(file, path.stat().st_size)
            return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > most_bytes(path):
            raise ValueError(f"its arrays unpack to more than {most_bytes(path):,} bytes")
        for member in members:
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{member.filename} is packed as NumPy packs no array")
            with archive.open(member) as file:
                _check_array(file, member.file_size)


def check_parquet(path: Path) -> None:
    """Raise a ValueError where a Parquet file unpacks to more than it may."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        metadata = file.metadata
        packed = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        declared = max(_NUMBER * metadata.num_rows * metadata.num_columns, packed)
    if declared > most_bytes(path):
        raise ValueError(f"it unpacks to {declared:,} bytes, of {most_bytes(path):,} at most")


def _check_array(file: IO[bytes], size: int) -> None:
    """Raise a ValueError unless the file of so many bytes, from its beginning, is one array of numbers or texts."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the format is for records, not for tables")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject or dtype.kind == "V":
        raise ValueError(f"an array of type {dtype} holds no numbers")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"its header declares {shape} of {dtype}, and {size - file.tell():,} bytes follow")


class _Lines(io.RawIOBase):
    """A file of lines, the bytes and lengths of which are bounded.

    Args:
        file: it is closed with this one.
        most: bytes of all lines.
    """

    def __init__(self, file: io.BufferedIOBase, most: float) -> None:
        super().__init__()
        self.file = file
        self.left = most
        self.line = 0  # bytes since its beginning

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what fits into a buffer."""
        content = self.file.read(len(buffer))
        self.left -= len(content)
        if self.left < 0:
            raise ValueError("it unpacks to too many bytes")
        end = max(content.rfind(b"\n"), content.rfind(b"\r"))
        self.line = self.line + len(content) if end < 0 else len(content) - end
        if self.line > LONGEST_LINE:
            raise ValueError(f"a line is longer than {LONGEST_LINE:,} bytes")
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        """Close the file, too."""
        self.file.close()
        super().close()
