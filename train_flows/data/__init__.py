"""Data sets by name or path."""

from __future__ import annotations

from pathlib import Path

from anode import InputError
from train_flows.data import images, large, tabular, toy
from train_flows.data.dataset import Dataset
from train_flows.data.published import PUBLISHED
from train_flows.data.stored import open_large

__all__ = ["NAMES", "Dataset", "load"]

NAMES = (*toy.DENSITIES, "digits", *PUBLISHED)


def load(source: str, seed: int = 0, jitter: bool = False, data_root: str | Path = "data") -> Dataset:
    """Load a data set.

    Args:
        source: a two-dimensional density (``moons``), ``digits``, a published table (``power``) or the path of a
            table of numbers.
        seed: of the samples drawn, or of the split.
        jitter: see :func:`train_flows.data.tabular.load`.
        data_root: the folder of the published tables.

    Raises:
        InputError: when there is no such data set, or it cannot be used.
    """
    if jitter and source in NAMES:
        raise InputError(f"--jitter is for tables from files, not for {source}: drop it")
    if source in toy.DENSITIES:
        return toy.load(source, seed)
    if source == "digits":
        return images.digits(seed)
    if source in PUBLISHED:
        return tabular.load_published(source, data_root)
    if not Path(source).exists() and not Path(source).suffix:
        raise InputError(f"data={source!r} is neither a known data set ({', '.join(NAMES)}) nor an existing file")
    stored = open_large(source)
    return large.load(stored, seed, jitter) if stored else tabular.load(source, seed, jitter)
