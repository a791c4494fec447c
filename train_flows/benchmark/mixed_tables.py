"""``train-flows benchmark mixed DATA ...``: the default density of tables of several kinds, next to other models.

Each table is learnt by ``train-flows density TABLE --seed SEED`` without further options, and other models learn the
same training rows, without the columns that it leaves out. Boosted trees tell samples of each model from test rows.
Anomalies are all test rows once more with a random pair of columns permuted; models are trained on clean rows, and the
figure is the area under the ROC curve of telling these from the test rows by their scores. The density of a target
given all other columns is learnt by the option ``--given``. Minutes are those of the processor for the whole program.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

import cnf
from anode import InputError
from anode.errors import config
from cnf import Density
from train_flows import benchmark, density
from train_flows.benchmark.table_peers import GaussianCopula, boosted_nll, isolation_scores, plant_anomalies
from train_flows.command_line import parse, read
from train_flows.data import Dataset, Split, frames
from train_flows.evaluation import CHUNK_SAMPLES, in_chunks, two_sample
from train_flows.results_pages import mixed_rows
from train_flows.run.folder import Run
from train_flows.settings import Count, DensitySettings, Positive

OURS, COPULA, FOREST, TREES = "density", "Gaussian copula", "isolation forest", "boosted trees"
GENERATOR = "TVAE"  # of the package ctgan, if it is installed
SAMPLES = 100_000  # of which none may violate a bound
LOWEST = 1e300  # minus the log-density of rows that have none


@config
class Settings:
    """Learn the density of tables of several kinds, and compare samples, scores and likelihoods with other models.

    Attributes:
        sources: paths of tables
        target: positive column whose likelihood given all others is compared, in tables that have it
        minutes: limit of each training; none if omitted
        seeds: number of seeds, from 0, of split, weights and batches
        budget_minutes: start no further table after this time; the same command continues
        out: JSON file of results, to which missing runs are added
        overwrite: replace existing results
    """

    positional: ClassVar = {"sources": "DATA"}
    sources: tuple[str, ...] = ()
    target: str | None = None
    minutes: Positive | None = None
    seeds: Count = 3
    budget_minutes: Positive | None = None
    out: Path = Path("mixed-tables.json")
    overwrite: bool = False


def main(args: list[str]) -> None:
    """Run the command line ``train-flows benchmark mixed``."""
    settings = read(Settings, args, "benchmark mixed")
    if not settings.sources:
        raise InputError("no table given: pass paths of tables with words, missing cells or other kinds of columns")
    deadline = time.monotonic() + 60 * (settings.budget_minutes or math.inf)
    check_target([load([source]) for source in settings.sources], settings.target)  # before anything runs
    earlier = settings.out.is_file() and not settings.overwrite
    benchmark.prepare(settings.out, overwrite=True)
    contests: list[dict[str, Any]] = json.loads(settings.out.read_text("utf-8"))["contests"] if earlier else []
    done = {(contest["data"], contest["seed"]) for contest in contests}
    if importlib.util.find_spec("ctgan") is None:
        print(f"note: {GENERATOR} is left out, for the package ctgan is not installed")
    for seed, source in itertools.product(range(settings.seeds), settings.sources):
        if (Path(source).name, seed) not in done and time.monotonic() <= deadline:
            limit = [] if settings.minutes is None else ["--budget-minutes", str(settings.minutes)]
            contests.append(contest([source, "--seed", str(seed), "--device", "cpu", *limit], seed, settings.target))
            benchmark.write(settings.out, __doc__, contests=contests)
    print(pd.DataFrame(mixed_rows({"contests": contests})).T.to_string(header=False), settings.out, sep="\n")


def load(args: list[str]) -> Dataset:
    """Return the data of a command line ``train-flows density``.

    Raises:
        InputError: for a table of numbers alone.
    """
    dataset = density.load(parse(density.PROGRAM, DensitySettings(), args)[0])
    if not dataset.kinds:
        raise InputError(f"{args[0]} holds numbers alone: use train-flows benchmark tabular")
    return dataset


def check_target(datasets: Sequence[Dataset], target: str | None) -> None:
    """Raise an :class:`anode.InputError` for a target that no table has, or whose values are not all positive."""
    own = [dataset for dataset in datasets if target in dataset.columns]
    if target is not None and not own:
        raise InputError(f"--target {target} is not a column of any table: choose another one, or omit it")
    for dataset in own:
        place = dataset.columns.index(str(target))
        if dataset.kinds[place].is_category or not (dataset.train.x[:, place] > 0).all():
            raise InputError(f"--target {target} of {dataset.name} must hold positive numbers: choose another column")


def contest(args: list[str], seed: int, target: str | None) -> dict[str, Any]:
    """Learn a table by the program with some arguments, and return its figures next to those of other models.

    Returns:
        ``nll`` and ``gaussian_nll`` in nats; ``classifier``, the accuracies for each model and for training rows, see
        :func:`~train_flows.evaluation.two_sample.classifier_test`; ``violations`` in 100,000 samples; ``anomalies``,
        areas under the curve for each model with pairs of any columns, and of numbers alone; and for a table with
        the target, ``target``: its NLL in nats given the others for each model. That of an ordinal column is of the
        probability of the recorded value, which for boosted trees is the density times the step.
    """
    started = time.process_time()
    dataset = load(args)
    model, result = learn(args)
    minutes, parts = (time.process_time() - started) / 60, parts_of(dataset)
    row = {
        "data": dataset.name,
        "seed": seed,
        "sha256": dataset.digest(),
        "minutes": minutes,
        "rows": {part: len(frame) for part, frame in parts.items()},
        "columns": len(dataset.columns),
        "left_out": [each.name for each in dataset.left_out],
        "nll": result["nll"],
        "gaussian_nll": result["gaussian_nll"],
        "classifier": classifiers(dataset, parts, seed, result["quality"]),
        "violations": violations(model, dataset, seed),
        "anomalies": anomalies(model, dataset, parts, seed),
    }
    if target in dataset.columns:
        others = [name for name in dataset.columns if name != target]
        nll = learn([*args, "--given", *others])[1]["nll"]
        value, error = boosted_nll(parts["train"], parts["validation"], parts["test"], target, seed)
        column = dataset.kinds[dataset.columns.index(target)]
        if column.kind == "ordinal":  # a probability, as the density gives it
            value -= math.log(column.step or 1.0)
        own = {name: nll[name] for name in ("value", "standard_error")}
        row["target"] = {"name": target, OURS: own, TREES: {"value": value, "standard_error": error}}
    return row


def learn(args: list[str]) -> tuple[Density, dict[str, Any]]:
    """Run ``train-flows density``, and return the stored model and the content of its ``result.json``."""
    with tempfile.TemporaryDirectory() as folder:
        density.main([*args, "--out", folder, "--overwrite"])
        model, result = cnf.load(folder), Run.open(folder, density.KIND).result()
    assert isinstance(model, Density), "of that kind"
    assert result is not None, "the program writes it"
    return model, result


def parts_of(dataset: Dataset) -> dict[str, pd.DataFrame]:
    """Return training, validation and test rows in the units of the table."""
    parts = ("train", "validation", "test")
    return {part: frames.to_frame(getattr(dataset, part).x.numpy(), dataset.kinds) for part in parts}


def classifiers(
    dataset: Dataset, parts: Mapping[str, pd.DataFrame], seed: int, quality: Mapping[str, Any]
) -> dict[str, Any]:
    """Return how well boosted trees tell the samples of each model from test rows."""
    train, test, count = parts["train"], parts["test"], quality["samples"]
    samples = {COPULA: GaussianCopula.fit(train, seed).sample(count, seed)} | generated(dataset, train, count, seed)
    judged = {
        name: two_sample.judge(frame, test, None, dataset.kinds, seed)["classifier"] for name, frame in samples.items()
    }
    return {OURS: quality["classifier"], **judged, "training rows": quality["classifier_train"]}


def generated(dataset: Dataset, train: pd.DataFrame, count: int, seed: int) -> dict[str, pd.DataFrame]:
    """Return samples of TVAE of the package ctgan with its defaults; none without it.

    A column with gaps has another one that says where they are, and its median or most frequent category in them.

    References:
        Xu et al. 2019, Modeling tabular data using conditional GAN, arXiv 1907.00503.
    """
    if importlib.util.find_spec("ctgan") is None:
        return {}
    model, filled = getattr(importlib.import_module("ctgan"), GENERATOR)(), train.copy()
    categories = [column.name for column in dataset.kinds if column.is_category]
    gaps = {name: f"{name} is missing" for name in train if train[name].isna().any()}
    for name, missing in gaps.items():
        filled[missing] = train[name].isna()
        filled[name] = train[name].fillna(train[name].mode()[0] if name in categories else train[name].median())
    torch.manual_seed(seed)
    np.random.seed(seed)
    model.fit(filled, [*categories, *gaps.values()])
    drawn = model.sample(count)
    return {GENERATOR: drawn.assign(**{of: drawn[of].mask(drawn[missing] == 1) for of, missing in gaps.items()})}


@torch.no_grad()
def violations(model: Density, dataset: Dataset, seed: int) -> dict[str, Any]:
    """Return the figures of :func:`~train_flows.evaluation.two_sample.violations` for 100,000 samples."""
    torch.manual_seed(seed)
    sizes = [min(CHUNK_SAMPLES, SAMPLES - start) for start in range(0, SAMPLES, CHUNK_SAMPLES)]
    samples = torch.cat([model.sample(size) for size in sizes])
    return two_sample.violations(samples.cpu().numpy(), dataset.kinds)


@torch.no_grad()
def anomalies(model: Density, dataset: Dataset, parts: Mapping[str, pd.DataFrame], seed: int) -> dict[str, Any]:
    """Return the areas under the curve of telling test rows from their copies with two permuted columns."""
    train, test = parts["train"], parts["test"]
    numbers = [column.name for column in dataset.kinds if not column.is_category]
    found: dict[str, Any] = {}
    for name, columns in (("any columns", list(test)), ("numbers", numbers)):
        if len(columns) < 2:
            continue
        planted = test.reset_index(drop=True).copy()
        planted[columns] = plant_anomalies(test[columns], seed, share=1.0)[0]
        rows = pd.concat([test, planted], ignore_index=True)
        labels = np.repeat([0, 1], len(test))
        torch.manual_seed(seed)
        x = torch.from_numpy(frames.to_rows(dataset.name, rows, dataset.kinds))
        log_p = torch.cat(in_chunks(model, Split(x), lambda x, c: model.log_prob(x, c).cpu(), "scoring"))
        scores = {
            OURS: -log_p.double().nan_to_num(-LOWEST, neginf=-LOWEST).numpy(),
            FOREST: isolation_scores(train, rows, seed),
        }
        found[name] = {by: float(roc_auc_score(labels, score)) for by, score in scores.items()}
    return found
