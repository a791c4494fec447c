"""The pictures of a run: what to compute for them and where they go."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from anode import Classifier
from cnf import Density
from train_flows import curves, image_pictures, likelihood, plots, supervised
from train_flows.checkpoint import Run
from train_flows.data import Dataset
from train_flows.data.labelled import Labelled

POINTS = 20_000  # of data and samples
SHOWN, SHOWN_IMAGES = 2000, 1000  # test samples
FRAMES = 45
DRAWS = 16  # of a bound, for a picture


@torch.no_grad()
def draw(run: Run, dataset: Dataset, model: Density) -> None:
    """Draw what suits the data: density and flow in two dimensions, images, or a corner plot; and the curves."""
    shown = dataset.train[:POINTS]
    if dataset.levels is not None:
        image_pictures.draw(run, dataset, model)
    elif dataset.shape == (2,):
        plots.density_2d(*_density(model, shown), dataset.columns).savefig(run.folder / "samples.png", dpi=150)
        _flow(run, model, shown)
    else:
        samples = model.sample(5000).cpu()
        sets = {"data": shown.flatten(1).numpy(), "samples": samples.flatten(1).numpy()}
        plots.corner(sets, dataset.columns).savefig(run.folder / "samples.png", dpi=150)
    panels = {"nats": ("loss", "nll"), "evaluations of the field": ("nfe_forward", "nfe_backward", "nfe_log_prob")}
    if dataset.levels is not None:
        panels = {"bits/dim": ("bits_per_dim",)} | panels
    curves.of_a_run(run.records(), panels).savefig(run.folder / "curves.png", dpi=120)


@torch.no_grad()
def draw_classifier(run: Run, dataset: Labelled, model: Classifier) -> None:
    """Draw inputs and features of test samples, images taken for another class, and the curves of training."""
    x, y = (tensor[: SHOWN_IMAGES if dataset.levels else SHOWN] for tensor in dataset.test)
    inputs = x.to(next(model.parameters()))
    states = supervised.outputs(model.features, inputs)
    if dataset.levels and dataset.classes:
        scores = model.readout(states).softmax(1).cpu()
        figure = plots.mistakes(x.numpy(), y.numpy(), scores.numpy(), dataset.classes, dataset.levels - 1)
        figure.savefig(run.folder / "mistakes.png", dpi=120)
    targets = (y[:, 0] > 0 if dataset.classes is None else y).numpy().astype(int)
    sets = {"inputs": x.flatten(1).numpy(), "features": states.cpu().flatten(1).numpy()}
    plots.features(sets, targets).savefig(run.folder / "features.png", dpi=120)
    panels = {
        figure: [f"{part}_{figure}" for part in ("train", "validation", "test")] for figure in ("loss", "accuracy")
    }
    panels["evaluations of the field"] = ["nfe_forward", "nfe_backward"]
    curves.of_a_run(run.records(), panels).savefig(run.folder / "curves.png", dpi=120)


def _density(model: Density, data: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    points = torch.from_numpy(plots.grid(plots.extent(data.numpy()))).to(next(model.parameters()))
    log_density = torch.cat([likelihood.log_prob(model, part, DRAWS) for part in points.split(5000)])
    samples = torch.cat([model.sample(5000) for _ in range(POINTS // 5000)])
    return data.numpy(), log_density.cpu().numpy(), samples.cpu().numpy()


def _flow(run: Run, model: Density, data: Tensor) -> None:
    """The GIF of base samples flowing to data, augmented ones projected; the last frame stays a while."""
    times = np.linspace(0, 1, FRAMES)
    frames = model.sample_paths(POINTS, times.tolist()).cpu().numpy()
    held = [*range(FRAMES), *[FRAMES - 1] * 15]
    animation = plots.flow_animation(frames[held], times[held].tolist(), plots.extent(data.numpy()))
    plots.save_gif(animation, run.folder / "flow.gif")
