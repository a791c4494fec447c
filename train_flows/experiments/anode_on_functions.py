"""Figures of Augmented Neural ODEs on functions of the line and the plane (Dupont, Doucet, Teh 2019).

Runs are those of ``train-flows classify`` without clipping, with the weights of the last epoch. Figures of evaluations
and losses are means over the batches of an epoch; ``mse`` and ``accuracy`` are of the training points at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from train_flows.data import SEED_STRIDE, paper_functions
from train_flows.experiments.grid import Experiment, Scale
from train_flows.experiments.results import Outcome, Results, curves
from train_flows.figures import plots

TRAINING = "classify {data} --keep last --clip 1e9"  # a norm that no gradient reaches
QUICK = "--epochs 2 --train-size 320 --test-size 100"
SIDES = "coolwarm"  # target -1 in blue, +1 in red
LINES = {-1: "C0", 1: "C3"}
SHOWN, DRAWN = 1000, 100  # points, and trajectories
Runs = Callable[[str, Scale], Mapping[str, str]]


def trainings(models: Mapping[str, Mapping[str, str]]) -> Runs:
    """Return the runs of an experiment from options by data and label."""

    def runs(data: str, scale: Scale) -> Mapping[str, str]:
        quick = QUICK if scale.size == "quick" else ""
        return {label: " ".join([TRAINING, options, quick]) for label, options in models[data].items()}

    return runs


def points(outcome: Outcome, count: int = SHOWN) -> tuple[torch.Tensor, np.ndarray]:
    """Return training points (N, D) of a run, evenly taken from all of them, and their targets (N,)."""
    x, y = paper_functions.sample(outcome.data, paper_functions.TRAIN, outcome.seed + SEED_STRIDE)
    every = slice(None, None, len(x) // count)
    return x[every], y[every, 0].numpy()


def scatter(axes: Any, x: np.ndarray, y: np.ndarray, title: str) -> None:
    """Draw points (N, D) in up to three dimensions, coloured by their targets (N,); one dimension along the abscissa."""
    flat = np.pad(x, ((0, 0), (0, max(0, 2 - x.shape[1]))))[:, :3]
    axes.scatter(*flat.T, c=y, cmap=SIDES, s=4, lw=0, alpha=0.8)
    axes.set_title(title, fontsize="medium")
    axes.tick_params(labelsize="small")


def panels(rows: int, columns: int, solid_rows: Sequence[int] = (), size: float = 2.8) -> tuple[Figure, list[list[Any]]]:
    """Return a figure with square axes; those of ``solid_rows`` have three dimensions."""
    figure = Figure(figsize=(size * columns, size * rows), layout="constrained")

    def add(row: int, column: int) -> Any:
        solid = "3d" if row in solid_rows else None
        return figure.add_subplot(rows, columns, row * columns + column + 1, projection=solid)

    return figure, [[add(row, column) for column in range(columns)] for row in range(rows)]


# Figure 3

BARE = "--readout none --train-size 1000"  # a learned readout would flip the sign by itself
ON_THE_LINE = {"NODE": BARE, "ANODE p=1": f"{BARE} --extra 1", "ResNet": f"{BARE} --model resnet"}
STARTS = np.array([-1.5, -1, -0.5, 0, 0.5, 1, 1.5])


@torch.no_grad()
def _draw_lines(results: Results) -> Figure:
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    starts = torch.tensor(STARTS[:, None], dtype=torch.float32)
    for row, data in zip(axes, ("identity", "g1d"), strict=True):
        for panel, label in zip(row, ON_THE_LINE, strict=True):
            outcome = results.exemplar(label, data)
            if outcome is None:
                continue
            if label == "NODE":
                _arrows(panel, outcome.model.body)
            times = np.linspace(0, 1, 6 if label == "ResNet" else 51)  # a line from block to block
            path = outcome.model.trajectory(starts, times.tolist())[:, :, 0].numpy()
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


def _arrows(axes: Any, block: Any) -> None:
    t, x = np.meshgrid(np.linspace(0.02, 0.98, 15), np.linspace(-2, 2, 15), indexing="ij")
    states = torch.tensor(x.reshape(-1, 1), dtype=torch.float32)
    slope = block.field(torch.tensor(t.ravel(), dtype=torch.float32), states).numpy().reshape(t.shape)
    axes.quiver(t, x, np.ones_like(t), slope, angles="xy", color="0.8", width=0.004, headwidth=4)


FLOW_1D = Experiment(
    "ODE solutions on the line keep their order, ResNet steps cross (ANODE, fig. 3)",
    ("identity", "g1d"),
    "functions",
    trainings({"identity": ON_THE_LINE, "g1d": ON_THE_LINE}),
    _draw_lines,
    lambda r: {f"MSE of {x} on g1d (best monotone: 1)": r.mean(x, "mse", "g1d") for x in ON_THE_LINE},
)


# Figure 5

TITLES = {"intervals": "g in d = 1", "spheres": "g in d = 2", "sines": "separable"}
NODE_AND_RESNET = {"NODE": "", "ResNet": "--model resnet"}
RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # learning rates to choose from on the sines, which both can represent
SMALL = 0.01  # of an initial loss of about 0.5


def _rate(label: str, rate: float) -> str:
    return label if rate == RATES[0] else f"{label}, lr {rate:g}"


def _both(options: str) -> dict[str, str]:
    return {label: f"{model} {options}" for label, model in NODE_AND_RESNET.items()}


def tuned(results: Results, label: str) -> list[float]:
    """Return the loss of each seed at the learning rate with the least mean loss of the other seeds, all successful."""
    losses = {rate: results.curves(_rate(label, rate), "loss", "sines") for rate in RATES}
    last = np.array([values[:, -1] for values in losses.values() if values.size])  # (rates, seeds); NaN if failed
    seeds = range(last.shape[1]) if len(last) == len(RATES) and last.ndim == 2 else ()
    best = {seed: int(np.nan_to_num(np.delete(last, seed, 1).mean(1), nan=np.inf).argmin()) for seed in seeds}
    return [float(last[rate, seed]) for seed, rate in best.items() if last.shape[1] > 1]


def _first_epochs(results: Results) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    for data in TITLES:
        findings[f"training loss of NODE over that of ResNet, {data}"] = results.ratio("NODE", "ResNet", "loss", data)
        until = [f"{label} {_epochs_until(results.succeeded(label, data))}" for label in NODE_AND_RESNET]
        findings[f"epochs until the mean loss is below {SMALL}, {data}"] = ", ".join(until)
    node, resnet = (np.mean(tuned(results, label) or np.nan) for label in NODE_AND_RESNET)
    tried = ", ".join(f"{rate:g}" for rate in RATES)
    findings[f"the same on sines at the best of learning rates {tried} for the other seeds"] = float(node / resnet)
    return findings


def _epochs_until(outcomes: Sequence[Outcome]) -> int | str:
    small = np.flatnonzero(curves(outcomes, "loss").mean(axis=0) < SMALL) if outcomes else []
    return int(small[0]) if len(small) else "never"


def _draw_losses(results: Results) -> Figure:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (data, title) in zip(figure.subplots(1, 3), TITLES.items(), strict=True):
        labels = [*NODE_AND_RESNET]
        if data == "sines":
            labels += [_best_rate(results, label) for label in NODE_AND_RESNET]
        losses = {label: results.curves(label, "loss", data) for label in dict.fromkeys(labels)}
        plots.bands(axes, losses, title, "training loss", log=True)
    return figure


def _best_rate(results: Results, label: str) -> str:
    labels = [_rate(label, rate) for rate in RATES]
    return min(labels, key=lambda each: np.nan_to_num(results.mean(each, "loss", "sines"), nan=np.inf))


RESNET_VS_NODE = Experiment(
    "training losses of ResNet and NODE in d = 1, 2 and on separable data (fig. 5)",
    tuple(TITLES),
    "functions",
    trainings(
        {
            "intervals": _both("--lr 5e-4"),
            "spheres": NODE_AND_RESNET,
            "sines": {
                _rate(label, rate): f"{model} --lr {rate:g}"
                for rate in RATES
                for label, model in NODE_AND_RESNET.items()
            },
        }
    ),
    _draw_losses,
    _first_epochs,
    first=tuple(NODE_AND_RESNET),
)


# Figures 6 and 8 left

EPOCHS = (0, 3, 6, 10, 20, 30)
SNAPSHOTS = f"--snapshots {' '.join(map(str, EPOCHS))}"


def _draw_features(results: Results) -> Figure:
    labels = results.labels()
    figure, axes = panels(2, len(EPOCHS), solid_rows=(1,))
    for row, label in zip(axes, labels, strict=False):
        outcome = results.exemplar(label)
        if outcome is None:
            continue
        with np.load(outcome.folder / "features.npz") as stored:
            for panel, epoch in zip(row, EPOCHS, strict=True):
                if f"epoch_{epoch}" in stored:
                    nfe = outcome.records[epoch]["nfe"]
                    scatter(panel, stored[f"epoch_{epoch}"], stored["y"], f"{label}, epoch {epoch}\n{nfe:.0f} evaluations")
    return figure


FEATURE_EVOLUTION = Experiment(
    "features while training, with their evaluations (fig. 6, 8 left)",
    ("spheres",),
    "functions",
    trainings({"spheres": {"NODE": SNAPSHOTS, "ANODE p=1": f"--extra 1 {SNAPSHOTS}"}}),
    _draw_features,
)


# Figure 7


def _draw_flows(results: Results) -> Figure:
    figure, axes = panels(2, 4, size=3)
    for row, data in zip(axes, ("intervals", "spheres"), strict=True):
        losses = {label: results.curves(label, "loss", data) for label in results.labels(data)}
        plots.bands(row[0], losses, TITLES[data], "training loss", log=True)
    for i, label in enumerate(("NODE", "ANODE p=1")):
        for panel in axes[i][1:]:
            panel.remove()
        solid = "3d" if label != "NODE" else None
        outcome = results.exemplar(label, "spheres")
        if outcome is not None:
            _draw_flow([figure.add_subplot(2, 4, 4 * i + j, projection=solid) for j in (2, 3, 4)], outcome)
    return figure


@torch.no_grad()
def _draw_flow(axes: Sequence[Any], outcome: Outcome) -> None:
    x, y = points(outcome)
    path = outcome.model.trajectory(x, np.linspace(0, 1, 41).tolist()).numpy()
    scatter(axes[0], path[0], y, f"{outcome.label}, d = 2: inputs")
    for line, target in zip(path[:, :: len(y) // DRAWN].swapaxes(0, 1), y[:: len(y) // DRAWN], strict=True):
        axes[1].plot(*line.T, color=LINES[int(target)], lw=0.6, alpha=0.6)
    axes[1].set_title(f"{outcome.label}, d = 2: flow", fontsize="medium")
    axes[1].tick_params(labelsize="small")
    scatter(axes[2], path[-1], y, f"{outcome.label}, d = 2: features")


NODE_VS_ANODE = Experiment(
    "training losses in d = 1, 2 and the flows learnt (fig. 7)",
    ("intervals", "spheres"),
    "functions",
    trainings(
        {
            "intervals": {"NODE": "--lr 5e-4", "ANODE p=1": "--lr 5e-4 --extra 1"},
            "spheres": {"NODE": "", "ANODE p=1": "--extra 1", "ANODE p=5": "--extra 5"},
        }
    ),
    _draw_flows,
    lambda r: {
        "MSE of NODE on the intervals (best monotone: 2/3)": r.mean("NODE", "mse", "intervals"),
        "MSE of ANODE p=1 on the intervals": r.mean("ANODE p=1", "mse", "intervals"),
        "loss of NODE over that of ANODE p=5, spheres": r.ratio("NODE", "ANODE p=5", "loss", "spheres"),
    },
)


# Figure 8 right

AUGMENTED = "ANODE p=5"


def _draw_evaluations(results: Results) -> Figure:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    nfe, losses = ({x: results.curves(x, name) for x in results.labels()} for name in ("nfe_forward", "loss"))
    plots.bands(left, nfe, "evaluations", "evaluations per solve")
    plots.bands(middle, losses, "loss", "training loss", log=True)
    for label, color in zip(nfe, plots.line_colors(len(nfe)), strict=True):
        for seed, (cost, loss) in enumerate(zip(nfe[label], losses[label], strict=True)):
            right.plot(cost, loss, color=color, alpha=0.6, label=None if seed else label)
    right.legend()
    plots.log_y(right)
    right.set(xlabel="evaluations per solve", ylabel="training loss", title="loss against evaluations")
    return figure


def _growth(results: Results, label: str) -> float:
    return results.mean(label, "nfe_forward") / results.mean(label, "nfe_forward", at=1)


def _seconds(results: Results, label: str) -> float:
    return float(np.mean([o.records[-1]["seconds"] / (len(o.records) - 1) for o in results.succeeded(label)] or np.nan))


NFE = Experiment(
    "evaluations while training (fig. 8 right)",
    ("spheres",),
    "functions",
    trainings({"spheres": {"NODE": "", AUGMENTED: "--extra 5"}}),
    _draw_evaluations,
    lambda r: {
        "loss, NODE / ANODE": r.ratio("NODE", AUGMENTED, "loss"),
        "NFE of the last epoch, ANODE / NODE": r.ratio(AUGMENTED, "NODE", "nfe_forward"),
        "NFE of NODE, last / first epoch": _growth(r, "NODE"),
        "NFE of ANODE, last / first epoch": _growth(r, AUGMENTED),
        "seconds an epoch, NODE": _seconds(r, "NODE"),
        "seconds an epoch, ANODE": _seconds(r, AUGMENTED),
    },
)


# Figure 9

SLICES, SIDE = "--epochs 50 --removed-slices 3", 120  # points per side of the grid of inputs


@torch.no_grad()
def _draw_values(results: Results) -> Figure:
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    *maps, train, validation = figure.subplots(1, 4)
    box, side = (-1.6, 1.6, -1.6, 1.6), SIDE
    for axes, label in zip(maps, ("NODE", AUGMENTED), strict=True):
        outcome = results.exemplar(label)
        if outcome is not None:
            values = outcome.model(torch.from_numpy(plots.grid(box, side)).float()).reshape(side, side).numpy()
            axes.imshow(values, origin="lower", extent=box, cmap=SIDES, vmin=-1, vmax=1)
            generator = torch.Generator().manual_seed(outcome.seed + 2 * SEED_STRIDE)
            pairs = paper_functions.sample(outcome.data, paper_functions.TRAIN, outcome.seed + SEED_STRIDE)
            (x, _), _ = paper_functions.split_slices(pairs, 3, generator)
            axes.scatter(*x[::10].T.numpy(), s=1, c="black", lw=0)
            axes.set(title=f"{label}: value at every input", xticks=[], yticks=[])
    for axes, metric in ((train, "loss"), (validation, "validation_loss")):
        losses = {label: results.curves(label, metric) for label in results.labels()}
        plots.bands(axes, losses, "training loss" if metric == "loss" else "validation loss", "smooth L1", log=True)
    return figure


GENERALIZATION = Experiment(
    "values at unseen inputs, validation loss with slices removed (fig. 9)",
    ("spheres",),
    "functions",
    trainings({"spheres": {"NODE": SLICES, AUGMENTED: f"--extra 5 {SLICES}"}}),
    _draw_values,
    lambda r: {"validation loss, ANODE / NODE": r.ratio(AUGMENTED, "NODE", "validation_loss")},
)


# The number of augmented dimensions

EXTRAS = (0, 1, 2, 5, 10, 20, 50, 100)
SWEPT = {"loss": "training loss", "nfe_forward": "evaluations per solve", "seconds": "seconds of training"}


def _draw_sweep(results: Results) -> Figure:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (metric, label) in zip(figure.subplots(1, 3), SWEPT.items(), strict=True):
        for i, extra in enumerate(EXTRAS):
            values = [o.records[-1][metric] for o in results.succeeded(f"p={extra}")]
            axes.scatter([i] * len(values), values, color=plots.LINE_COLORS[0], s=12, alpha=0.5)
        means = [results.mean(f"p={extra}", metric) for extra in EXTRAS]
        axes.plot(means, color=plots.LINE_COLORS[0])
        axes.set(xlabel="extra dimensions p", ylabel=label, xticks=range(len(EXTRAS)), xticklabels=EXTRAS)
        if metric == "loss":
            plots.log_y(axes)
    return figure


AUGMENT_SWEEP = Experiment(
    "loss, evaluations and time against the number of extra dimensions",
    ("spheres",),
    "functions",
    trainings({"spheres": {f"p={extra}": f"--extra {extra}" for extra in EXTRAS}}),
    _draw_sweep,
)

EXPERIMENTS = {
    "flow-1d": FLOW_1D,
    "resnet-vs-node": RESNET_VS_NODE,
    "feature-evolution": FEATURE_EVOLUTION,
    "node-vs-anode": NODE_VS_ANODE,
    "nfe": NFE,
    "generalization": GENERALIZATION,
    "augment-sweep": AUGMENT_SWEEP,
}
