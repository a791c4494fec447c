"""``train-flows predict RUN DATA``: predict the classes, or the values of a regression, of new rows or images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch

import anode
from anode import InputError, storage
from anode.classifiers import KIND as CLASSIFIER
from anode.classifiers import class_numbers
from anode.errors import config
from cnf.models import KIND as DENSITY
from train_flows.command_line import read
from train_flows.data import Dataset, Split, image_folders, images, tables
from train_flows.data.dataset import abbreviate, description_of
from train_flows.evaluation import in_chunks
from train_flows.run import session
from train_flows.sample import check_out

PREDICTED, PROBABILITY = "predicted", "p_"  # the columns that are added


@config
class Settings:
    """Predict the class of new rows or images by a trained classifier, or the value by a regression.

    Attributes:
        run: folder of the run
        data: table with the columns of the run, in any order and among others, or folder of images
        out: table to write, .csv: the rows or the files of the images, with predictions
        device: cpu, cuda, cuda:1 or mps; auto takes a CUDA GPU if there is one
        overwrite: replace an existing file
    """

    positional: ClassVar = {"run": "RUN", "data": "DATA"}
    run: Path
    data: Path
    out: Path = Path("predicted.csv")
    device: str = "auto"
    overwrite: bool = False


def main(args: list[str]) -> None:
    """Run the command line ``train-flows predict``."""
    settings = read(Settings, args, "predict")
    check_out(settings.out, (".csv",), settings.overwrite)
    stored = storage.read_config(settings.run, CLASSIFIER, DENSITY)
    if stored["kind"] == DENSITY:
        raise InputError(f"{settings.run} is a density, which does not predict: use train-flows evaluate or sample")
    model = anode.load(settings.run, session.find_device(settings.device))
    about = {**description_of(stored), "classes": [], "context": []}
    typed = stored.get("settings", {}).get("data", {})
    rows, dataset = (
        _images(settings.data, typed.get("image_size"))
        if settings.data.is_dir()
        else _table(settings.data, about, typed.get("target"))
    )
    samples = Split(dataset.match(about, str(settings.run)).test.x)
    found = predictions(model, samples)
    if twice := [name for name in found if name in rows]:
        raise InputError(f"{settings.data} has a column {twice[0]} already: rename it")
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    with storage.written_atomically(settings.out) as file:
        rows.assign(**found).to_csv(file, index=False)
    print(*(f"note: {note}\n" for note in dataset.notes), sep="", end="")
    print(f"{len(rows)} rows with {abbreviate([*found])} in {settings.out}")


@torch.no_grad()
def predictions(model: anode.Classifier, samples: Split) -> dict[str, Any]:
    """Return the columns to add: the class of each sample and the probability of each class, or the value."""
    outputs = torch.cat(in_chunks(model, samples, lambda x, _: model(x).cpu(), "predicting"))
    if model.target is not None:
        names = [PREDICTED] if outputs.shape[1] == 1 else [f"{PREDICTED}_{k}" for k in range(outputs.shape[1])]
        return dict(zip(names, outputs.T.numpy(), strict=True))
    names = model.classes or tuple(map(str, range(max(2, outputs.shape[1]))))
    predicted = {PREDICTED: [names[k] for k in class_numbers(outputs).tolist()]}
    if outputs.shape[1] == 1:  # trained on signs
        return predicted
    return predicted | {f"{PROBABILITY}{name}": p for name, p in zip(names, outputs.softmax(1).T.numpy(), strict=True)}


def _table(path: Path, about: Mapping[str, Any], target: str | None) -> tuple[pd.DataFrame, Dataset]:
    """Return the rows of a table as they are written, and their columns that a model takes."""
    table = tables.read(path)
    rows, columns = _rows(table), about["columns"]
    found = [name for name in columns if name in rows]
    if found and len(found) < len(columns):
        missing = [name for name in columns if name not in rows]
        raise InputError(f"{path} lacks the columns {abbreviate(missing)} of the run: add or rename them")
    if not found:  # without names
        found = [name for name in rows if rows.shape[1] == math.prod(about["shape"]) or name != target]
    x = torch.from_numpy(tables.numbers(str(path), rows[found], min_rows=1))
    if others := [name for name in rows if name not in found]:
        texts = _rows(tables.read(path, others))[others]
        rows[others] = texts.map(lambda text: text.decode() if isinstance(text, bytes) else text)
    return rows, dataclasses.replace(_dataset(path, x), columns=tuple(found), named=table.named, notes=table.notes)


def _rows(table: tables.Table) -> pd.DataFrame:
    """Return the rows to predict: all of a table, or those of its test part."""
    return table.parts["all"] if "all" in table.parts else table.parts["test"]


def _images(folder: Path, size: int | None) -> tuple[pd.DataFrame, Dataset]:
    """Return the files of images, and the images."""
    files, x = image_folders.read_files(folder, size)
    return pd.DataFrame({"file": files}), dataclasses.replace(_dataset(folder, x), levels=images.LEVELS)


def _dataset(path: Path, x: torch.Tensor) -> Dataset:
    samples = Split(x)
    return Dataset(path.name, samples.take(slice(0)), samples.take(slice(0)), samples, columns=())
