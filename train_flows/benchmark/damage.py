"""Damage to the content of a file, as disks, transfers and people do it; and content that no program has written."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np

Damage = Callable[[bytes, np.random.Generator], bytes]
T = TypeVar("T")


def one_of(rng: np.random.Generator, options: Iterable[T]) -> T:
    """An option drawn at random."""
    options = list(options)
    return options[int(rng.integers(len(options)))]


def _flip_a_bit(content: bytes, rng: np.random.Generator) -> bytes:
    place = int(rng.integers(len(content)))
    return _with(content, place, bytes([content[place] ^ (1 << int(rng.integers(8)))]))


def _replace_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    places = rng.integers(len(content), size=int(rng.integers(1, 9)))
    for place in places.tolist():
        content = _with(content, place, rng.bytes(1))
    return content


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(len(content)))]


def _extend(content: bytes, rng: np.random.Generator) -> bytes:
    return content + (rng.bytes(int(rng.integers(1, 100))) if rng.random() < 0.5 else bytes(100))


def _clear_a_block(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = _block(content, rng)
    return content[:start] + bytes(end - start) + content[end:]


def _repeat_a_block(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = _block(content, rng)
    return content[:end] + content[start:]


def _remove_a_block(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = _block(content, rng)
    return content[:start] + content[end:]


def _exchange_blocks(content: bytes, rng: np.random.Generator) -> bytes:
    first, last = _block(content, rng)
    middle = int(rng.integers(first, last))
    return content[:first] + content[middle:last] + content[first:middle] + content[last:]


def _fill_with_noise(content: bytes, rng: np.random.Generator) -> bytes:
    return rng.bytes(len(content))


def _empty(content: bytes, rng: np.random.Generator) -> bytes:
    return b""


DAMAGES: dict[str, Damage] = {
    "a bit flipped": _flip_a_bit,
    "bytes replaced": _replace_bytes,
    "cut": _cut,
    "extended": _extend,
    "a block cleared": _clear_a_block,
    "a block repeated": _repeat_a_block,
    "a block removed": _remove_a_block,
    "blocks exchanged": _exchange_blocks,
    "filled with noise": _fill_with_noise,
    "emptied": _empty,
}


def damaged(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """The name of a damage drawn at random, and what it makes of a content."""
    name = one_of(rng, DAMAGES)
    return name, DAMAGES[name](content, rng)


class Bomb:
    """An object whose pickle makes a folder when it is loaded.

    Args:
        folder: which.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)

    def pickled(self) -> bytes:
        """Its pickle."""
        return pickle.dumps(self)

    def check(self) -> None:
        """Raise a RuntimeError when a pickle was loaded."""
        if self.folder.exists():
            self.folder.rmdir()
            raise RuntimeError("code from the file was executed")


def _with(content: bytes, place: int, inserted: bytes) -> bytes:
    return content[:place] + inserted + content[place + len(inserted) :]


def _block(content: bytes, rng: np.random.Generator) -> tuple[int, int]:
    """Beginning and end of a block that is not empty."""
    start = int(rng.integers(len(content)))
    return start, min(len(content), start + int(rng.integers(1, 65)))
