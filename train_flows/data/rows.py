"""The training rows of a table that stays on disk, and shuffled batches of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**14  # bytes of neighbouring rows that are read together
POOL = 2**24  # bytes of such blocks, from all over the table, that are shuffled together


@dataclass(frozen=True)
class Rows:
    """All rows of a table but those held out, in their order.

    Attributes:
        path: of the file.
        mapped: maps the table as an array (N, D), of finite numbers.
        held: sorted numbers of the rows held out.
    """

    path: Path
    mapped: Callable[[], np.ndarray]
    held: np.ndarray

    def __len__(self) -> int:
        return len(self.mapped()) - len(self.held)

    def digest(self) -> str:
        """SHA-256 of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def batches(self, batch_size: int, seed: int) -> Callable[[int], Tensor]:
        """Shuffled batches as a function of the step alone, so that resuming needs no state.

        An epoch goes through blocks of neighbouring rows in random order: as many as fill a pool are read at a time,
        the rows of the pool are shuffled, and cut into batches. What does not fill a batch or a pool is left out.

        Args:
            batch_size: B, at most as many as there are rows.
            seed: of the shuffles.

        Returns:
            A function from the step to its batch (B, D), float32.
        """
        n, width = len(self), self.mapped().shape[1]
        length = max(1, min(BLOCK // (4 * width), n // batch_size))  # rows of a block
        blocks = min(max(POOL // (4 * width * length), -(-batch_size // length)), n // length)  # of a pool
        pools, per_pool = n // length // blocks, blocks * length // batch_size
        current: dict[int, Tensor] = {}  # the pool of the last step

        def batch(step: int) -> Tensor:
            pool, position = divmod(step, per_pool)
            if pool not in current:
                epoch, place = divmod(pool, pools)
                rng = np.random.default_rng([seed, epoch])
                offset = rng.integers(n % length + 1)
                chosen = rng.permutation(n // length)[place * blocks : (place + 1) * blocks]
                rows = self._read(offset + length * np.sort(chosen), length)
                current.clear()
                current[pool] = torch.from_numpy(np.random.default_rng([seed, epoch, place]).permutation(rows))
            return current[pool][position * batch_size : (position + 1) * batch_size]

        return batch

    def _read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Blocks of so many training rows, from the starts on, one after the other."""
        first, last = self._row(starts), self._row(starts + length - 1) + 1
        skipped = np.searchsorted(self.held, [first, last])
        pieces = [
            np.delete(np.array(self.mapped()[i:j]), self.held[k:m] - i, axis=0)
            for i, j, k, m in zip(first, last, *skipped, strict=True)
        ]
        return np.concatenate(pieces, dtype=np.float32)

    def _row(self, training: np.ndarray) -> np.ndarray:
        """Where in the table training rows stand, given their numbers among the training rows."""
        return training + np.searchsorted(self.held - np.arange(len(self.held)), training, side="right")
