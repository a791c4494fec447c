"""Samples to evaluate a stored model on: the test part of its own run, or other data in the order of its columns."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anode import InputError, storage
from anode.classifiers import KIND as CLASSIFIER
from cnf.models import KIND as DENSITY
from cnf.objectives import Batch
from train_flows import data
from train_flows.checkpoint import Run, classes_of, columns_of
from train_flows.data import classes, images, tables
from train_flows.data.dataset import indicators
from train_flows.data.labelled import Pairs
from train_flows.data.stored import Stored, open_large
from train_flows.settings import RunSettings, Source
from train_flows.training import Precision, Training


@dataclass(frozen=True)
class Portions:
    """The rows of a large table as samples of a density; see :class:`train_flows.portions.Portions`.

    Attributes:
        table: on disk.
        sampled: makes samples (n, *S) of some rows.
    """

    table: Stored
    sampled: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return self.table.rows

    def __iter__(self) -> Iterator[Tensor]:
        for values in self.table.chunks():
            yield self.sampled(torch.from_numpy(values))


def samples(folder: str, source: str | None) -> Batch | Portions:
    """Samples (N, *S) for a density, in pairs with the classes they are given; those of a large table in portions.

    Args:
        folder: of a run, or of a model that was saved without one.
        source: a data set, a table or a folder of images; the test part of the run's own data when None.

    Raises:
        InputError: when the run's own data have changed, or other data have other columns, or images another form or
            no classes where they are given.
    """
    if source is None:
        return _own(folder)
    trained = _settings(folder)["data"]
    if trained["source"] in (source, os.path.realpath(source)):
        return _own(folder)
    if trained["jitter"]:
        print(f"note: {folder} was trained on jittered data; {source} is taken as it is", file=sys.stderr)
    return _other_images(folder, source) if data.pictures(source) else _other(folder, source)


def pairs(folder: str, source: str | None) -> tuple[Pairs, tuple[str, ...] | None]:
    """Inputs and targets for a classifier, and the names of its classes; see :func:`samples`."""
    config = Run(folder).config(CLASSIFIER)
    trained, names = config["settings"]["data"], config.get("classes") and tuple(config["classes"])
    if source is None or trained["source"] in (source, os.path.realpath(source)):
        dataset = classes.load(**trained, seed=_seed(config["settings"]))
        _check_unchanged(config, folder, dataset.digest())
        return dataset.test, names
    if classes.known(source):
        raise InputError(f"{folder} was trained on {config['data']['name']}, not on {source}: name a file, or nothing")
    if config["model"].get("levels") is not None:
        return _images(config, folder, source), names
    if trained["target"] is None:
        raise InputError(
            f"{folder} was trained on {config['data']['name']}, which has no table's columns: name nothing"
        )
    found, columns, _ = classes.read(source, trained["target"], names)
    return Pairs(_in_order(found.x.float(), columns, config, folder, source), found.y), names


def _images(config: dict[str, Any], folder: str, source: str) -> Pairs:
    """All images of a folder, or those of its test part, with the classes of a run."""
    size = config["settings"]["data"]["image_size"]
    _, train, test, found, _, levels = images.read(source, size=size)
    part = test or train
    y = _relabelled(part.y, found, config["classes"] or [], folder, source)
    _check_images(part.x, levels, config, folder, source)
    return Pairs(part.x, y)


def _relabelled(y: Tensor, found: Sequence[str], wanted: Sequence[str], folder: str, source: str) -> Tensor:
    """Labels (N,) of the classes that were found as those of the classes of a run."""
    unknown = sorted(set(found) - set(wanted))
    if unknown:
        raise InputError(f"{source} holds the class {unknown[0]}, {folder} knows {_some(wanted)}: rename or remove it")
    return torch.tensor([wanted.index(name) for name in found])[y]


def _check_images(x: Tensor, levels: int | None, config: dict[str, Any], folder: str, source: str) -> None:
    """Raise an :class:`~anode.InputError` for images of another shape, or with other levels, than a model takes."""
    shape, known = tuple(config["model"]["shape"]), config["model"]["levels"]
    if (tuple(x.shape[1:]), levels) == (shape, known):
        return
    got, trained = ("x".join(map(str, size)) for size in (x.shape[1:], shape))
    what = "numbers" if known is None else f"{trained} with {known} levels"
    raise InputError(f"{source} has images {got} with {levels} levels, {folder} was trained on {what}: convert them")


def precision(folder: str) -> Precision:
    """The precision in which the fields of a density were trained."""
    return Training(**_settings(folder)["training"]).precision


def _settings(folder: str) -> dict[str, Any]:
    """The settings of a run; the defaults for a model that was saved without one."""
    if "settings" not in storage.read_config(folder, DENSITY):
        return {"data": vars(Source()), "training": vars(Training()), "run": vars(RunSettings())}
    return Run(folder).config(DENSITY)["settings"]


def _seed(settings: dict[str, Any]) -> int:
    """The seed of the data of a run."""
    return RunSettings(**settings["run"]).of_data()


def _own(folder: str) -> Batch:
    config = Run(folder).config(DENSITY)
    dataset = data.load(**config["settings"]["data"], seed=_seed(config["settings"]))
    _check_unchanged(config, folder, dataset.digest())
    return dataset.samples("test")


def _check_unchanged(config: dict[str, Any], folder: str, digest: str) -> None:
    if digest != config["data"]["sha256"]:
        raise InputError(
            f"{config['data']['name']} has changed since {folder} was trained on it, so its test part is not known: "
            "name the data to evaluate on"
        )


def _other_images(folder: str, source: str) -> Batch:
    """The test part of a set by name, split as the run's own data were; of a folder, or failing that, all of it."""
    config, settings = storage.read_config(folder, DENSITY), _settings(folder)
    root, size = settings["data"]["data_root"], settings["data"]["image_size"]
    published = images.read(source, root, size=size, classified=False)
    if images.known(source):
        part = images.arranged(published, _seed(settings)).test
    else:
        part = published.test or published.train
    _check_images(part.x, published.levels, config, folder, source)
    wanted = classes_of(config, folder)
    if not wanted:
        return part.x
    if not published.classes:
        raise InputError(_unlabelled(folder, source))
    return part.x, indicators(_relabelled(part.y, published.classes, wanted, folder, source), len(wanted))


def _unlabelled(folder: str, source: str) -> str:
    return f"{source} holds no classes, which {folder} is a density given: pass a folder of images in classes"


def _other(folder: str, source: str) -> Tensor | Portions:
    config = storage.read_config(folder, DENSITY)
    if classes_of(config, folder):
        raise InputError(_unlabelled(folder, source))
    if source in data.NAMES:  # split as the run's own data were, so that the test part was not trained on
        settings = _settings(folder)
        dataset = data.load(source, _seed(settings), data_root=settings["data"]["data_root"])
        x, columns = dataset.test, dataset.columns
    elif (table := open_large(source)) is not None:
        for _ in table.chunks():  # all of it is good before the first solve
            pass
        return Portions(table, lambda x: _in_order(x, table.columns, config, folder, source))
    else:
        values, columns = (tables.read_splits(source) or {}).get("test") or tables.read(source, least_rows=2)
        x = torch.from_numpy(values)
    return _in_order(x, columns, config, folder, source)


def _in_order(x: Tensor, columns: tuple[str, ...], config: dict[str, Any], folder: str, source: str) -> Tensor:
    """Samples with their columns in the order a model was trained with, in its shape."""
    shape, trained = config["model"]["shape"], columns_of(config, folder)
    if x[0].numel() != math.prod(shape):
        names = f" ({_some(trained)})" if trained else ""
        raise InputError(
            f"{source} has {x[0].numel()} columns, {folder} was trained on {math.prod(shape)}{names}: "
            "pass the same columns"
        )
    if _named(columns) and _named(trained):
        missing = [name for name in trained if name not in columns]
        if missing:
            raise InputError(
                f"{source} lacks the columns {_some(missing)} of {folder}; it has {_some(columns)}: rename them"
            )
        x = x.flatten(1)[:, [columns.index(name) for name in trained]]
    return x.reshape(len(x), *shape)


def _named(columns: tuple[str, ...]) -> bool:
    """Whether columns have names of their own, rather than x0, x1, ..."""
    return not all(re.fullmatch(r"x\d+", name) for name in columns)


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:8], *["..."] * (len(names) > 8)])
