"""Data sets by name or path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anode import InputError
from train_flows.data import images, large, tabular, toy
from train_flows.data.dataset import Dataset
from train_flows.data.published import PUBLISHED
from train_flows.data.stored import open_large

__all__ = ["NAMES", "Dataset", "load", "pictures"]

NAMES = (*toy.DENSITIES, *images.NAMES, *PUBLISHED)


def load(source: str, seed: int = 0, jitter: bool = False, data_root: str | Path = "data", **pictured: Any) -> Dataset:
    """Load a data set.

    Args:
        source: a two-dimensional density (``moons``), images (``digits``, ``mnist``), a published table (``power``), or
            the path of a table of numbers or of a folder of images.
        seed: of the samples drawn, or of the split.
        jitter: see :func:`train_flows.data.tabular.load`.
        data_root: the folder of the published tables and images.
        pictured: how to read images; see :func:`train_flows.data.images.load`.

    Raises:
        InputError: when there is no such data set, or it cannot be used.
    """
    of_images = pictures(source)
    if jitter and (source in NAMES or of_images):
        raise InputError(f"--jitter is for tables from files, not for {source}: drop it")
    if of_images:
        return images.load(source, seed, data_root, **pictured)
    if source not in NAMES and not Path(source).exists() and not Path(source).suffix:
        raise InputError(f"data={source!r} is neither a known data set ({', '.join(NAMES)}) nor an existing file")
    for name, value in pictured.items():
        if value is not None and value is not False:
            typed = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
            raise InputError(f"{typed} is for images, not for {source}: drop it")
    if source in toy.DENSITIES:
        return toy.load(source, seed)
    if source in PUBLISHED:
        return tabular.load_published(source, data_root)
    stored = open_large(source)
    return large.load(stored, seed, jitter) if stored else tabular.load(source, seed, jitter)


def pictures(source: str) -> bool:
    """Whether a data set is of images, by name or in a folder."""
    return images.known(source) or (source not in NAMES and Path(source).is_dir())
