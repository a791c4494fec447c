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
from train_flows import class_rows, image_plots, plots, processes
from train_flows.checkpoint import SAMPLES, Run
from train_flows.data import Dataset
from train_flows.data.dataset import indicators
from train_flows.precision import suited
from train_flows.training import Training

SEED = 0  # of the noise that pictures of samples are made of, the same in all of them
SHOWN = 64  # samples
PAIRS, BETWEEN = 8, 10  # of test images, and images on the way from one to the other, both included
NEIGHBOURS = 6  # of each of so many samples:
COMPARED = 8
TEMPERATURES, COOLED = (0.7, 0.8, 0.9, 1.0), 10  # samples at each
MOVING, FRAMES, HELD = 25, 45, 15  # samples, times, and how often the last frame is repeated
CHUNK = 10_000  # training images compared at once


def followed(
    validate: Callable[[], dict[str, float]],
    run: Run,
    model: Density,
    training: Training,
    top: float,
    classes: Sequence[str] = (),
) -> Callable[[], dict[str, float]]:
    """A validation that leaves a picture of samples, ``samples/step-000500.png`` in the run folder.

    All are made of the same noise, so that they show how samples come to be; the random numbers of training are as
    they would be without. The first of several processes draws. A solve that fails leaves a note.

    Args:
        validate: what is done first, and whose figures are returned.
        run: the folder, whose records tell the step.
        model: the density, of images.
        training: says when validations are.
        top: value of a full pixel.
        classes: names of those that the samples are given, each in a row then.
    """

    def figures_and_picture() -> dict[str, float]:
        figures = validate()
        step = _step(run, training)
        if processes.rank() == 0 and step is not None:
            try:
                figure = _samples(model, top, classes)
            except SolverError as error:
                print(f"note: the samples of step {step} are missing: {error}")
            else:
                (run.folder / SAMPLES).mkdir(exist_ok=True)
                with written_atomically(run.folder / SAMPLES / f"step-{step:06d}.png") as file:
                    figure.savefig(file)
        return figures

    return figures_and_picture


def _samples(model: Density, top: float, classes: Sequence[str]) -> Figure:
    """Samples alone, of the same noise in every call."""
    if not classes:
        return image_plots.grid(alike(model, SHOWN).numpy(), top)
    return image_plots.in_classes({"samples": _given_each(model, classes)}, top, classes[: class_rows.ROWS])


def _given_each(model: Density, classes: Sequence[str]) -> np.ndarray:
    """Samples given the first classes, in rows of them (R, N, C, H, W)."""
    y = class_rows.labels(len(classes))
    images = alike(model, len(y), c=indicators(y, len(classes)))
    return images.numpy().reshape(-1, class_rows.COLUMNS, *images.shape[1:])


def _beside_data(dataset: Dataset, model: Density, top: float) -> Figure:
    """Data beside samples, in rows of their classes where samples are given these."""
    if dataset.given is None:
        sets = {"data": dataset.train[:SHOWN].numpy(), "samples": alike(model, SHOWN).numpy()}
        return image_plots.squares(sets, top)
    names, train = dataset.given.names, dataset.given.train
    shown = range(min(class_rows.ROWS, len(names)))
    data = class_rows.in_rows(dataset.train.numpy(), train.numpy(), shown)
    return image_plots.in_classes({"data": data, "samples": _given_each(model, names)}, top, names[: len(shown)])


def _step(run: Run, training: Training) -> int | None:
    """The step of the record to come; None after the last."""
    records = run.records()
    if not records:
        return 0
    last = records[-1]["step"]
    return None if last == training.steps else min(last + training.validate_every, training.steps)


@torch.no_grad()
def draw(run: Run, dataset: Dataset, model: Density, top: float) -> None:
    """Draw samples beside data, at temperatures and beside what they resemble, images in between, and the flow.

    Args:
        run: the folder.
        dataset: images.
        model: their density.
        top: value of a full pixel.
    """
    folder = run.folder
    _beside_data(dataset, model, top).savefig(folder / "samples.png")
    cooled = [alike(model, COOLED, temperature, _in_turn(dataset, COOLED)).numpy() for temperature in TEMPERATURES]
    names = [f"{temperature}" for temperature in TEMPERATURES]
    title = "samples of the same noise at a temperature"
    image_plots.rows(np.stack(cooled), top, title, names).savefig(folder / "temperatures.png")
    images = alike(model, COMPARED, c=_in_turn(dataset, COMPARED))
    near = nearest(images, dataset.train, NEIGHBOURS)
    titles = ("sample", "nearest training images")
    image_plots.beside(images.numpy(), near.numpy(), top, titles).savefig(folder / "neighbours.png")
    if interpolates(model) and dataset.given is None:
        start, end = suited(model, dataset.test[: 2 * PAIRS]).split(min(PAIRS, len(dataset.test) // 2))[:2]
        with _same_noise(model):
            between = interpolated(model, start, end, np.linspace(0, 1, BETWEEN).tolist()).cpu().numpy()
        figure = image_plots.rows(between, top, "from one test image to another, by way of the base")
        figure.savefig(folder / "interpolations.png")
    times, held = np.linspace(0, 1, FRAMES), [*range(FRAMES), *[FRAMES - 1] * HELD]
    with _same_noise(model):
        frames = model.sample_paths(MOVING, times.tolist(), _suited(model, _in_turn(dataset, MOVING))).cpu().numpy()
    plots.save_gif(
        image_plots.animation(frames[held], times[held].tolist(), top), folder / "flow.gif", dpi=image_plots.DPI
    )


@torch.no_grad()
def alike(model: Density, n: int, temperature: float = 1.0, c: Tensor | None = None) -> Tensor:
    """Samples (n, C, H, W), given contexts (n, K), on the CPU, of the same noise in every call."""
    with _same_noise(model):
        return model.sample(n, _suited(model, c), temperature).cpu()


def _in_turn(dataset: Dataset, n: int) -> Tensor | None:
    """What n samples are given, (n, K): the classes in turn; None for a density of samples alone."""
    if dataset.given is None:
        return None
    classes = len(dataset.given.names)
    return indicators(torch.arange(n) % classes, classes)


def _suited(model: Density, c: Tensor | None) -> Tensor | None:
    return None if c is None else suited(model, c)


def nearest(x: Tensor, others: Tensor, k: int) -> Tensor:
    """The k of the other samples (M, *S) that are next to each x (N, *S) in Euclidean distance, (N, k, *S)."""
    apart = [torch.cdist(x.flatten(1).float(), part.flatten(1).float()) for part in others.split(CHUNK)]
    return others[torch.cat(apart, 1).topk(min(k, len(others)), largest=False).indices]


def interpolates(model: Density) -> bool:
    """Whether :func:`interpolated` knows the way: not of a mixture of flows, between whose components there is none."""
    return isinstance(model.flow if isinstance(model, LiftedFlow) else model, Flow)


@torch.no_grad()
def interpolated(model: Density, start: Tensor, end: Tensor, shares: Sequence[float]) -> Tensor:
    """What lies between samples, by way of the base; of a lifted flow, of its y = lift(x), projected.

    Base points go along the great circle. For independent z0, z1 ~ N(0, I) in many dimensions, which are as good as
    orthogonal, all of it is distributed like the base, where the middle of a straight line is shorter by sqrt(2): a
    sample at temperature 0.7.

    Args:
        model: a flow, or a lifted one.
        start: (B, *S).
        end: (B, *S).
        shares: T numbers from 0 (start) to 1 (end).

    Returns:
        (B, T, *S).
    """
    flow = model.flow if isinstance(model, LiftedFlow) else model
    assert isinstance(flow, Flow), "see interpolates"
    ends = [model.lift(x).point if isinstance(model, LiftedFlow) else x for x in (start, end)]
    z0, z1 = (flow.encode(y) for y in ends)
    found = [flow.decode(on_great_circle(z0, z1, share)) for share in shares]
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
