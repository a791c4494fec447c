"""Figures of training densities: penalised paths, and FFJORD's recipe.

Runs are those of ``train-flows density`` with the recipe of points in two dimensions. Figures of evaluations and NLL
are those of the weights with the best validation NLL.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from anode.errors import check_choice
from train_flows import recipes
from train_flows.data import toy
from train_flows.experiments.grid import Experiment, Scale, words
from train_flows.experiments.panels import against, draw_panels, ends_against
from train_flows.experiments.results import Outcome, Results, by_data

QUICK = {"steps": 4, "validate_every": 2, "batch_size": 32, "hidden": (8, 8), "rtol": 1e-2, "atol": 1e-2}
LOG_PROB, SAMPLING = {"NFE of log_prob": "nfe_log_prob"}, {"NFE of sampling": "nfe_sample"}


def training(data: str, scale: Scale, **options: Any) -> str:
    """Return the command line that trains a density, from options other than those of its recipe."""
    check_choice("data", data, toy.DENSITIES)
    return words("density {data}", options | (QUICK if scale.size == "quick" else {}))


# A penalty on the acceleration of paths

WEIGHTS = (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
ALLOWED = 0.02  # nats of validation NLL


def penalised(weight: float) -> str:
    """Return the label of a weight of the penalty."""
    return f"acceleration {weight:g}"


def chosen_weight(results: Results, weights: Sequence[float] = WEIGHTS) -> float | None:
    """Return the weight of the fewest evaluations whose mean validation NLL is at most 0.02 nats above that of 0."""
    lost = {weight: results.difference(penalised(weight), penalised(0.0), "validation_nll") for weight in weights[1:]}
    allowed = [weight for weight, nats in lost.items() if nats <= ALLOWED]
    return min(allowed, key=lambda weight: results.of(penalised(weight)).mean("nfe_validation"), default=None)


def _penalties(results: Results, data: str) -> dict[str, Any]:
    weight = chosen_weight(results)
    if weight is None:
        return {}
    both = penalised(weight), penalised(0.0)
    gained = [still_gained(outcome) for outcome in results.shared(*both)[1]]
    return {
        "chosen weight": weight,
        **results.ratios(*both, LOG_PROB | SAMPLING, "with / without"),
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


# FFJORD

OURS, THEIRS = "default", "FFJORD"


def _times(results: Results, data: str) -> dict[str, Any]:
    """Compare times until the validation NLL is as low as FFJORD's at its end and stays there.

    FFJORD's recipe is that of its published code, here with 2,500 iterations: three hidden layers of 64 units,
    concat-squash, tanh, the exact trace, the adjoint of torchdiffeq, Adam at 1e-3, batches of 512. Seconds are those of
    training alone, in a process of one thread.
    """
    pair = results.shared(OURS, THEIRS)
    ends = [outcome.records[-1] for outcome in pair[1]]
    shares = [seconds_to(o.records, end["nll"]) / end["seconds"] for o, end in zip(pair[0], ends, strict=True)]
    return {
        "time to FFJORD's final NLL over FFJORD's": float(np.mean(shares or math.nan)),
        **{
            f"{name}, {label}": group.mean(metric)
            for name, metric in {"final test NLL": "test_nll", "seconds": "seconds"}.items()
            for label, group in zip((OURS, THEIRS), pair, strict=True)
        },
        **results.ratios(OURS, THEIRS, LOG_PROB),
    }


def seconds_to(records: Sequence[Any], nll: float) -> float:
    """Return the seconds until a validation NLL is reached for good; infinite if it never is."""
    above = [i for i, record in enumerate(records) if record["nll"] > nll]
    first = 1 + max(above, default=-1)
    return records[first]["seconds"] if first < len(records) else math.inf


EXPERIMENTS = {
    "path-energies": Experiment(
        "evaluations and likelihood of densities trained with and without a penalty on acceleration",
        ("separated-8gaussians", "checkerboard", "annulus"),
        "densities",
        lambda data, scale: {
            penalised(weight): training(data, scale, steps=2000, validate_every=100, acceleration=weight)
            for weight in WEIGHTS
        },
        lambda r: draw_panels(r, ends_against("nfe_log_prob", "test_nll"), against("step", "nfe_log_prob")),
        _penalties_and_mean,
    ),
    "ffjord": Experiment(
        "time to the likelihood that FFJORD's recipe reaches",
        ("8gaussians", "checkerboard", "2spirals"),
        "densities",
        lambda data, scale: {
            THEIRS: training(data, scale, **{**recipes.FFJORD, "validate_every": 250}),
            OURS: training(data, scale, validate_every=25),
        },
        lambda r: draw_panels(r, against("seconds", "nll")),
        lambda r: by_data(r, _times),
    ),
}
