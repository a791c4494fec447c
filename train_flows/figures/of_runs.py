"""Pictures of a run: the arrays to compute for them, and the files they go to."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL.Image import Image
from torch import Tensor

from anode import Classifier, SolverError
from anode.storage import written_atomically
from cnf import Density, Flow, LiftedFlow
from train_flows.data import Dataset, class_contexts
from train_flows.evaluation import chunks, likelihood, to_model
from train_flows.figures import image_plots, mixed_plots, plots, table_plots
from train_flows.run import distributed
from train_flows.run.folder import SAMPLES_FOLDER, Run
from train_flows.settings import Training

POINTS = 20_000  # data points and samples in two dimensions
CORNER_SAMPLES = 5000
CURVE_POINTS = 400  # of a density in one dimension
DPI = 130
TEST_SAMPLES, TEST_IMAGES = 2000, 1000  # of a classifier
DRAWS = 16  # importance samples of a density on a grid
SEED = 0  # of the noise of all pictures of images
IMAGES, CLASSES = 64, 10  # images in a square; classes in rows, and images of each
PAIRS, STEPS_BETWEEN = 8, 10  # pairs of test images, and images on the way from one to the other, both included
MOVING, FRAMES, FEWER_FRAMES = 25, 45, 12  # images; times of one ODE, of several
COST = "evaluations of the field"
SIGNS = ("up to 0", "above 0")
SOLVES = {"nfe_forward": "training step, forward", "nfe_backward": "training step, backward"}
Picture = Figure | Iterator[Image]


def draw_density(run: Run, dataset: Dataset, model: Density) -> list[Path]:
    """Draw the curves of training, samples and the flow; return the files, and the folder of snapshots if there is one.

    A failed solve leaves a note.
    """
    if dataset.levels is not None:
        pictures = _image_pictures(dataset, model)
    elif dataset.shape == (2,) and not dataset.context:
        pictures = _plane_pictures(dataset, model)
    else:
        pictures = _table_pictures(dataset, model)
    snapshots = run.folder / SAMPLES_FOLDER
    return [*save_pictures(run, density_curves(run, dataset), pictures), *([snapshots] if snapshots.is_dir() else [])]


def draw_classifier(run: Run, dataset: Dataset, model: Classifier) -> list[Path]:
    """Draw the curves of training, test samples with their features, and images taken for another class."""
    names = {"loss": "loss", **({"accuracy": "accuracy"} if model.target is None else {"RMSE": "rmse"})}
    panels = {label: {f"train_{n}": "training samples", f"validation_{n}": "validation"} for label, n in names.items()}
    curves = plots.run_curves(drawn_records(run.records()), {**panels, COST: SOLVES})
    return save_pictures(run, curves, _classifier_pictures(dataset, model))


@torch.no_grad()
def save_pictures(run: Run, curves: Figure, pictures: Iterable[tuple[str, Picture]]) -> list[Path]:
    """Write curves, and pictures as they are computed until a solve fails, which leaves a note; return the files."""
    written = []
    try:
        for name, picture in itertools.chain([("curves.png", curves)], pictures):
            path = run.folder / name
            if isinstance(picture, Figure):
                picture.savefig(path, dpi=DPI)
            else:
                plots.save_gif(picture, path)
            written.append(path)
    except (SolverError, np.linalg.LinAlgError) as error:
        print(f"note: a picture is missing: {error}")
    return written


# Curves


def drawn_records(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return records without solves that did not take place."""
    return [{name: value for name, value in r.items() if value or not name.startswith("nfe_")} for r in records]


def likelihood_panels(unit: str = "nats") -> plots.Panels:
    """Return the panels of the training of a density: likelihood, flow matching and cost, each in one unit."""
    likelihood = {"nll": "validation", "loss": "training, with any penalties"}
    cost = {"nfe_log_prob": "validation, log_prob", **SOLVES}
    panels = {f"negative log-likelihood in {unit}": likelihood, "loss of flow matching": {"matching_loss": "training"}}
    return {**panels, COST: cost}


def density_curves(run: Run, dataset: Dataset) -> Figure:
    """Draw losses, likelihoods and evaluations; the likelihood of images is in bits/dim."""
    records = drawn_records(run.records())
    unit, size = ("bits/dim", math.log(2) * dataset.shape.numel()) if dataset.levels else ("nats", 1)
    records = [record | {name: record[name] / size for name in ("nll", "loss") if name in record} for record in records]
    return plots.run_curves(records, likelihood_panels(unit))


# Points and tables


def _plane_pictures(dataset: Dataset, model: Density) -> Generator[tuple[str, Picture]]:
    """Yield data, density and samples in the plane, and the flow of base samples to the data."""
    data = dataset.train.head(POINTS).x.numpy()
    box = plots.extent(data)
    times = np.linspace(0, 1, FRAMES)
    frames = model.sample_paths(POINTS, times.tolist()).cpu().numpy()
    log_density = _log_density(model, plots.grid(box))
    yield "samples.png", plots.density_2d(data, log_density, frames[-1, : len(data)], dataset.columns)
    yield "flow.gif", plots.flow_animation(frames, times.tolist(), box)


def _table_pictures(dataset: Dataset, model: Density) -> Generator[tuple[str, Picture]]:
    """Yield the marginals of data and samples, of columns and contexts in pairs; of one column, with the density."""
    data = dataset.train.head(CORNER_SAMPLES)
    samples = model.sample(len(data), to_model(model, data.c)).cpu()
    if dataset.kinds:
        given = [dataclasses.replace(column, name=f"{column.name} (given)") for column in dataset.given]
        columns = [*dataset.kinds, *given]
        days = torch.tensor([np.datetime64(column.first or 0, "D").astype(int) for column in columns])
        given_cells = data.x.new_zeros(len(data), 0) if data.c is None else data.c
        x, y = ((torch.cat([part, given_cells], 1) + days).numpy() for part in (data.x, samples))
        categories = {column.name: column.categories for column in columns if column.is_category}
        log = {column.name for column in columns if column.scale == "log"}
        dates = {column.name for column in columns if column.kind == "date"}
        names, learned, how = [column.name for column in columns], len(dataset.kinds), (categories, log, dates)
        yield "samples.png", mixed_plots.corner(x, y, names, *how)
        yield "marginals.png", mixed_plots.marginals(x[:, :learned], y[:, :learned], names[:learned], *how)
        return
    if dataset.shape.numel() == 1 and not dataset.context:
        points = np.linspace(*plots.limits(data.x.numpy().ravel()), CURVE_POINTS)
        log_density = _log_density(model, points.reshape(-1, *dataset.shape))
        sets = data.x.flatten().numpy(), samples.flatten().numpy()
        yield "samples.png", plots.density_1d(*sets, points, log_density, *dataset.columns)
        return
    given = [] if data.c is None else [data.c]
    sets = {name: torch.cat([x.flatten(1), *given], 1) for name, x in (("data", data.x), ("samples", samples))}
    columns = [*dataset.columns, *(f"{name} (given)" for name in dataset.context)]
    yield "samples.png", table_plots.corner({name: x.numpy() for name, x in sets.items()}, columns)


def _log_density(model: Density, points: np.ndarray) -> np.ndarray:
    """Return the log-densities (N,) of points (N, *S)."""
    parts = to_model(model, torch.from_numpy(points)).split(CORNER_SAMPLES)
    return torch.cat([likelihood.log_prob(model, part, DRAWS) for part in parts]).cpu().numpy()


# Classifiers


def _classifier_pictures(dataset: Dataset, model: Classifier) -> Generator[tuple[str, Picture]]:
    """Yield images taken for another class, and test samples with their features."""
    test = dataset.test.head(TEST_IMAGES if dataset.levels else TEST_SAMPLES)
    assert test.y is not None, "classifiers have targets"
    states = torch.cat([model.features(to_model(model, test.x[rows])) for rows in chunks(test)])
    middle = 0 if model.target is None else model.target.mean[0].cpu()  # between signs, or low and high values
    targets = (test.y if dataset.classes else test.y[:, 0] > middle).numpy().astype(int)
    if dataset.levels and dataset.classes:
        scores = model.readout(states).softmax(1).cpu().numpy()
        shown = image_plots.mistakes(test.x.numpy(), targets, scores, dataset.classes, dataset.levels - 1)
        yield "mistakes.png", shown
    x, title = test.x.flatten(1), "inputs"
    if dataset.is_table:  # columns of any unit, as the classifier sees them
        x, title = (x - x.mean(0)) / x.std(0).clamp(min=torch.finfo(x.dtype).tiny), "standardized inputs"
    sets = {title: x.numpy(), "features": states.cpu().flatten(1).numpy()}
    sides = SIGNS if model.target is None else (f"up to {middle:.4g}", f"above {middle:.4g}")
    yield (
        "features.png",
        plots.features(sets, targets, dataset.classes or sides, "class" if dataset.classes else "target"),
    )


# Images


def draw_snapshot(run: Run, training: Training, dataset: Dataset, model: Density) -> None:
    """Draw samples of the same noise at every validation, ``samples/step-000500.png``; a failed solve leaves a note."""
    records = run.records()
    last = records[-1]["step"] if records else None
    if distributed.rank() or last == training.steps:
        return
    step = 0 if last is None else min(last + training.validate_every, training.steps)
    try:
        images = sample_fixed_noise(model, IMAGES, all_classes(dataset, IMAGES))
    except SolverError as error:
        print(f"note: the samples of step {step} are missing: {error}")
        return
    (run.folder / SAMPLES_FOLDER).mkdir(exist_ok=True)
    with written_atomically(run.folder / SAMPLES_FOLDER / f"step-{step:06d}.png") as file:
        image_plots.image_panels({f"samples at step {step}": images.numpy()}, _max_value(dataset)).savefig(file)


def _image_pictures(dataset: Dataset, model: Density) -> Generator[tuple[str, Picture]]:
    """Yield samples next to data, images between test images, and the flow of noise to images."""
    max_value = _max_value(dataset)
    yield "samples.png", _samples_and_data(dataset, model)
    pairs, flow = pairs_to_interpolate(dataset), model.flow if isinstance(model, LiftedFlow) else model
    if isinstance(flow, Flow) and pairs is not None:  # nothing connects the components of a mixture of flows
        start, end, c = to_model(model, pairs)
        with _fixed_noise(model):
            between = interpolate(model, start, end, np.linspace(0, 1, STEPS_BETWEEN), c).cpu().numpy()
        rows = {"from one test image to another, by way of the base": between.reshape(-1, *between.shape[2:])}
        yield "interpolations.png", image_plots.image_panels(rows, max_value, STEPS_BETWEEN)
    times = np.linspace(0, 1, FRAMES if len(likelihood.odes(model)) == 1 else FEWER_FRAMES)
    c = to_model(model, all_classes(dataset, MOVING))
    with _fixed_noise(model):
        frames = model.sample_paths(MOVING, times.tolist(), c).cpu().numpy()
    yield "flow.gif", image_plots.image_animation(frames, times.tolist(), max_value)


def _samples_and_data(dataset: Dataset, model: Density) -> Figure:
    """Draw squares of data and samples; of a density given the class, a row for each of the first classes."""
    data = dataset.train
    if not dataset.context:
        sets = {"data": data.x[:IMAGES].numpy(), "samples": sample_fixed_noise(model, IMAGES).numpy()}
        return image_plots.image_panels(sets, _max_value(dataset))
    assert data.y is not None, "conditional images have classes"
    y = torch.arange(min(CLASSES, len(dataset.classes))).repeat(CLASSES)
    samples = sample_fixed_noise(model, len(y), class_contexts(y, len(dataset.classes)))
    sets = {"data": (data.x.numpy(), data.y.numpy()), "samples": (samples.numpy(), y.numpy())}
    return image_plots.images_by_class(sets, dataset.classes, _max_value(dataset), CLASSES)


def pairs_to_interpolate(dataset: Dataset) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Return test images, and others to go to from them; of a density given the class, pairs of one class with it.

    None if no class has two test images.
    """
    test = dataset.test
    if test.c is None or test.y is None:
        start, end = test.x[: 2 * PAIRS].split(min(PAIRS, len(test.x) // 2))[:2]
        return start, end, None
    members = [(test.y == k).nonzero().flatten()[:2] for k in range(len(dataset.classes))]
    pairs = [rows for rows in members if len(rows) == 2][:PAIRS]
    if not pairs:
        return None
    first, second = torch.stack(pairs).T
    return test.x[first], test.x[second], test.c[first]


def all_classes(dataset: Dataset, n: int) -> Tensor | None:
    """Return all classes in turn as contexts (n, K); None for a density that is not given the class."""
    k = len(dataset.context)
    return class_contexts(torch.arange(n) % k, k) if k else None


@torch.no_grad()
def sample_fixed_noise(model: Density, n: int, c: Tensor | None = None) -> Tensor:
    """Draw samples (n, C, H, W), on the CPU, from the same noise in every call."""
    with _fixed_noise(model):
        return model.sample(n, to_model(model, c)).cpu()


@torch.no_grad()
def interpolate(
    model: Density, start: Tensor, end: Tensor, shares: Sequence[float] | np.ndarray, c: Tensor | None = None
) -> Tensor:
    """Return samples between others, by way of the base; of a lifted flow, of its y = lift(x), projected.

    Base points go along the great circle. Independent z0, z1 ~ N(0, I) in many dimensions are nearly orthogonal, so
    that all of it is distributed like the base, where the middle of a straight line is shorter by sqrt(2).

    Args:
        model: a flow, or a lifted one.
        start: samples (B, *S).
        end: samples (B, *S).
        shares: T numbers from 0 (start) to 1 (end).
        c: contexts (B, K) of start and end, or None.

    Returns:
        Samples (B, T, *S).
    """
    flow = model.flow if isinstance(model, LiftedFlow) else model
    assert isinstance(flow, Flow), "no mixture of flows"
    ends = [model.lift(x.to(model.like.dtype), c).point if isinstance(model, LiftedFlow) else x for x in (start, end)]
    z0, z1 = (flow.encode(y, c) for y in ends)
    found = [flow.decode(slerp(z0, z1, float(share)), c) for share in shares]
    return torch.stack([model.lift.project(y) if isinstance(model, LiftedFlow) else y for y in found], 1)


def slerp(z0: Tensor, z1: Tensor, share: float) -> Tensor:
    """Return points (B, *S) on great circles: (sin((1 - s) w) z0 + sin(s w) z1) / sin(w) with the angle w between them.

    References:
        Shoemake 1985, Animating rotation with quaternion curves; White 2016, arXiv 1609.04468.
    """
    cosine = torch.cosine_similarity(z0.flatten(1), z1.flatten(1)).clamp(-1 + 1e-6, 1 - 1e-6)  # else sin(w) = 0
    angle = cosine.acos().view(-1, *[1] * (z0.ndim - 1))
    return (torch.sin((1 - share) * angle) * z0 + torch.sin(share * angle) * z1) / angle.sin()


@contextmanager
def _fixed_noise(model: Density) -> Generator[None]:
    """Use the same random numbers each time, and leave those of the program as they were."""
    device = model.like.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(SEED)
        yield


def _max_value(dataset: Dataset) -> int:
    assert dataset.levels is not None, "pixels have levels"
    return dataset.levels - 1
