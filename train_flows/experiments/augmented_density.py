"""Costs of a continuous flow, of augmented flows, and of a few residual steps: at equal likelihood and at the best.

All have as many parameters. Every flow trains like the plain one, by the same recipe, without and with a penalty on
acceleration; residual steps follow no path, and train with the learning rate of the recipe of residual steps. All are
measured during training in double precision (``--measure costs``). For each seed, variants are compared where their
test NLL is equal, and where each has its lowest: with the plain flow, and with flows that differ in one point. A
variant that knows only a bound of its likelihood is at a disadvantage; the likelihood of discrete data is a bound for
all, from equal numbers of draws.

The work of log_prob is the number of evaluations for each sample, over all components and draws that are solved, and
with those of the gate that prunes a mixture. Seconds are of the process, in double precision at the tolerance named.
The gap of pruning is what the likelihood of a mixture lacks by the components left out, in nats: a certificate from
samples for which all components are summed. Residual steps that fold have a density that integrates to 1 + m: their NLL
is that of the density divided by an estimate of its integral.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from cnf import DensityConfig, density_model
from train_flows import density
from train_flows.command_line import parse
from train_flows.data import Dataset, is_images, load_density_data, toy
from train_flows.evaluation.costs import TOLERANCES
from train_flows.experiments.grid import Experiment, Scale, words
from train_flows.experiments.panels import against, draw_panels
from train_flows.experiments.results import SUCCESS, Results, by_data
from train_flows.experiments.training_densities import QUICK, chosen_weight, penalised
from train_flows.settings import DensitySettings

DATA = ("checkerboard", "8gaussians", "annulus", "2spirals", "pinwheel", "digits")
PLAIN, MIXED = "p=0", "mixture (pruned)"
STEPPED, STEPPED_MIXED = "residual steps", "residual steps, mixture"
FIRST = (PLAIN, MIXED, STEPPED_MIXED, STEPPED)
CONTROLS = ((MIXED, "mixture base"), (STEPPED_MIXED, MIXED), ("joint, matched", "p=0, matched"))
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
STEPS_OF_RESIDUAL = {"parkinsons.csv.gz": 600}  # 3 times as many in the plane, where they take far fewer seconds
REGULARISATIONS = ("free", "penalised")
COSTS = ("nfe_sample", "work_log_prob", "seconds_sample", "seconds_log_prob")
METRICS = tuple(f"{cost}_{tolerance:.0e}" for cost in COSTS for tolerance in TOLERANCES)
METRIC = f"nfe_sample_{TOLERANCES[-1]:.0e}"
CURVES = against("nll_test", METRIC, "o-")


CHOSEN = {  # by augmented-tuning: components of mixtures, weight of the penalty of all variants
    "checkerboard": (8, 1e-2),
    "parkinsons.csv.gz": (8, 1e-1),
    "protein.csv.gz": (32, 1e-4),
}
UNCHOSEN = (8, 1e-3)  # of other data


def variants(data: str) -> dict[str, dict[str, Any]]:
    """Return what is compared, by name: options of ``train-flows density`` that the plain flow does not have.

    On whitened tables all mixtures have full covariances, by their recipe.
    """
    k, _ = CHOSEN.get(data, UNCHOSEN)
    matched = {"objective": "flow-matching+likelihood", "likelihood_steps": 1000}
    plane, images = data in toy.DENSITIES, is_images(data)
    residual = {**length(data, residual=True), "residual_steps": 4}
    stepped = {STEPPED_MIXED: {**residual, **MIXTURE, "extra": k}, STEPPED: {**residual, "extra": 0}}
    return {
        PLAIN: {},
        MIXED: {**MIXTURE, "extra": k},
        **({} if images else stepped),
        "mixture base": {"base": "mixture", "components": k},
        "joint": {"extra": 1},
        **({"momentum": {"augmentation": "momentum", "extra": 2}} if plane else {}),
        **({f"{PLAIN}, matched": matched, "joint, matched": {"extra": 1, **matched}} if plane else {}),
        **({f"joint, p={p}": {"extra": p} for p in (2, 4)} if images else {}),
        "joint, learned q": {"extra": 1, "posterior": "learned"},
    }


def plain_options(data: str) -> dict[str, Any]:
    """Return the options of all variants: likelihood alone, so that a curve is of one piece."""
    options = {**length(data), "objective": "likelihood", "patience": 0}
    return options | (CONVOLUTIONS if is_images(data) else {})


def length(data: str, residual: bool = False) -> dict[str, int]:
    """Return the options of the length of training; residual steps train for fewer seconds than the plain flow."""
    plane = data in toy.DENSITIES
    steps = 2000 if plane else STEPS.get(data, 4000)
    if residual:
        steps = 3 * steps if plane else STEPS_OF_RESIDUAL.get(data, steps)
    records = 10 if plane or is_images(data) else 20  # tables learn most within their first hundred steps
    return {"steps": steps, "validate_every": math.ceil(steps / records)}


def equal_size(data: str, scale: Scale, options: dict[str, Any]) -> str:
    """Return the command line of a variant, with the widest field within the number of parameters of the plain flow."""
    source, shared, quick = scale.source(data), plain_options(data), {}
    if scale.size == "quick":
        quick = QUICK | ({"hidden": (4,)} if is_images(data) else {})
    unsolved = ("rtol", "atol") if "residual_steps" in options else ()
    options = {option: value for option, value in (shared | options | quick).items() if option not in unsolved}
    plain, variant = (_config(source, words("", each)) for each in (shared | quick, options))
    allowed, dataset, layers = parameters(plain, _dataset(source)), _dataset(source), len(plain.hidden)
    widths = ((n,) * layers for n in range(plain.hidden[0], 1, -1))
    fits = (hidden for hidden in widths if parameters(replace(variant, hidden=hidden), dataset) <= allowed)
    return words("density {data}", options | {"hidden": next(fits, (1,) * layers)})


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
    free, penalty = REGULARISATIONS
    runs = {}
    for name, options in variants(data).items():
        if scale.size == "quick" and name not in FIRST:
            continue
        weights = {free: {"acceleration": 0.0}, penalty: {"acceleration": CHOSEN.get(data, UNCHOSEN)[1]}}
        for regularisation, weight in ({free: {}} if "residual_steps" in options else weights).items():
            command = equal_size(data, scale, {**options, **weight, "measure": "costs"})
            runs[f"{name}, {regularisation}"] = command
    return runs


def by_variant(results: Results) -> Results:
    """Return the outcomes labelled by their variant alone; their data are data and regularisation."""
    parts = [(o, *o.label.rpartition(", ")[::2]) for o in results]
    return Results(replace(o, label=name, data=f"{o.data}, {regularisation}") for o, name, regularisation in parts)


def _compare(results: Results, data: str) -> dict[str, Any]:
    findings: dict[str, Any] = {}
    for name, other in (*((name, PLAIN) for name in results.labels if name != PLAIN), *CONTROLS):
        for metric in METRICS:
            if (equal := results.equal_nll(name, other, metric)) is not None:
                findings[f"{name} / {other}, {metric}"] = equal
        if (best := results.at_best(name, other, (*METRICS, "seconds"))) is not None:
            findings[f"{name} / {other}, at best NLL"] = best
    for name in results.labels:
        group = results.of(name)
        if failed := sum(o.status != SUCCESS for o in group):
            findings[f"{name}, failed"] = failed
        findings[f"{name}, points solved for an NLL"] = group.mean("points_log_prob")
        if len(mass := group.succeeded.curves("folded_mass")[:, 1:].ravel()) and np.isfinite(mass).any():
            findings[f"{name}, folded mass"] = float(np.nanmax(mass))
        if gap := pruning_gap(group):
            findings[f"{name}, gap of pruning"] = gap
    if fitted := [o.records[0]["nll_test"] for o in results.of("mixture base") if o.records]:
        findings["NLL of a Gaussian mixture"] = float(np.mean(fitted))
    return findings


def pruning_gap(results: Results) -> dict[str, float]:
    """Return the largest over the seeds of the ``mean`` gap of pruning with its ``error``, and the ``largest`` gap.

    All records count but the one before training; nothing without a gap, as for a density that is not a mixture.
    """
    records = [record for o in results.succeeded for record in o.records[1:] if "gap_mean" in record]
    if not records:
        return {}
    worst = max(records, key=lambda record: record["gap_mean"])
    largest = max(record["gap_max"] for record in records)
    return {"mean": worst["gap_mean"], "error": worst["gap_error"], "largest": largest}


# The two chosen settings

COMPONENTS = (4, 8, 16, 32)
WEIGHTS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)


def _mixed(components: int) -> str:
    return f"categorical K={components}"


def _tried(data: str, scale: Scale) -> dict[str, str]:
    tried: dict[str, dict[str, Any]] = {penalised(weight): {"acceleration": weight} for weight in WEIGHTS}
    tried |= {_mixed(k): {**MIXTURE, "extra": k, "acceleration": 0.0} for k in COMPONENTS}
    measure = {"measure": "validation-costs"}
    return {label: equal_size(data, scale, options | measure) for label, options in tried.items()}


def choose(results: Results, data: str) -> dict[str, Any]:
    """Choose the two settings for a data set, on its validation part.

    The number of components is that of the mixture of flows with the fewest evaluations of sampling at equal NLL,
    relative to the plain flow, among the mixtures that become as good as the plain flow (or the best, if none does):
    with many components the mixture alone can stop short of it. The weight of the penalty, the same for all variants,
    is that of the plain flow's fewest evaluations whose validation NLL is at most 0.02 nats above that without; the
    smallest if all cost more.
    """
    findings, costs = {}, {}
    for k in COMPONENTS:
        pair = _mixed(k), penalised(0.0)
        if (equal := results.equal_nll(*pair, METRIC)) is not None:
            behind = max(0.0, results.difference(*pair, "validation_nll"))
            costs[k] = behind, equal["ratio"]
            findings[f"{_mixed(k)} / {PLAIN}, {METRIC}"] = equal["ratio"]
            findings[f"{_mixed(k)}, validation NLL behind {PLAIN}"] = behind
    findings["components"] = min(costs, key=lambda k: costs[k], default=None)
    for label in map(penalised, WEIGHTS):
        findings[f"{label}, validation NLL"] = results.of(label).mean("validation_nll")
        findings[f"{label}, NFE of log_prob"] = results.of(label).mean("nfe_validation")
    findings["acceleration"] = chosen_weight(results, WEIGHTS) or WEIGHTS[1]
    return findings


def _draw_tuning(results: Results) -> Figure:
    labels = (penalised(0.0), *map(_mixed, COMPONENTS))
    figure = draw_panels(Results(o for o in results if o.label in labels), CURVES)
    for axes in figure.axes:
        axes.set_xlabel("validation NLL in nats")
    return figure


EXPERIMENTS = {
    "augmented-density": Experiment(
        "evaluations of plain and augmented densities of as many parameters, at equal likelihood",
        DATA,
        "densities",
        _runs,
        lambda r: draw_panels(by_variant(r), CURVES),
        lambda r: by_data(by_variant(r), _compare),
        first=tuple(f"{name}, {regularisation}" for name in FIRST for regularisation in REGULARISATIONS),
    ),
    "augmented-tuning": Experiment(
        "the settings of augmented-density, chosen on validation data with other seeds",
        DATA,
        "densities",
        _tried,
        _draw_tuning,
        lambda r: by_data(r, choose),
        first_seed=100,
    ),
}
