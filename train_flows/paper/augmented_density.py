"""Whether augmentation saves evaluations of a continuous flow: at equal likelihood, with as many parameters.

Every variant trains like the plain flow, by the same recipe, without and with a penalty on acceleration, and is
measured on the way in double precision (:func:`train_flows.paper.costs.costs`). With every seed, variants are compared
where their test NLL is equal (:func:`train_flows.paper.equal_nll.compared`): with the plain flow, and with flows that
have as much as categorical ones but for a field that is told the component. Where a variant knows only a bound of its
likelihood, that speaks against it; the likelihood of discrete data is a bound for all, of as many draws.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train_flows import density, recipes
from train_flows.data import Dataset, images, toy
from train_flows.paper import density_trials
from train_flows.paper.costs import TOLERANCES, costs
from train_flows.paper.density_trials import DensityTrial, load
from train_flows.paper.equal_nll import compared
from train_flows.paper.outcomes import Outcome
from train_flows.paper.report import AttemptInSittings, Report, of, report, shared

__all__ = ["DATA", "attempt", "run"]

DATA = ("separated-8gaussians", "checkerboard", "annulus", "nested-annuli", "2spirals", "digits")
PLAIN = "p=0"
TELLING = (PLAIN, "categorical", "mixture base")
CONTROLS = (
    ("copies", "mixture base"),
    ("categorical", "mixture base"),
    ("categorical", "copies"),
    ("joint, matched", "p=0, matched"),
)
STEPS = {"parkinsons.csv.gz": 800, "protein.csv.gz": 1000, "digits": 1000}  # the first overfits soon after
CHANNELS = (2, 4)  # augmented ones of images, besides 1
CONVOLUTIONS: dict[str, Any] = {  # of images: one ODE, whose divergence is exact, so that bounds can be tightened
    "field": "conv",
    "activation": ("tanh",),
    "time": "bias",
    "blocks": 1,
    "multiscale": False,
    "batch_size": 128,
    "divergence": "exact",
    "solver": "dopri5",
    "kinetic": 0.0,
    "frobenius": 0.0,
}
REGULARISATIONS = ("free", "penalised")
METRICS = tuple(f"nfe_{what}_{tolerance:.0e}" for what in ("log_prob", "sample") for tolerance in TOLERANCES)
attempt = partial(density_trials.attempt, measure=costs)


class Chosen(NamedTuple):
    """Settings that were chosen on validation data, with other seeds, by ``augmented-tuning``.

    Attributes:
        components: of mixtures.
        acceleration: weight of the penalty, of all variants alike.
    """

    components: int
    acceleration: float


CHOSEN = {
    "checkerboard": Chosen(8, 1e-2),
    "parkinsons.csv.gz": Chosen(8, 1e-1),
    "protein.csv.gz": Chosen(32, 1e-4),
}
UNCHOSEN = Chosen(8, 1e-3)  # of other data


def variants(data: str) -> dict[str, dict[str, Any]]:
    """What is compared, by name: options of ``train-flows density``."""
    k = CHOSEN.get(data, UNCHOSEN).components
    mixed = {"extra": k, **mixture_of_flows(data)}
    return {
        PLAIN: {},
        "mixture base": {"base": "mixture", "components": k, "correlated": mixed["correlated"]},
        "copies": {"augmentation": "copies", **mixed},
        "categorical": {"augmentation": "categorical", **mixed},
        "joint": {"extra": 1},
        **(_of_two_dimensions() if data in toy.DENSITIES else {}),
        **({f"joint, p={p}": {"extra": p} for p in CHANNELS} if images.known(data) else {}),
        "joint, learned q": {"extra": 1, "posterior": "learned"},
        "frozen": {"augmentation": "frozen", "extra": 2, "base": "conditional", "posterior": "learned"},
    }


def _of_two_dimensions() -> dict[str, dict[str, Any]]:
    """Positions that move by their momentum, and flow matching before likelihood, for both that are compared."""
    matched = {"objective": "flow-matching+likelihood", "likelihood_steps": 1000}
    return {
        "momentum": {"augmentation": "momentum", "extra": 2},
        f"{PLAIN}, matched": matched,
        "joint, matched": {"extra": 1, **matched},
    }


def mixture_of_flows(data: str) -> dict[str, Any]:
    """Its options beside how many: where the recipe whitens the data, as that of tables does, components are, too."""
    return {"posterior": "fitted", "correlated": recipes.density(data).get("whiten", False)}


def run(attempt_all: AttemptInSittings, quick: bool, data: Sequence[str]) -> Report:
    """Train every variant on every density, the most telling ones first, with all seeds."""
    trials = [trial for each in data for trial in _trials(each, quick, attempt_all.place.data_root)]
    outcomes = attempt_all(trials, lambda trial: trial.name.rpartition(", ")[0] in TELLING)
    return report(outcomes, partial(_figure, outcomes, data), _findings(outcomes, data))


def _trials(data: str, quick: bool, data_root: str) -> list[DensityTrial]:
    plain = plain_trial(data, quick)
    dataset = load(plain, 0, data_root)
    penalty = CHOSEN.get(data, UNCHOSEN).acceleration
    trials = []
    for name, options in variants(data).items():
        of_equal_size = plain.options | matched(plain, options, dataset)
        for regularisation, weight in zip(REGULARISATIONS, (0.0, penalty), strict=True):
            settings = of_equal_size | {"acceleration": weight}
            trials.append(dataclasses.replace(plain, name=_name(name, regularisation), options=settings))
    return trials


def _name(variant: str, regularisation: str) -> str:
    return f"{variant}, {regularisation}"


def plain_trial(data: str, quick: bool) -> DensityTrial:
    """The plain flow, with the options that all variants share: likelihood alone, so that its curve is of one piece."""
    steps = 2000 if data in toy.DENSITIES else STEPS.get(data, 4000)
    table = data not in toy.DENSITIES and not images.known(data)
    records = 20 if table else 10  # tables learn most within their first hundred steps
    options: dict[str, Any] = {"steps": steps, "validate_every": math.ceil(steps / records), "objective": "likelihood"}
    if images.known(data):
        options |= CONVOLUTIONS
    return DensityTrial(PLAIN, data, options, quick)


def matched(plain: DensityTrial, options: dict[str, Any], dataset: Dataset) -> dict[str, Any]:
    """The options with the widest field that takes no more parameters than that of the plain flow."""
    model = plain.settings(0).model
    images = model.field == "conv"

    def of_width(n: int) -> dict[str, Any]:
        return {**options, **({"filters": n} if images else {"hidden": (n,) * len(model.hidden)})}

    widest, allowed = model.filters if images else model.hidden[0], _parameters(plain, {}, dataset)
    narrower = (of_width(n) for n in range(widest, 1, -1) if _parameters(plain, of_width(n), dataset) <= allowed)
    return next(narrower, of_width(1))


def _parameters(plain: DensityTrial, options: dict[str, Any], dataset: Dataset) -> int:
    """How many a variant trains."""
    trial = dataclasses.replace(plain, options=plain.options | options)
    with torch.device("meta"):
        model = density.blank(trial.settings(0), dataset)
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def _findings(outcomes: Sequence[Outcome], data: Sequence[str]) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    for each in data:
        for regularisation in REGULARISATIONS:
            groups = {name: of(outcomes, _name(name, regularisation), each) for name in variants(each)}
            controls = [pair for pair in CONTROLS if groups.keys() >= set(pair)]
            for name, below in [*((name, PLAIN) for name in groups if name != PLAIN), *controls]:
                pairs = list(zip(*shared(groups[name], groups[below]), strict=True))
                if pairs:
                    where = f"{each}, {regularisation}: {name} / {below}"
                    findings |= {f"{where}, {metric}": compared(pairs, metric) for metric in METRICS}
            failed = {name: sum(o.status != "success" for o in found) for name, found in groups.items()}
            findings |= {f"{each}, {regularisation}: {name}, failed": n for name, n in failed.items() if n}
        fitted = [o.records[0]["nll_test"] for o in of(outcomes, _name("mixture base", "free"), each) if o.records]
        if fitted:
            findings[f"{each}: NLL of a Gaussian mixture"] = float(np.mean(fitted))
    return findings


def _figure(outcomes: Sequence[Outcome], data: Sequence[str]) -> Figure:
    figure = Figure(figsize=(4.2 * len(data), 3.4 * len(REGULARISATIONS)), layout="constrained")
    panels = figure.subplots(len(REGULARISATIONS), len(data), squeeze=False)
    for row, regularisation in zip(panels, REGULARISATIONS, strict=True):
        for axes, each in zip(row, data, strict=True):
            draw_curves(axes, {name: of(outcomes, _name(name, regularisation), each) for name in variants(each)})
            axes.set(title=f"{each}, {regularisation}", xlabel="test NLL", ylabel="evaluations of sampling, 1e-7")
    panels[0, 0].legend(fontsize=7)
    return figure


def draw_curves(axes: Axes, groups: Mapping[str, Sequence[Outcome]]) -> None:
    """Evaluations of sampling against the NLL, along the trainings of every group."""
    for i, (name, outcomes) in enumerate(groups.items()):
        for j, outcome in enumerate(o for o in outcomes if o.status == "success"):
            nll, nfe = ([record[x] for record in outcome.records[1:]] for x in ("nll_test", METRICS[-1]))
            axes.plot(nll, nfe, "o-", ms=3, color=f"C{i}", alpha=0.7, label=None if j else name)
