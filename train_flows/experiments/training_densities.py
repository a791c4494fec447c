"""Figures of training densities: penalised paths, couplings of flow matching, and FFJORD's recipe.

Runs are those of ``train-flows density`` with the recipe of points in two dimensions. Figures of evaluations and NLL
are those of the weights with the best validation NLL.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anode.errors import check_choice
from train_flows import recipes
from train_flows.data import toy
from train_flows.experiments.grid import Experiment, Scale, words
from train_flows.experiments.results import Outcome, Results, by_data
from train_flows.figures import plots

QUICK = {"steps": 4, "validate_every": 2, "batch_size": 32, "hidden": (8, 8)}


def training(data: str, scale: Scale, **options: Any) -> str:
    """Return the command line that trains a density, from options other than those of its recipe."""
    check_choice("--data", data, toy.DENSITIES)
    return words("density {data}", options | (QUICK if scale.size == "quick" else {}))


def columns(draw: Callable[[Axes, Results], None]) -> Callable[[Results], Figure]:
    """Return a function that draws a panel for each data set."""

    def figure_of(results: Results) -> Figure:
        figure = Figure(figsize=(4.5 * len(results.data), 3.6), layout="constrained")
        panels = figure.subplots(1, len(results.data), squeeze=False)[0]
        for axes, data in zip(panels, results.data, strict=True):
            draw(axes, results.of(data=data))
            axes.set_title(data)
            if axes.lines:
                axes.legend()
        return figure

    return figure_of


# A penalty on the acceleration of paths

WEIGHTS = (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
ALLOWED = 0.02  # nats of validation NLL


def penalised(weight: float) -> str:
    """Return the label of a weight of the penalty."""
    return f"acceleration {weight:g}"


def chosen_weight(results: Results) -> float | None:
    """Return the weight with the fewest evaluations within what is allowed; None if there is none.

    That is, of those whose mean validation NLL is at most 0.02 nats above that without penalty.
    """

    def lost(weight: float) -> float:
        lost = results.difference(penalised(weight), penalised(0.0), "validation_nll")
        return math.inf if math.isnan(lost) else lost

    allowed = [weight for weight in WEIGHTS if weight and lost(weight) <= ALLOWED]
    return min(allowed, key=lambda weight: results.of(penalised(weight)).mean("nfe_validation"), default=None)


def _penalties(results: Results, data: str) -> dict[str, Any]:
    weight = chosen_weight(results)
    if weight is None:
        return {}
    both = penalised(weight), penalised(0.0)
    gained = [still_gained(outcome) for outcome in results.shared(*both)[1]]
    return {
        "chosen weight": weight,
        "NFE of log_prob, with / without": results.ratio(*both, "nfe_log_prob"),
        "NFE of sampling, with / without": results.ratio(*both, "nfe_sample"),
        "test NLL, with - without": results.difference(*both, "test_nll"),
        "validation NLL gained by the last quarter of training, without": float(np.mean(gained)),
    }


def _penalties_and_mean(results: Results) -> dict[str, Any]:
    findings = by_data(results, _penalties)
    ratios = [value for name, value in findings.items() if name.endswith("NFE of log_prob, with / without")]
    complete = ratios and len(ratios) == len(results.data)
    return findings | ({"NFE of log_prob, with / without, mean": float(np.mean(ratios))} if complete else {})


def still_gained(outcome: Outcome) -> float:
    """Return how much the best validation NLL fell in the last quarter of the records."""
    values = [record["nll"] for record in outcome.records]
    return min(values[: 1 + 3 * (len(values) - 1) // 4]) - min(values)


def _draw_penalties(results: Results) -> Figure:
    figure = Figure(figsize=(4.2 * len(results.data), 6.6), layout="constrained")
    for column, data in zip(figure.subplots(2, len(results.data), squeeze=False).T, results.data, strict=True):
        for weight, color in zip(WEIGHTS, plots.line_colors(len(WEIGHTS)), strict=True):
            for i, outcome in enumerate(results.of(penalised(weight), data).succeeded):
                label, last = None if i else f"{weight:g}", outcome.records[-1]
                column[0].plot(last["nfe_log_prob"], last["test_nll"], "o", color=color, label=label)
                steps, costs = ([record[name] for record in outcome.records] for name in ("step", "nfe_log_prob"))
                column[1].plot(steps, costs, color=color, alpha=0.7)
        column[0].set(title=data, xlabel="evaluations of log_prob", ylabel="test NLL in nats")
        column[1].set(xlabel="training step", ylabel="evaluations of log_prob, validation")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), title="weight", loc="outside right upper")
    return figure


# Couplings of flow matching

INDEPENDENT, COUPLED = "independent", "optimal-transport"
MATCHING = {"objective": "flow-matching", "steps": 4000, "validate_every": 200, "lr": 5e-3, "ema": 0.99}


def _couplings(results: Results, data: str) -> dict[str, Any]:
    both = COUPLED, INDEPENDENT
    return {
        "NFE of sampling, coupled / independent": results.ratio(*both, "nfe_sample"),
        "NFE of log_prob, coupled / independent": results.ratio(*both, "nfe_log_prob"),
        "seconds of training, coupled / independent": results.ratio(*both, "seconds"),
        "test NLL, coupled - independent": results.difference(*both, "test_nll"),
    }


def _draw_couplings(axes: Axes, results: Results) -> None:
    for label, color in zip(results.labels, plots.LINE_COLORS, strict=False):
        last = [outcome.records[-1] for outcome in results.of(label).succeeded]
        nfe, nll = ([record[name] for record in last] for name in ("nfe_sample", "test_nll"))
        axes.plot(nfe, nll, "o", color=color, alpha=0.7, label=label.replace("-", " "))
    axes.set(xlabel="evaluations of sampling", ylabel="test NLL in nats")


# FFJORD

OURS, THEIRS = "default", "FFJORD"


def _times(results: Results, data: str) -> dict[str, Any]:
    """Compare times until the validation NLL is as low as FFJORD's at its end and stays there.

    FFJORD's recipe is that of its published code, here with 2,500 iterations: three hidden layers of 64 units,
    concat-squash, tanh, the exact trace, the adjoint of torchdiffeq, Adam at 1e-3, batches of 512. Seconds are those of
    training alone, in a process of one thread.
    """
    ours, theirs = results.shared(OURS, THEIRS)
    ends = [outcome.records[-1] for outcome in theirs]
    shares = [seconds_to(o.records, end["nll"]) / end["seconds"] for o, end in zip(ours, ends, strict=True)]
    return {
        "time to FFJORD's final NLL over FFJORD's": float(np.mean(shares or math.nan)),
        f"final test NLL, {OURS}": ours.mean("test_nll"),
        f"final test NLL, {THEIRS}": theirs.mean("test_nll"),
        f"seconds, {OURS}": ours.mean("seconds"),
        f"seconds, {THEIRS}": theirs.mean("seconds"),
        f"NFE of log_prob, {OURS} / {THEIRS}": results.ratio(OURS, THEIRS, "nfe_log_prob"),
    }


def seconds_to(records: Sequence[Any], nll: float) -> float:
    """Return the seconds until a validation NLL is reached for good; infinite if it never is."""
    above = [i for i, record in enumerate(records) if record["nll"] > nll]
    first = 1 + max(above, default=-1)
    return records[first]["seconds"] if first < len(records) else math.inf


def _draw_times(axes: Axes, results: Results) -> None:
    for label, color in zip(results.labels, plots.LINE_COLORS, strict=False):
        for i, outcome in enumerate(results.of(label)):
            seconds, nll = ([record[name] for record in outcome.records[1:]] for name in ("seconds", "nll"))
            axes.plot(seconds, nll, color=color, label=None if i else label)
    axes.set(xlabel="seconds of training", ylabel="validation NLL in nats", xscale="log")


EXPERIMENTS = {
    "path-energies": Experiment(
        "evaluations and likelihood of densities trained with and without a penalty on acceleration",
        ("separated-8gaussians", "checkerboard", "annulus"),
        "densities",
        lambda data, scale: {
            penalised(weight): training(data, scale, steps=2000, validate_every=100, acceleration=weight)
            for weight in WEIGHTS
        },
        _draw_penalties,
        _penalties_and_mean,
    ),
    "couplings": Experiment(
        "evaluations of flow matching by the coupling of base and data points",
        ("8gaussians", "moons"),
        "densities",
        lambda data, scale: {x: training(data, scale, **MATCHING, coupling=x) for x in (INDEPENDENT, COUPLED)},
        columns(_draw_couplings),
        lambda r: by_data(r, _couplings),
    ),
    "ffjord": Experiment(
        "time to the likelihood that FFJORD's recipe reaches",
        ("8gaussians", "checkerboard", "2spirals"),
        "densities",
        lambda data, scale: {
            THEIRS: training(data, scale, **{**recipes.FFJORD, "validate_every": 250}),
            OURS: training(data, scale, validate_every=25),
        },
        columns(_draw_times),
        lambda r: by_data(r, _times),
    ),
}
