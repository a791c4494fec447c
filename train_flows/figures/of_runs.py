"""Pictures of a run: the arrays to compute for them, and the files they go to."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from anode import Classifier, SolverError
from anode.storage import written_atomically
from cnf import Density, Flow, LiftedFlow
from train_flows.data import Dataset, class_contexts
from train_flows.evaluation import chunks, likelihood, to_model
from train_flows.figures import image_plots, plots
from train_flows.run import distributed
from train_flows.run.folder import SAMPLES_FOLDER, Run
from train_flows.settings import Training

POINTS = 20_000  # data points and samples in two dimensions
CORNER_SAMPLES = 5000
TEST_SAMPLES, TEST_IMAGES = 2000, 1000  # of a classifier
DRAWS = 16  # importance samples of a density on a grid
SEED = 0  # of the noise of all pictures of images
IMAGES, CLASSES = 64, 10  # images in a square; classes in rows, and images of each
PAIRS, STEPS_BETWEEN = 8, 10  # pairs of test images, and images on the way from one to the other, both included
MOVING, FRAMES, FEWER_FRAMES, HELD = 25, 45, 12, 15  # images; times of one ODE, of several; repeats of the last frame
CURVES = {"nats": ("loss", "nll"), "evaluations of the field": ("nfe_forward", "nfe_backward", "nfe_log_prob")}


@torch.no_grad()
def draw_density(run: Run, dataset: Dataset, model: Density) -> None:
    """Draw samples, the flow and the curves of training; a picture whose solve fails is replaced by a note."""
    curves = {"bits/dim": ("bits_per_dim",)} | CURVES if dataset.levels else CURVES
    plots.run_curves(run.records(), curves).savefig(run.folder / "curves.png", dpi=120)
    try:
        if dataset.levels is not None:
            _draw_images(run, dataset, model)
        elif dataset.shape == (2,) and not dataset.context:
            _draw_plane(run, dataset, model)
        else:
            data = dataset.train.head(CORNER_SAMPLES)
            samples = model.sample(len(data), to_model(model, data.c)).cpu()
            sets = {"data": data.x.flatten(1).numpy(), "samples": samples.flatten(1).numpy()}
            plots.corner(sets, dataset.columns).savefig(run.folder / "samples.png", dpi=150)
    except SolverError as error:
        print(f"note: a picture is missing: {error}")


@torch.no_grad()
def draw_classifier(run: Run, dataset: Dataset, model: Classifier) -> None:
    """Draw inputs and features of test samples, images taken for another class, and the curves of training."""
    names = ("loss", "accuracy" if model.target is None else "rmse")
    panels = {name: [f"{part}_{name}" for part in ("train", "validation", "test")] for name in names}
    panels["evaluations of the field"] = ["nfe_forward", "nfe_backward"]
    plots.run_curves(run.records(), panels).savefig(run.folder / "curves.png", dpi=120)
    test = dataset.test.head(TEST_IMAGES if dataset.levels else TEST_SAMPLES)
    assert test.y is not None, "classifiers have targets"
    try:
        states = torch.cat([model.features(to_model(model, test.x[rows])) for rows in chunks(test)])
        middle = 0 if model.target is None else model.target.mean[0].cpu()  # between signs, or low and high values
        targets = (test.y if dataset.classes else test.y[:, 0] > middle).numpy().astype(int)
        if dataset.levels and dataset.classes:
            scores = model.readout(states).softmax(1).cpu().numpy()
            shown = image_plots.mistakes(test.x.numpy(), targets, scores, dataset.classes, dataset.levels - 1)
            shown.savefig(run.folder / "mistakes.png", dpi=120)
        sets = {"inputs": test.x.flatten(1).numpy(), "features": states.cpu().flatten(1).numpy()}
        plots.features(sets, targets).savefig(run.folder / "features.png", dpi=120)
    except (SolverError, np.linalg.LinAlgError) as error:
        print(f"note: a picture is missing: {error}")


def _draw_plane(run: Run, dataset: Dataset, model: Density) -> None:
    """Draw data, density and samples, and the GIF of base samples that flow to the data."""
    data = dataset.train.head(POINTS).x.numpy()
    box = plots.extent(data)
    points = to_model(model, torch.from_numpy(plots.grid(box)))
    log_density = torch.cat([likelihood.log_prob(model, part, DRAWS) for part in points.split(CORNER_SAMPLES)])
    samples = torch.cat([model.sample(CORNER_SAMPLES) for _ in range(POINTS // CORNER_SAMPLES)])
    figure = plots.density_2d(data, log_density.cpu().numpy(), samples.cpu().numpy(), dataset.columns)
    figure.savefig(run.folder / "samples.png", dpi=150)
    times = np.linspace(0, 1, FRAMES)
    frames = model.sample_paths(POINTS, times.tolist()).cpu().numpy()
    plots.save_gif(plots.flow_animation(*_with_last_held(frames, times), box), run.folder / "flow.gif")


def _with_last_held(frames: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Repeat the last frame, so that a GIF stays on it for a while."""
    held = [*range(len(times)), *[len(times) - 1] * HELD]
    return frames[held], times[held].tolist()


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


def _draw_images(run: Run, dataset: Dataset, model: Density) -> None:
    """Draw samples next to data, images between test images, and the GIF of noise that flows to images."""
    folder, max_value = run.folder, _max_value(dataset)
    _samples_and_data(dataset, model).savefig(folder / "samples.png", dpi=120)
    pairs, flow = pairs_to_interpolate(dataset), model.flow if isinstance(model, LiftedFlow) else model
    if isinstance(flow, Flow) and pairs is not None:  # nothing connects the components of a mixture of flows
        start, end, c = to_model(model, pairs)
        with _fixed_noise(model):
            between = interpolate(model, start, end, np.linspace(0, 1, STEPS_BETWEEN), c).cpu().numpy()
        rows = {"from one test image to another, by way of the base": between.reshape(-1, *between.shape[2:])}
        image_plots.image_panels(rows, max_value, STEPS_BETWEEN).savefig(folder / "interpolations.png", dpi=120)
    times = np.linspace(0, 1, FRAMES if len(likelihood.odes(model)) == 1 else FEWER_FRAMES)
    c = to_model(model, all_classes(dataset, MOVING))
    with _fixed_noise(model):
        frames = model.sample_paths(MOVING, times.tolist(), c).cpu().numpy()
    moving = image_plots.image_animation(*_with_last_held(frames, times), max_value)
    plots.save_gif(moving, folder / "flow.gif")


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
