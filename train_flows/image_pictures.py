"""The pictures of a density of images: what to compute for them and where they go."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from anode import SolverError
from anode.storage import written_atomically
from cnf import Density, Flow, LiftedFlow
from train_flows import image_plots, likelihood, plots, processes
from train_flows.checkpoint import SAMPLES, Run
from train_flows.data import Dataset
from train_flows.data.dataset import indicators
from train_flows.precision import suited
from train_flows.training import Training

SEED = 0  # of the noise that pictures of samples are made of, the same in all of them
SHOWN = 64  # samples
ROWS = 10  # classes at most, and samples of each
PAIRS, BETWEEN = 8, 10  # of test images, and images on the way from one to the other, both included
NEIGHBOURS = 6  # of each of so many samples:
COMPARED = 8
TEMPERATURES, COOLED = (0.7, 0.8, 0.9, 1.0), 10  # samples at each
MOVING, FRAMES, HELD = 25, 45, 15  # samples, times, and how often the last frame is repeated
FEWER_FRAMES = 12  # of several ODEs, each of which takes a solve for every time
CHUNK = 10_000  # training images compared at once


def followed(
    validate: Callable[[], dict[str, float]], run: Run, model: Density, training: Training, dataset: Dataset
) -> Callable[[], dict[str, float]]:
    """A validation that leaves a picture of samples, ``samples/step-000500.png`` in the run folder.

    All are made of the same noise, so that they show how samples come to be; the random numbers of training are as
    they would be without. The first of several processes draws. A solve that fails leaves a note.

    Args:
        validate: what is done first, and whose figures are returned.
        run: the folder, whose records tell the step.
        model: the density, of images.
        training: says when validations are.
        dataset: what it is trained on.
    """

    def figures_and_picture() -> dict[str, float]:
        figures = validate()
        step = _step(run, training)
        if processes.rank() == 0 and step is not None:
            try:
                images = alike(model, SHOWN, contexts(dataset, SHOWN))
            except SolverError as error:
                print(f"note: the samples of step {step} are missing: {error}")
            else:
                (run.folder / SAMPLES).mkdir(exist_ok=True)
                with written_atomically(run.folder / SAMPLES / f"step-{step:06d}.png") as file:
                    image_plots.grid(images.numpy(), _top(dataset)).savefig(file)
        return figures

    return figures_and_picture


def _step(run: Run, training: Training) -> int | None:
    """The step of the record to come; None after the last."""
    records = run.records()
    if not records:
        return 0
    last = records[-1]["step"]
    return None if last == training.steps else min(last + training.validate_every, training.steps)


@torch.no_grad()
def draw(run: Run, dataset: Dataset, model: Density) -> None:
    """Draw samples beside data, at temperatures and beside what they resemble, images in between, and the flow.

    Of a density given the class, samples are of all classes in turn.

    Args:
        run: the folder.
        dataset: images.
        model: their density.
    """
    folder, top = run.folder, _top(dataset)
    _beside_data(dataset, model).savefig(folder / "samples.png")
    c = contexts(dataset, COOLED)
    cooled = [alike(model, COOLED, c, temperature).numpy() for temperature in TEMPERATURES]
    names = [f"{temperature}" for temperature in TEMPERATURES]
    title = "samples of the same noise at a temperature"
    image_plots.rows(np.stack(cooled), top, title, names).savefig(folder / "temperatures.png")
    images = alike(model, COMPARED, contexts(dataset, COMPARED))
    near = nearest(images, dataset.train, NEIGHBOURS)
    titles = ("sample", "nearest training images")
    image_plots.beside(images.numpy(), near.numpy(), top, titles).savefig(folder / "neighbours.png")
    pairs = _pairs(dataset)
    if interpolates(model) and pairs is not None:
        start, end, c = pairs
        with _same_noise(model):
            between = interpolated(model, suited(model, start), suited(model, end), np.linspace(0, 1, BETWEEN), c)
        figure = image_plots.rows(between.cpu().numpy(), top, "from one test image to another, by way of the base")
        figure.savefig(folder / "interpolations.png")
    n = FRAMES if len(likelihood.odes(model)) == 1 else FEWER_FRAMES
    times, held = np.linspace(0, 1, n), [*range(n), *[n - 1] * HELD]
    with _same_noise(model):
        frames = model.sample_paths(MOVING, times.tolist(), _suited(model, contexts(dataset, MOVING))).cpu().numpy()
    moving = image_plots.animation(frames[held], times[held].tolist(), top)
    plots.save_gif(moving, folder / "flow.gif", dpi=image_plots.DPI)


def _beside_data(dataset: Dataset, model: Density) -> Figure:
    """Data and samples: squares of them; of a density given the class, a row for each of the first classes."""
    classes = dataset.given
    if classes is None:
        sets = {"data": dataset.train[:SHOWN].numpy(), "samples": alike(model, SHOWN).numpy()}
        return image_plots.squares(sets, _top(dataset))
    y = torch.arange(min(ROWS, len(classes.names))).repeat(ROWS)
    samples = alike(model, len(y), indicators(y, len(classes.names)))
    sets = {"data": (dataset.train.numpy(), classes.train.numpy()), "samples": (samples.numpy(), y.numpy())}
    return image_plots.in_classes(sets, classes.names, _top(dataset), ROWS)


def _pairs(dataset: Dataset) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Test images from which to go to others; of a density given the class, to those of the same class, with it.

    None where no class has two.
    """
    x, classes = dataset.test, dataset.given
    if classes is None:
        start, end = x[: 2 * PAIRS].split(min(PAIRS, len(x) // 2))[:2]
        return start, end, None
    members = [(classes.test == k).nonzero().flatten()[:2] for k in range(len(classes.names))]
    paired = [rows for rows in members if len(rows) == 2][:PAIRS]
    if not paired:
        return None
    found = torch.stack(paired)
    return x[found[:, 0]], x[found[:, 1]], indicators(classes.test[found[:, 0]], len(classes.names))


def contexts(dataset: Dataset, n: int) -> Tensor | None:
    """All classes in turn as contexts (n, K); None for a density that is not given the class."""
    if dataset.given is None:
        return None
    k = len(dataset.given.names)
    return indicators(torch.arange(n) % k, k)


@torch.no_grad()
def alike(model: Density, n: int, c: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Samples (n, C, H, W) on the CPU, given contexts (n, K), of the same noise in every call."""
    with _same_noise(model):
        return model.sample(n, _suited(model, c), temperature).cpu()


def _suited(model: Density, c: Tensor | None) -> Tensor | None:
    return None if c is None else suited(model, c)


def _top(dataset: Dataset) -> int:
    """The value of a full pixel."""
    assert dataset.levels is not None, "pixels have levels"
    return dataset.levels - 1


def nearest(x: Tensor, others: Tensor, k: int) -> Tensor:
    """The k of the other samples (M, *S) that are next to each x (N, *S) in Euclidean distance, (N, k, *S)."""
    apart = [torch.cdist(x.flatten(1).float(), part.flatten(1).float()) for part in others.split(CHUNK)]
    return others[torch.cat(apart, 1).topk(min(k, len(others)), largest=False).indices]


def interpolates(model: Density) -> bool:
    """Whether :func:`interpolated` knows the way: not of a mixture of flows, between whose components there is none."""
    return isinstance(model.flow if isinstance(model, LiftedFlow) else model, Flow)


@torch.no_grad()
def interpolated(
    model: Density, start: Tensor, end: Tensor, shares: Sequence[float] | np.ndarray, c: Tensor | None = None
) -> Tensor:
    """What lies between samples, by way of the base; of a lifted flow, of its y = lift(x), projected.

    Base points go along the great circle. For independent z0, z1 ~ N(0, I) in many dimensions, which are as good as
    orthogonal, all of it is distributed like the base, where the middle of a straight line is shorter by sqrt(2): a
    sample at temperature 0.7.

    Args:
        model: a flow, or a lifted one.
        start: (B, *S).
        end: (B, *S).
        shares: T numbers from 0 (start) to 1 (end).
        c: contexts (B, K) of start and end alike, or None.

    Returns:
        (B, T, *S).
    """
    flow = model.flow if isinstance(model, LiftedFlow) else model
    assert isinstance(flow, Flow), "see interpolates"
    ends = [model.lift(x).point if isinstance(model, LiftedFlow) else x for x in (start, end)]
    c = _suited(model, c)
    z0, z1 = (flow.encode(y, c) for y in ends)
    found = [flow.decode(on_great_circle(z0, z1, float(share)), c) for share in shares]
    return torch.stack([model.lift.project(y) if isinstance(model, LiftedFlow) else y for y in found], 1)


def on_great_circle(z0: Tensor, z1: Tensor, share: float) -> Tensor:
    """Points (B, *S) between others: (sin((1 - s) w) z0 + sin(s w) z1) / sin(w), w being the angle between them.

    References:
        Shoemake 1985, Animating rotation with quaternion curves (slerp); White 2016, arXiv 1609.04468.
    """
    axes = [1] * (z0.ndim - 1)
    cosine = torch.cosine_similarity(z0.flatten(1), z1.flatten(1)).clamp(-1 + 1e-6, 1 - 1e-6)  # where sin(w) = 0
    angle = cosine.acos().view(-1, *axes)
    return (torch.sin((1 - share) * angle) * z0 + torch.sin(share * angle) * z1) / angle.sin()


@contextmanager
def _same_noise(model: Density) -> Generator[None]:
    """Random numbers that are the same each time, and leave those of the program as they were."""
    device = model.like.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(SEED)
        yield
