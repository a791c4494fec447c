"""Samples to evaluate a stored model on: the test part of the run, or other data in the order of the run's columns."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from typing import Any

from anode import InputError, storage
from anode.classifiers import KIND as CLASSIFIER
from cnf.models import KIND as DENSITY
from train_flows.data import Dataset, is_images, load_density_data, load_labelled_data
from train_flows.run.folder import Run
from train_flows.settings import ClassifySettings, DensitySettings, from_config

SETTINGS: dict[str, Any] = {DENSITY: DensitySettings, CLASSIFIER: ClassifySettings}
LOAD: dict[str, Any] = {DENSITY: load_density_data, CLASSIFIER: load_labelled_data}


def load(folder: str, source: str | None = None) -> Dataset:
    """Return a data set whose test part is to be evaluated on.

    Args:
        folder: of a run, or of a model that was saved without one.
        source: a data set, or the path of a table or of a folder of images; when None, the run's own test part. Named
            data sets are split as the run's own data were, and columns and classes put in the order of the model.

    Raises:
        InputError: if the run's own data have changed, or other data do not fit the model.
        CheckpointError: if the folder is not a run, and no source is given.
    """
    config = storage.read_config(folder, DENSITY, CLASSIFIER)
    kind, model = config["kind"], config["model"]
    if source is None:
        Run.open(folder)  # raises an error for a model that was saved without a run
    settings = from_config(SETTINGS[kind], folder, config) if "settings" in config else SETTINGS[kind]()
    if source is None or (settings.data.source and settings.data.source in (source, os.path.realpath(source))):
        dataset = LOAD[kind](**dataclasses.asdict(settings.data), seed=settings.run.seed)
        if dataset.digest() != config["data"]["sha256"]:
            raise InputError(
                f"{dataset.name} has changed since {folder} was trained on it, so its test part is unknown: name the "
                "data to evaluate on"
            )
        return dataset

    unknown = {"shape": model["shape"], "levels": model["levels"], "columns": [], "classes": [], "context": []}
    trained = {**unknown, **config.get("data", {})}
    if kind == DENSITY and model["context"] and not trained["context"]:
        raise InputError(f"{folder} is a density given {model['context']} numbers without names: use it by cnf.load")
    options: dict[str, Any] = {"image_size": settings.data.image_size} if is_images(source) else {}
    if kind == CLASSIFIER:
        options["target"] = None if is_images(source) else settings.data.target
    elif trained["context"]:
        given = trained["context"] == trained["classes"]
        options |= {"conditional": True} if given else {"context": tuple(trained["context"])}
    if getattr(settings.data, "jitter", False):
        print(f"note: {folder} was trained on jittered data; {source} is taken as it is", file=sys.stderr)
    dataset = LOAD[kind](source, seed=settings.run.seed, data_root=settings.data.data_root, split=False, **options)
    shape = tuple(trained["shape"])
    if dataset.levels is None and len(dataset.columns) == math.prod(shape) and not dataset.test.mapped:
        test = dataclasses.replace(dataset.test, x=dataset.test.x.view(-1, *shape))  # such as pixels in columns
        dataset = dataclasses.replace(dataset, test=test, levels=trained["levels"])
    return dataset.match(trained, folder)
