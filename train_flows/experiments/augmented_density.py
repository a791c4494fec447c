"""Whether augmentation saves evaluations of a continuous flow: at equal likelihood, with as many parameters.

Every variant trains like the plain flow, by the same recipe, without and with a penalty on acceleration, and is
measured during training in double precision (``--measure costs``). For each seed, variants are compared where their
test NLL is equal: with the plain flow, and with flows that differ in one point. A variant that knows only a bound of
its likelihood is at a disadvantage; the likelihood of discrete data is a bound for all, from equally many draws.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnf import DensityConfig, density_model
from train_flows import density
from train_flows.command_line import parse
from train_flows.data import Dataset, is_images, load_density_data, toy
from train_flows.evaluation.likelihood import TOLERANCES
from train_flows.experiments.grid import Experiment, Scale, words
from train_flows.experiments.results import SUCCESS, Results
from train_flows.experiments.training_densities import ALLOWED, QUICK, columns
from train_flows.figures import plots
from train_flows.settings import DensitySettings

DATA = ("separated-8gaussians", "checkerboard", "annulus", "nested-annuli", "2spirals", "digits")
PLAIN = "p=0"
FIRST = (PLAIN, "categorical", "mixture base")
CONTROLS = (("categorical", "mixture base"), ("joint, matched", "p=0, matched"))
STEPS = {"parkinsons.csv.gz": 800, "protein.csv.gz": 1000, "digits": 1000}  # the first overfits soon after
CONVOLUTIONS: dict[str, Any] = {  # of images: one ODE, whose divergence is exact, so that bounds can be tightened
    "field": "conv",
    "hidden": (32,),
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
MIXTURE = {"augmentation": "categorical", "posterior": "fitted"}
REGULARISATIONS = ("free", "penalised")
METRICS = tuple(f"nfe_{what}_{tolerance:.0e}" for what in ("log_prob", "sample") for tolerance in TOLERANCES)
METRIC = METRICS[-1]


class Chosen(NamedTuple):
    """Settings chosen by ``augmented-tuning``: components of mixtures, weight of the penalty of all variants."""

    components: int
    acceleration: float


CHOSEN = {
    "checkerboard": Chosen(8, 1e-2),
    "parkinsons.csv.gz": Chosen(8, 1e-1),
    "protein.csv.gz": Chosen(32, 1e-4),
}
UNCHOSEN = Chosen(8, 1e-3)  # of other data


def variants(data: str) -> dict[str, dict[str, Any]]:
    """Return what is compared, by name: options of ``train-flows density`` that the plain flow does not have.

    On whitened tables all mixtures have full covariances, by their recipe.
    """
    k = CHOSEN.get(data, UNCHOSEN).components
    matched = {"objective": "flow-matching+likelihood", "likelihood_steps": 1000}
    plane, images = data in toy.DENSITIES, is_images(data)
    return {
        PLAIN: {},
        "mixture base": {"base": "mixture", "components": k},
        "categorical": {**MIXTURE, "extra": k},
        "joint": {"extra": 1},
        **({"momentum": {"augmentation": "momentum", "extra": 2}} if plane else {}),
        **({f"{PLAIN}, matched": matched, "joint, matched": {"extra": 1, **matched}} if plane else {}),
        **({f"joint, p={p}": {"extra": p} for p in (2, 4)} if images else {}),
        "joint, learned q": {"extra": 1, "posterior": "learned"},
    }


def plain_options(data: str) -> dict[str, Any]:
    """Return the options of all variants: likelihood alone, so that a curve is of one piece."""
    images, plane = is_images(data), data in toy.DENSITIES
    steps = 2000 if plane else STEPS.get(data, 4000)
    records = 10 if plane or images else 20  # tables learn most within their first hundred steps
    every = {"steps": steps, "validate_every": math.ceil(steps / records), "objective": "likelihood"}
    return every | (CONVOLUTIONS if images else {})


def equal_size(data: str, scale: Scale, options: dict[str, Any]) -> str:
    """Return the command line of a variant, with the widest field within the number of parameters of the plain flow."""
    source, shared = scale.source(data), plain_options(data)
    if scale.size == "quick":
        options = options | ({"likelihood_steps": 2} if "likelihood_steps" in options else {})
        shared |= QUICK | ({"hidden": (4,)} if is_images(data) else {})
    plain, variant = (_config(source, words("", each)) for each in (shared, shared | options))
    allowed, dataset, layers = parameters(plain, _dataset(source)), _dataset(source), len(plain.hidden)
    widths = ((n,) * layers for n in range(plain.hidden[0], 1, -1))
    fits = (hidden for hidden in widths if parameters(replace(variant, hidden=hidden), dataset) <= allowed)
    return words("density {data}", shared | options | {"hidden": next(fits, (1,) * layers)})


def parameters(config: DensityConfig, dataset: Dataset) -> int:
    """Return the number of trained parameters of a density."""
    with torch.device("meta"):
        model = density_model(dataset.shape, levels=dataset.levels, config=config)
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


@cache
def _config(source: str, options: str) -> DensityConfig:
    return parse(density.PROGRAM, DensitySettings(), [source, *shlex.split(options)])[0].model


@cache
def _dataset(source: str) -> Dataset:
    return load_density_data(source)


def _runs(data: str, scale: Scale) -> dict[str, str]:
    penalty = CHOSEN.get(data, UNCHOSEN).acceleration
    return {
        f"{name}, {regularisation}": equal_size(data, scale, {**options, "acceleration": weight, "measure": "costs"})
        for name, options in variants(data).items()
        for regularisation, weight in zip(REGULARISATIONS, (0.0, penalty), strict=True)
    }


def _findings(results: Results) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    for data in results.data:
        found, names = results.of(data=data), variants(data)
        for regularisation in REGULARISATIONS:
            pairs = [(name, PLAIN) for name in names if name != PLAIN] + [p for p in CONTROLS if set(p) <= set(names)]
            for name, other in pairs:
                labels = f"{name}, {regularisation}", f"{other}, {regularisation}"
                for metric in METRICS:
                    if (equal := found.equal_nll(*labels, metric)) is not None:
                        findings[f"{data}, {regularisation}: {name} / {other}, {metric}"] = equal
            for name in names:
                failed = sum(o.status != SUCCESS for o in found.of(f"{name}, {regularisation}"))
                findings |= {f"{data}, {regularisation}: {name}, failed": failed} if failed else {}
        fitted = [o.records[0]["nll_test"] for o in found.of("mixture base, free") if o.records]
        if fitted:
            findings[f"{data}: NLL of a Gaussian mixture"] = float(np.mean(fitted))
    return findings


def _draw(results: Results) -> Figure:
    figure = Figure(figsize=(4.4 * len(results.data), 3.6 * len(REGULARISATIONS)), layout="constrained")
    panels = figure.subplots(len(REGULARISATIONS), len(results.data), squeeze=False)
    for row, regularisation in zip(panels, REGULARISATIONS, strict=True):
        for axes, data in zip(row, results.data, strict=True):
            draw_curves(axes, results.of(data=data), {f"{name}, {regularisation}": name for name in variants(data)})
            axes.set_title(f"{data}, {regularisation}")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def draw_curves(axes: Axes, results: Results, names: Mapping[str, str], xlabel: str = "test NLL in nats") -> None:
    """Draw evaluations of sampling against the NLL, along the trainings of labels with other names to show."""
    for (label, name), color in zip(names.items(), (*plots.LINE_COLORS, "0.6"), strict=False):
        for i, outcome in enumerate(results.of(label).succeeded):
            nll, nfe = ([record[figure] for record in outcome.records[1:]] for figure in ("nll_test", METRIC))
            axes.plot(nll, nfe, "o-", ms=3, lw=1, color=color, alpha=0.7, label=None if i else name)
    axes.set(xlabel=xlabel, ylabel="evaluations of sampling, 1e-7")


# The two chosen settings

COMPONENTS = (4, 8, 16, 32)
WEIGHTS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)


def _penalised(weight: float) -> str:
    return f"{PLAIN}, acceleration {weight:g}"


def _mixed(components: int) -> str:
    return f"categorical K={components}"


def _tried(data: str, scale: Scale) -> dict[str, str]:
    tried: dict[str, dict[str, Any]] = {_penalised(weight): {"acceleration": weight} for weight in WEIGHTS}
    tried |= {_mixed(k): {**MIXTURE, "extra": k, "acceleration": 0.0} for k in COMPONENTS}
    measure = {"measure": "validation-costs"}
    return {label: equal_size(data, scale, options | measure) for label, options in tried.items()}


def choose(results: Results) -> dict[str, Any]:
    """Choose the two settings for each data set, on its validation part.

    The number of components is that of the mixture of flows with the fewest evaluations of sampling at equal NLL,
    relative to the plain flow, among the mixtures that become as good as the plain flow (or the best, if none does):
    with many components the mixture alone can stop short of it. The weight of the penalty, the same for all variants,
    is that of the plain flow's fewest evaluations whose validation NLL is at most 0.02 nats above that without; the
    smallest if all cost more.
    """
    findings: dict[str, Any] = {}
    for data in results.data:
        found, costs = results.of(data=data), {}
        for k in COMPONENTS:
            pair = _mixed(k), _penalised(0.0)
            equal = found.equal_nll(*pair, METRIC)
            if equal is not None:
                behind = max(0.0, found.difference(*pair, "validation_nll"))
                costs[k] = behind, equal["ratio"]
                findings[f"{data}: {_mixed(k)} / {PLAIN}, {METRIC}"] = equal["ratio"]
                findings[f"{data}: {_mixed(k)}, validation NLL behind {PLAIN}"] = behind
        if costs:
            findings[f"{data}: components"] = min(costs, key=lambda k: costs[k])
        groups = dict(zip(WEIGHTS, found.shared(*map(_penalised, WEIGHTS)), strict=True))  # of the same seeds
        nll = {weight: group.mean("validation_nll") for weight, group in groups.items()}
        nfe = {weight: group.mean("nfe_validation") for weight, group in groups.items()}
        for weight in WEIGHTS:
            findings[f"{data}: {_penalised(weight)}, validation NLL"] = nll[weight]
            findings[f"{data}: {_penalised(weight)}, NFE of log_prob"] = nfe[weight]
        good = [weight for weight in WEIGHTS[1:] if nll[weight] <= nll[0.0] + ALLOWED]
        findings[f"{data}: acceleration"] = min(good, key=lambda weight: nfe[weight], default=WEIGHTS[1])
    return findings


def _draw_tuning(axes: Axes, results: Results) -> None:
    names = {label: label for label in (_penalised(0.0), *map(_mixed, COMPONENTS))}
    draw_curves(axes, results, names, "validation NLL in nats")


EXPERIMENTS = {
    "augmented-density": Experiment(
        "evaluations of plain and augmented densities of as many parameters, at equal likelihood",
        DATA,
        "densities",
        _runs,
        _draw,
        _findings,
        first=tuple(f"{name}, {regularisation}" for name in FIRST for regularisation in REGULARISATIONS),
    ),
    "augmented-tuning": Experiment(
        "the settings of augmented-density, chosen on validation data with other seeds",
        DATA,
        "densities",
        _tried,
        columns(_draw_tuning),
        choose,
        first_seed=100,
    ),
}
