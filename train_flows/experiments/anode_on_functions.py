"""Figures of Augmented Neural ODEs on functions of the line and the plane (Dupont, Doucet, Teh 2019).

Runs are those of ``train-flows classify`` without clipping, with the weights of the last epoch. Losses and evaluations
are means over the batches of an epoch; ``train_mse`` and ``train_accuracy`` are of the training points at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train_flows.data import SEED_STRIDE, paper_functions
from train_flows.experiments.grid import Experiment, Scale
from train_flows.experiments.panels import Panel, against, by_epoch, draw_panels, ends_against
from train_flows.experiments.results import Outcome, Results
from train_flows.figures import plots

SIDES = "coolwarm"  # target -1 in blue, +1 in red
LINES = {-1: "C0", 1: "C3"}
DRAWN = 100  # trajectories
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


# Figure 3

BARE = "--readout none --train-size 1000"  # a learned readout would flip the sign by itself
ON_THE_LINE = {"NODE": BARE, "ANODE p=1": f"{BARE} --extra 1", "ResNet": f"{BARE} --model resnet"}
STARTS = np.array([-1.5, -1, -0.5, 0, 0.5, 1, 1.5])


def _draw_lines(label: str) -> Panel:
    @torch.no_grad()
    def draw(axes: Axes, results: Results) -> None:
        axes.set(title=label, xlabel="t", ylabel="first component of x", ylim=(-2.2, 2.2))
        if (outcome := results.of(label).exemplar) is None:
            return
        if label == "NODE":
            _draw_slopes(axes, outcome.model.body)
        times = np.linspace(0, 1, 6 if label == "ResNet" else 51)  # a line from block to block
        path = outcome.model.trajectory(torch.tensor(STARTS[:, None]).float(), times.tolist())[:, :, 0].numpy()
        for start, line in zip(STARTS, path.T, strict=True):
            trained = abs(start) == 1
            axes.plot(times, line, color=LINES[int(start)] if trained else "0.6", lw=2 if trained else 1)
        targets = [1, -1] if outcome.data == "g1d" else [-1, 1]
        axes.scatter([0, 0, 1, 1], [-1, 1, *targets], color=[*LINES.values()] * 2, zorder=3)

    return draw


def _draw_slopes(axes: Axes, block: Any) -> None:
    t, x = np.meshgrid(np.linspace(0.02, 0.98, 15), np.linspace(-2, 2, 15), indexing="ij")
    times, states = torch.tensor(t.ravel()).float(), torch.tensor(x.reshape(-1, 1)).float()
    slope = block.field(times, states).numpy().reshape(t.shape)
    axes.quiver(t, x, np.ones_like(t), slope, angles="xy", color="0.8", width=0.004)


# Figure 5

NODE_AND_RESNET = {"NODE": "", "ResNet": "--model resnet"}
RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # learning rates to choose from on the sines, which both can represent
SMALL = 0.01  # of an initial loss of about 0.5
TUNING = "tuning"


def _with_rate(label: str, rate: float, *words: str) -> str:
    return ", ".join([label, f"lr {rate:g}", *words])


def best_rate(results: Results, label: str) -> str:
    """Return the label of a network with the learning rate of the least mean loss on the sines, on tuning seeds."""

    def loss(rate: float) -> float:
        group = results.of(_with_rate(label, rate, TUNING), "sines")
        return group.mean("loss") if group and group == group.succeeded else np.inf

    return _with_rate(label, min(RATES, key=loss))


def _compare_losses(results: Results) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    for data in results.data:
        found = results.of(data=data)
        findings[f"training loss of NODE over that of ResNet, {data}"] = found.ratio("NODE", "ResNet", "loss")
        until = [f"{label} {_epochs_until(found.of(label).succeeded)}" for label in NODE_AND_RESNET]
        findings[f"epochs until the mean loss is below {SMALL}, {data}"] = ", ".join(until)
    best = [best_rate(results, label) for label in NODE_AND_RESNET]
    loss = results.of(data="sines").ratio(*best, "loss")
    findings["training loss of NODE over that of ResNet, sines, tuned"] = loss
    findings[f"tuned learning rates, of {', '.join(f'{rate:g}' for rate in RATES)}, on other seeds"] = "; ".join(best)
    return findings


def _epochs_until(results: Results) -> int | str:
    small = np.flatnonzero(results.curves("loss").mean(axis=0) < SMALL) if results else []
    return int(small[0]) if len(small) else "never"


def _draw_tuned(results: Results) -> Figure:
    labels = {*NODE_AND_RESNET, *(best_rate(results, label) for label in NODE_AND_RESNET)}
    return draw_panels(Results(o for o in results if o.label in labels), by_epoch("loss"))


# Figures 6 and 8 left

EPOCHS = (0, 3, 6, 10, 20, 30)
SNAPSHOTS = f"--snapshots {' '.join(map(str, EPOCHS))}"


def _draw_features(results: Results) -> Figure:
    figure = Figure(figsize=(2.8 * len(EPOCHS), 6), layout="constrained")
    for row, label in enumerate(("NODE", "ANODE p=1")):
        if (outcome := results.of(label).exemplar) is None:
            continue
        stored = np.load(outcome.folder / "features.npz")
        for column, epoch in enumerate(epoch for epoch in EPOCHS if f"epoch_{epoch}" in stored):
            place = (2, len(EPOCHS), row * len(EPOCHS) + column + 1)
            axes = figure.add_subplot(*place, projection="3d" if row else None)
            title = f"{label}, epoch {epoch}\n{outcome.records[epoch]['train_nfe']:.0f} evaluations"
            scatter(axes, stored[f"epoch_{epoch}"], stored["y"], title)
    return figure


# Figure 7


@torch.no_grad()
def _draw_flows(results: Results) -> Figure:
    figure = Figure(figsize=(12, 6), layout="constrained")
    for row, (data, label) in enumerate((("intervals", "NODE"), ("spheres", "ANODE p=1"))):
        losses = figure.add_subplot(2, 4, 4 * row + 1)
        by_epoch("loss")(losses, results.of(data=data))
        losses.set_title(data)
        if (outcome := results.of(label, "spheres").exemplar) is None:
            continue
        solid = "3d" if row else None
        inputs, flow, features = (figure.add_subplot(2, 4, 4 * row + i, projection=solid) for i in (2, 3, 4))
        x, y = points(outcome)
        path = outcome.model.trajectory(x, np.linspace(0, 1, 41).tolist()).numpy()
        some = slice(None, None, len(y) // DRAWN)
        for line, target in zip(path[:, some].swapaxes(0, 1), y[some], strict=True):
            flow.plot(*line.T, color=LINES[int(target)], lw=0.6, alpha=0.6)
        scatter(inputs, path[0], y, f"{label} on the spheres: inputs")
        scatter(features, path[-1], y, "features")
        flow.set_title("flow", fontsize="medium")
        flow.tick_params(labelsize="small")
    return figure


# Figure 8 right


def _evaluations(results: Results) -> dict[str, Any]:
    findings = {
        "loss, NODE / ANODE": results.ratio("NODE", AUGMENTED, "loss"),
        "NFE of the last epoch, ANODE / NODE": results.ratio(AUGMENTED, "NODE", "nfe_forward"),
    }
    for label in ("NODE", AUGMENTED):
        group, name = results.of(label), label.split()[0]
        findings[f"NFE of {name}, last / first epoch"] = group.mean("nfe_forward") / group.mean("nfe_forward", at=1)
        findings[f"seconds an epoch, {name}"] = group.mean("seconds") / max(group.curves("loss").shape[1] - 1, 1)
    return findings


# Figure 9

SLICES = "--epochs 50 --removed-slices 3"
BOX, SIDE = (-1.6, 1.6, -1.6, 1.6), 120  # of the drawn part of the plane


def _draw_values(label: str) -> Panel:
    @torch.no_grad()
    def draw(axes: Axes, results: Results) -> None:
        axes.set(title=f"{label} at every input", xticks=[], yticks=[])
        if (outcome := results.of(label).exemplar) is not None:
            values = outcome.model(torch.from_numpy(plots.grid(BOX, SIDE)).float()).reshape(SIDE, SIDE)
            axes.imshow(values.numpy(), origin="lower", extent=BOX, cmap=SIDES, vmin=-1, vmax=1)
            generator = torch.Generator().manual_seed(outcome.seed + 2 * SEED_STRIDE)  # of the run
            pairs = paper_functions.sample(outcome.data, paper_functions.TRAIN, outcome.seed + SEED_STRIDE)
            x = paper_functions.split_slices(pairs, 3, generator)[0][0]
            axes.scatter(*x[::10].T.numpy(), s=1, c="black", lw=0)

    return draw


VALUES = *map(_draw_values, ("NODE", AUGMENTED)), by_epoch("loss"), by_epoch("validation_loss")


# The number of augmented dimensions

EXTRAS = (0, 1, 2, 5, 10, 20, 50, 100)
SWEEP = by_epoch("loss"), by_epoch("nfe_forward"), ends_against("seconds", "loss"), ends_against("nfe_forward", "loss")


def _on_functions(
    about: str,
    models: Mapping[str, Mapping[str, str]],
    figure: Callable[[Results], Figure],
    findings: Callable[[Results], Mapping[str, Any]] = lambda results: {},
    **options: Any,
) -> Experiment:
    return Experiment(about, tuple(models), "functions", trainings(models), figure, findings, **options)


EXPERIMENTS = {
    "flow-1d": _on_functions(
        "ODE solutions on the line keep their order, ResNet steps cross (ANODE, fig. 3)",
        {"identity": ON_THE_LINE, "g1d": ON_THE_LINE},
        lambda r: draw_panels(r, *map(_draw_lines, ON_THE_LINE)),
        lambda r: {f"MSE of {x} on g1d (best monotone: 1)": r.of(x, "g1d").mean("train_mse") for x in ON_THE_LINE},
    ),
    "resnet-vs-node": _on_functions(
        "training losses of ResNet and NODE in d = 1, 2 and on separable data (fig. 5)",
        {
            "intervals": {label: f"{options} --lr 5e-4" for label, options in NODE_AND_RESNET.items()},
            "spheres": NODE_AND_RESNET,
            "sines": NODE_AND_RESNET
            | {
                _with_rate(label, rate, *words): f"{options} --lr {rate:g}"
                for words in ((), (TUNING,))
                for rate in RATES
                for label, options in NODE_AND_RESNET.items()
            },
        },
        _draw_tuned,
        _compare_losses,
        first=tuple(NODE_AND_RESNET),
        tuning=tuple(_with_rate(label, rate, TUNING) for rate in RATES for label in NODE_AND_RESNET),
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
        lambda r: draw_panels(r, by_epoch("nfe_forward"), by_epoch("loss"), against("nfe_forward", "loss")),
        _evaluations,
    ),
    "generalization": _on_functions(
        "values at unseen inputs, validation loss with slices removed (fig. 9)",
        {"spheres": {"NODE": SLICES, AUGMENTED: f"--extra 5 {SLICES}"}},
        lambda r: draw_panels(r, *VALUES),
        lambda r: {"validation loss, ANODE / NODE": r.ratio(AUGMENTED, "NODE", "validation_loss")},
    ),
    "augment-sweep": _on_functions(
        "loss, evaluations and time by the number of extra dimensions",
        {"spheres": {f"p={extra}": f"--extra {extra}" for extra in EXTRAS}},
        lambda r: draw_panels(r, *SWEEP),
    ),
}
