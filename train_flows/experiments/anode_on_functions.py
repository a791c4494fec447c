"""Figures of Augmented Neural ODEs on functions of the line and the plane (Dupont, Doucet, Teh 2019).

Runs are those of ``train-flows classify`` without clipping, with the weights of the last epoch. Losses and evaluations
are means over the batches of an epoch; ``train_mse`` and ``train_accuracy`` are of the training points at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from train_flows.data import SEED_STRIDE, paper_functions
from train_flows.experiments.grid import Experiment, Scale
from train_flows.experiments.results import Outcome, Results
from train_flows.figures import plots

SIDES = "coolwarm"  # target -1 in blue, +1 in red
LINES = {-1: "C0", 1: "C3"}
DRAWN = 100  # trajectories
TITLES = {"intervals": "g in d = 1", "spheres": "g in d = 2", "sines": "separable"}
AUGMENTED = "ANODE p=5"


def trainings(models: Mapping[str, Mapping[str, str]]) -> Callable[[str, Scale], Mapping[str, str]]:
    """Return the runs of an experiment from options by data and label."""

    def runs(data: str, scale: Scale) -> Mapping[str, str]:
        quick = "--epochs 2 --train-size 320 --test-size 100" if scale.size == "quick" else ""
        command = "classify {data} --keep last --clip 1e9"  # a norm that no gradient reaches
        return {label: " ".join([command, *options.split(), *quick.split()]) for label, options in models[data].items()}

    return runs


def points(outcome: Outcome) -> tuple[torch.Tensor, np.ndarray]:
    """Return 1,000 points (N, D) of the function that a run learnt, evenly taken from 3,000, and their targets (N,)."""
    x, y = paper_functions.sample(outcome.data, paper_functions.TRAIN, outcome.seed + SEED_STRIDE)
    return x[::3], y[::3, 0].numpy()


def scatter(axes: Any, x: np.ndarray, y: np.ndarray, title: str) -> None:
    """Draw points (N, D) in two or three dimensions, coloured by their targets (N,)."""
    axes.scatter(*x.T, c=y, cmap=SIDES, s=4, lw=0, alpha=0.8)
    axes.set_title(title, fontsize="medium")
    axes.tick_params(labelsize="small")


def draw_losses(axes: Any, results: Results, title: str, metric: str = "loss", ylabel: str = "training loss") -> None:
    """Draw the losses of every label against the epoch."""
    plots.bands(axes, {x: results.of(x).curves(metric) for x in results.labels}, title, ylabel, log=True)


# Figure 3

BARE = "--readout none --train-size 1000"  # a learned readout would flip the sign by itself
ON_THE_LINE = {"NODE": BARE, "ANODE p=1": f"{BARE} --extra 1", "ResNet": f"{BARE} --model resnet"}
STARTS = np.array([-1.5, -1, -0.5, 0, 0.5, 1, 1.5])


@torch.no_grad()
def _draw_lines(results: Results) -> Figure:
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for row, data in zip(axes, ("identity", "g1d"), strict=True):
        for panel, label in zip(row, ON_THE_LINE, strict=True):
            outcome = results.of(label, data).exemplar
            if outcome is None:
                continue
            if label == "NODE":
                _draw_field(panel, outcome.model.body)
            times = np.linspace(0, 1, 6 if label == "ResNet" else 51)  # a line from block to block
            path = outcome.model.trajectory(torch.tensor(STARTS[:, None]).float(), times.tolist())[:, :, 0].numpy()
            for start, line in zip(STARTS, path.T, strict=True):
                trained = abs(start) == 1
                panel.plot(times, line, color=LINES[int(start)] if trained else "0.6", lw=2 if trained else 1)
            targets = [-1, 1] if data == "identity" else [1, -1]
            panel.scatter([0, 0, 1, 1], [-1, 1, *targets], color=[*LINES.values()] * 2, zorder=3)
            what = {"NODE": "field", "ResNet": "blocks"}.get(label, "first component")
            panel.set(title=f"{label} on {data} ({what})", ylim=(-2.2, 2.2))
        row[0].set_ylabel("x")
    for panel in axes[1]:
        panel.set_xlabel("t")
    return figure


def _draw_field(axes: Any, block: Any) -> None:
    t, x = np.meshgrid(np.linspace(0.02, 0.98, 15), np.linspace(-2, 2, 15), indexing="ij")
    times, states = torch.tensor(t.ravel()).float(), torch.tensor(x.reshape(-1, 1)).float()
    slope = block.field(times, states).numpy().reshape(t.shape)
    axes.quiver(t, x, np.ones_like(t), slope, angles="xy", color="0.8", width=0.004)


# Figure 5

NODE_AND_RESNET = {"NODE": "", "ResNet": "--model resnet"}
RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # learning rates to choose from on the sines, which both can represent
SMALL = 0.01  # of an initial loss of about 0.5


def _with_rate(label: str, rate: float) -> str:
    return label if rate == RATES[0] else f"{label}, lr {rate:g}"


def best_rate(results: Results, label: str) -> str:
    """Return the label of a network with the learning rate of the least mean loss on the sines."""
    labels = [_with_rate(label, rate) for rate in RATES]
    return min(labels, key=lambda each: np.nan_to_num(results.of(each, "sines").mean("loss"), nan=np.inf))


def _compare_losses(results: Results) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    for data in TITLES:
        found = results.of(data=data)
        findings[f"training loss of NODE over that of ResNet, {data}"] = found.ratio("NODE", "ResNet", "loss")
        until = [f"{label} {_epochs_until(found.of(label).succeeded)}" for label in NODE_AND_RESNET]
        findings[f"epochs until the mean loss is below {SMALL}, {data}"] = ", ".join(until)
    best = [best_rate(results, label) for label in NODE_AND_RESNET]
    loss = results.of(data="sines").ratio(*best, "loss")
    findings["training loss of NODE over that of ResNet, sines, each with the best of 4 learning rates"] = loss
    findings["best learning rates"] = "; ".join(best)
    return findings


def _epochs_until(results: Results) -> int | str:
    small = np.flatnonzero(results.curves("loss").mean(axis=0) < SMALL) if len(results) else []
    return int(small[0]) if len(small) else "never"


def _draw_three_losses(results: Results) -> Figure:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    labels = {*NODE_AND_RESNET, *(best_rate(results, label) for label in NODE_AND_RESNET)}
    for axes, (data, title) in zip(figure.subplots(1, 3), TITLES.items(), strict=True):
        draw_losses(axes, Results([o for o in results.of(data=data) if o.label in labels]), title)
    return figure


# Figures 6 and 8 left

EPOCHS = (0, 3, 6, 10, 20, 30)
SNAPSHOTS = f"--snapshots {' '.join(map(str, EPOCHS))}"


def _draw_features(results: Results) -> Figure:
    figure = Figure(figsize=(2.8 * len(EPOCHS), 6), layout="constrained")
    for row, outcome in enumerate(results.of(label).exemplar for label in ("NODE", "ANODE p=1")):
        if outcome is None:
            continue
        stored = dict(np.load(outcome.folder / "features.npz"))
        for column, epoch in enumerate(epoch for epoch in EPOCHS if f"epoch_{epoch}" in stored):
            place = (2, len(EPOCHS), row * len(EPOCHS) + column + 1)
            axes = figure.add_subplot(*place, projection="3d" if row else None)
            title = f"{outcome.label}, epoch {epoch}\n{outcome.records[epoch]['train_nfe']:.0f} evaluations"
            scatter(axes, stored[f"epoch_{epoch}"], stored["y"], title)
    return figure


# Figure 7


@torch.no_grad()
def _draw_flows(results: Results) -> Figure:
    figure = Figure(figsize=(12, 6), layout="constrained")
    for row, (data, label) in enumerate((("intervals", "NODE"), ("spheres", "ANODE p=1"))):
        draw_losses(figure.add_subplot(2, 4, 4 * row + 1), results.of(data=data), TITLES[data])
        outcome = results.of(label, "spheres").exemplar
        if outcome is None:
            continue
        solid = "3d" if row else None
        inputs, flow, features = (figure.add_subplot(2, 4, 4 * row + i, projection=solid) for i in (2, 3, 4))
        x, y = points(outcome)
        path = outcome.model.trajectory(x, np.linspace(0, 1, 41).tolist()).numpy()
        some = slice(None, None, len(y) // DRAWN)
        for line, target in zip(path[:, some].swapaxes(0, 1), y[some], strict=True):
            flow.plot(*line.T, color=LINES[int(target)], lw=0.6, alpha=0.6)
        flow.set_title(f"{label}, d = 2: flow", fontsize="medium")
        flow.tick_params(labelsize="small")
        scatter(inputs, path[0], y, f"{label}, d = 2: inputs")
        scatter(features, path[-1], y, f"{label}, d = 2: features")
    return figure


# Figure 8 right


def _draw_evaluations(results: Results) -> Figure:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    nfe = {label: results.of(label).curves("nfe_forward") for label in results.labels}
    plots.bands(left, nfe, "evaluations", "evaluations per solve")
    draw_losses(middle, results, "loss")
    for label, color in zip(nfe, plots.LINE_COLORS, strict=False):
        for i, (cost, loss) in enumerate(zip(nfe[label], results.of(label).curves("loss"), strict=True)):
            right.plot(cost, loss, color=color, alpha=0.6, label=None if i else label)
    right.legend()
    plots.log_y(right)
    right.set(xlabel="evaluations per solve", ylabel="training loss", title="loss against evaluations")
    return figure


def _evaluations(results: Results) -> dict[str, Any]:
    findings = {
        "loss, NODE / ANODE": results.ratio("NODE", AUGMENTED, "loss"),
        "NFE of the last epoch, ANODE / NODE": results.ratio(AUGMENTED, "NODE", "nfe_forward"),
    }
    for label in ("NODE", AUGMENTED):
        group = results.of(label)
        name, epochs = label.split()[0], group.curves("loss").shape[1] - 1
        findings[f"NFE of {name}, last / first epoch"] = group.mean("nfe_forward") / group.mean("nfe_forward", at=1)
        findings[f"seconds an epoch, {name}"] = group.mean("seconds") / max(epochs, 1)
    return findings


# Figure 9

SLICES = "--epochs 50 --removed-slices 3"


@torch.no_grad()
def _draw_values(results: Results) -> Figure:
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    *maps, train, validation = figure.subplots(1, 4)
    box, side = (-1.6, 1.6, -1.6, 1.6), 120
    for axes, label in zip(maps, ("NODE", AUGMENTED), strict=True):
        outcome = results.of(label).exemplar
        if outcome is not None:
            values = outcome.model(torch.from_numpy(plots.grid(box, side)).float()).reshape(side, side)
            axes.imshow(values.numpy(), origin="lower", extent=box, cmap=SIDES, vmin=-1, vmax=1)
            generator = torch.Generator().manual_seed(outcome.seed + 2 * SEED_STRIDE)  # of the run
            pairs = paper_functions.sample(outcome.data, paper_functions.TRAIN, outcome.seed + SEED_STRIDE)
            x = paper_functions.split_slices(pairs, 3, generator)[0][0]
            axes.scatter(*x[::10].T.numpy(), s=1, c="black", lw=0)
            axes.set(title=f"{label}: value at every input", xticks=[], yticks=[])
    draw_losses(train, results, "training points")
    draw_losses(validation, results, "points in removed slices", "validation_loss", "validation loss")
    return figure


# The number of augmented dimensions

EXTRAS = (0, 1, 2, 5, 10, 20, 50, 100)
SWEPT = {"loss": "training loss", "nfe_forward": "evaluations per solve", "seconds": "seconds of training"}


def _draw_sweep(results: Results) -> Figure:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (metric, label) in zip(figure.subplots(1, 3), SWEPT.items(), strict=True):
        values = [results.of(f"p={extra}").last(metric) for extra in EXTRAS]
        for i, each in enumerate(values):
            axes.scatter([i] * len(each), each, color=plots.LINE_COLORS[0], s=12, alpha=0.5)
        axes.plot([each.mean() if len(each) else np.nan for each in values], color=plots.LINE_COLORS[0])
        axes.set(xlabel="extra dimensions p", ylabel=label, xticks=range(len(EXTRAS)), xticklabels=EXTRAS)
        if metric == "loss":
            plots.log_y(axes)
    return figure


def _on_functions(
    about: str,
    models: Mapping[str, Mapping[str, str]],
    figure: Callable[[Results], Figure],
    findings: Callable[[Results], Mapping[str, Any]] = lambda results: {},
    first: Sequence[str] = (),
) -> Experiment:
    return Experiment(about, tuple(models), "functions", trainings(models), figure, findings, tuple(first))


EXPERIMENTS = {
    "flow-1d": _on_functions(
        "ODE solutions on the line keep their order, ResNet steps cross (ANODE, fig. 3)",
        {"identity": ON_THE_LINE, "g1d": ON_THE_LINE},
        _draw_lines,
        lambda r: {f"MSE of {x} on g1d (best monotone: 1)": r.of(x, "g1d").mean("train_mse") for x in ON_THE_LINE},
    ),
    "resnet-vs-node": _on_functions(
        "training losses of ResNet and NODE in d = 1, 2 and on separable data (fig. 5)",
        {
            "intervals": {label: f"{options} --lr 5e-4" for label, options in NODE_AND_RESNET.items()},
            "spheres": NODE_AND_RESNET,
            "sines": {_with_rate(x, lr): f"{o} --lr {lr:g}" for lr in RATES for x, o in NODE_AND_RESNET.items()},
        },
        _draw_three_losses,
        _compare_losses,
        first=NODE_AND_RESNET,
    ),
    "feature-evolution": _on_functions(
        "features while training, with their evaluations (fig. 6, 8 left)",
        {"spheres": {"NODE": SNAPSHOTS, "ANODE p=1": f"--extra 1 {SNAPSHOTS}"}},
        _draw_features,
    ),
    "node-vs-anode": _on_functions(
        "training losses in d = 1, 2 and the flows learnt (fig. 7)",
        {
            "intervals": {"NODE": "--lr 5e-4", "ANODE p=1": "--lr 5e-4 --extra 1"},
            "spheres": {"NODE": "", "ANODE p=1": "--extra 1", AUGMENTED: "--extra 5"},
        },
        _draw_flows,
        lambda r: {
            "MSE of NODE on the intervals (best monotone: 2/3)": r.of("NODE", "intervals").mean("train_mse"),
            "MSE of ANODE p=1 on the intervals": r.of("ANODE p=1", "intervals").mean("train_mse"),
            "loss of NODE over that of ANODE p=5, spheres": r.of(data="spheres").ratio("NODE", AUGMENTED, "loss"),
        },
    ),
    "nfe": _on_functions(
        "evaluations while training (fig. 8 right)",
        {"spheres": {"NODE": "", AUGMENTED: "--extra 5"}},
        _draw_evaluations,
        _evaluations,
    ),
    "generalization": _on_functions(
        "values at unseen inputs, validation loss with slices removed (fig. 9)",
        {"spheres": {"NODE": SLICES, AUGMENTED: f"--extra 5 {SLICES}"}},
        _draw_values,
        lambda r: {"validation loss, ANODE / NODE": r.ratio(AUGMENTED, "NODE", "validation_loss")},
    ),
    "augment-sweep": _on_functions(
        "loss, evaluations and time against the number of extra dimensions",
        {"spheres": {f"p={extra}": f"--extra {extra}" for extra in EXTRAS}},
        _draw_sweep,
    ),
}
