"""Data sets by name or path.

To add one, write a function that returns a :class:`Dataset` and list its name here.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from anode import InputError
from train_flows.data import benchmark_tables, images, paper_functions, toy
from train_flows.data.dataset import SEED_STRIDE, Dataset, Split, class_contexts  # noqa: F401 - for other packages

SKLEARN = ("wine", "breast-cancer")
DENSITY_NAMES = (*toy.DENSITIES, *images.IMAGE_SETS, *benchmark_tables.BENCHMARKS)
LABELLED_NAMES = (*paper_functions.FUNCTIONS, "spheres-3", *images.IMAGE_SETS, *SKLEARN)


def load_density_data(
    source: str | None,
    *,
    seed: int = 0,
    data_root: str | Path = "data",
    download: bool = False,
    image_size: int | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    jitter: bool = True,
    given: Sequence[str] = (),
    kind: Sequence[str] = (),
    bounds: Sequence[str] = (),
    missing: str = "auto",
    weights: str | None = None,
    conditional: bool = False,
    split: bool = True,
    dtype: torch.dtype = torch.float32,
    model: Mapping[str, Any] | None = None,
) -> Dataset:
    """Load samples of a density.

    Args:
        source: one of ``DENSITY_NAMES``, or the path of a table or of a folder of images; None, for a run on a table in
            memory, is an error.
        seed: of samples that are drawn, of the split, and of subsets.
        data_root: folder of the published images and tables.
        download: fetch published images that are missing.
        image_size: height and width of images.
        train_size: number of training samples; a tenth as many validate.
        test_size: number of test samples.
        jitter: add noise to the columns of a table from a file that were rounded to a grid, as wide as its step.
        given: columns of a table that are given, instead of being modelled.
        kind: kinds of columns of a table that differ from those found, such as ``"rating=ordinal"``.
        bounds: bounds of columns of a table, such as ``"price=0:"``.
        missing: of rows with missing cells: ``"drop"`` them, ``"model"`` what is missing, or ``"auto"``, which drops
            up to 5% of the rows.
        weights: column of a table that says how often each row counts; other data than those of a run may lack it.
        conditional: images are given their class, points of a density by name their half of the plane.
        split: if False, a file or folder without a test part is the test part as a whole.
        dtype: precision of the columns of a table.
        model: plain values of a stored model for which to read a table: with its columns, or as real numbers.
    """
    from train_flows.data import tabular  # pandas takes half a second, which --help need not wait for

    if source is None:
        raise InputError("the data of this run were a table in memory: pass data from a file")
    if source in DENSITY_NAMES or is_images(source):
        gaps = None if missing == "auto" else missing
        options = {"no_jitter": not jitter, "given": given, "kind": kind, "bounds": bounds, "missing": gaps}
        options["weights"] = weights
        _refuse(source, "tables from files", **options)
    if is_images(source):
        dataset = images.load(source, seed, data_root, download, image_size, needs_classes=False, split=split)
        return images.for_density(dataset, conditional).limited(train_size, test_size, seed)
    _refuse(source, "images", image_size=image_size, download=download)
    if source in toy.DENSITIES:
        return toy.load(source, seed, conditional).limited(train_size, test_size, seed)
    _refuse(source, "images and points by name", conditional=conditional)
    if source in benchmark_tables.BENCHMARKS:
        dataset = tabular.load_benchmark(source, data_root, dtype)
    else:
        _check_path(source, DENSITY_NAMES)
        dataset = tabular.load(source, seed, jitter, given, split, dtype, kind, bounds, missing, weights, model)
    return dataset.limited(train_size, test_size, seed)


def load_labelled_data(
    source: str,
    *,
    seed: int = 0,
    target: str | None = None,
    task: str = "classes",
    data_root: str | Path = "data",
    download: bool = False,
    image_size: int | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    removed_slices: int = 0,
    split: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Dataset:
    """Load samples with classes, or with target values.

    The source is one of ``LABELLED_NAMES``, ``spheres-D`` in D dimensions, or the path of a table or of a folder of
    images; ``target`` is the column of a table to predict, which holds classes, or numbers if ``task`` is "regression";
    ``removed_slices`` is the number of slices of the plane that validate instead of training. Other arguments are
    those of :func:`load_density_data`.
    """
    from train_flows.data import labelled

    named = known_labelled_data(source)
    of_images = source in images.IMAGE_SETS or (not named and _is_image_folder(source))
    if named or of_images:
        _refuse(source, "tables from files", target=target, task=None if task == "classes" else task)
    if not of_images:
        _refuse(source, "images", image_size=image_size, download=download)
    if of_images:
        dataset = images.load(source, seed, data_root, download, image_size, split=split)
    elif paper_functions.is_function(source):
        dataset = paper_functions.load(source, seed)
    elif source in SKLEARN:
        dataset = labelled.load_sklearn(source, seed, dtype)
    else:
        _check_path(source, LABELLED_NAMES)
        dataset = labelled.load_labelled(source, target, task, seed, split, dtype)
    dataset = dataset.limited(train_size, test_size, seed)
    return paper_functions.without_slices(dataset, removed_slices, seed) if removed_slices else dataset


def known_labelled_data(source: str) -> bool:
    """Return True if there is labelled data of that name, which is not a path."""
    return source in LABELLED_NAMES or paper_functions.is_function(source)


def is_images(source: str) -> bool:
    """Return True for images, by name or in a folder."""
    return source in images.IMAGE_SETS or (source not in DENSITY_NAMES and _is_image_folder(source))


def _is_image_folder(source: str) -> bool:
    if not Path(source).is_dir():
        return False
    from train_flows.data import tables

    return not tables.is_folder(Path(source))


def _check_path(source: str, names: Sequence[str]) -> None:
    if not Path(source).exists() and not Path(source).suffix:
        nearest = difflib.get_close_matches(source, names, n=1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise InputError(
            f"data={source!r} is unknown; choose one of {', '.join(names)}, or the path of a table or of a folder of "
            f"images{hint}"
        )


def _refuse(source: str, wanted: str, **options: Any) -> None:
    """Raise an InputError for options that do not fit the data."""
    for name, value in options.items():
        if value not in (None, False, ()) and value != []:
            typed = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
            raise InputError(f"{typed} is for {wanted}, not for {source}: leave it out")
