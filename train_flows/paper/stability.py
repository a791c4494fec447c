"""Figure 13: loss and evaluations when a few images are overfitted for long; evaluations are bounded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from train_flows.paper import image_figures
from train_flows.paper.outcomes import Outcome
from train_flows.paper.report import AttemptInSittings, Report, curves, of, report
from train_flows.paper.scale import FAMILIES, Scale, family

DATA = ("mnist",)
BOUND = {"rtol": 1e-3, "atol": 1e-3, "max_steps": 166}  # 998 evaluations
LONG: dict[str, Any] = {"train_size": 500, "epochs": 200, "batch_size": 50}
PANELS = (("loss",), ("nfe_forward",), ("test_loss",), ("test_accuracy",))


def run(attempt_all: AttemptInSittings, scale: Scale, data: Sequence[str]) -> Report:
    """Train NODE and ANODE on few images until long after they are learnt."""
    trials = [
        scale.trial(name, each, {**scale.conv(each, extra), "solver": BOUND}, **LONG)
        for each in data
        for name, extra in _models(each).items()
    ]
    outcomes = attempt_all(trials)
    return report(outcomes, partial(image_figures.rows, outcomes, PANELS), _findings(outcomes, data))


def _models(data: str) -> dict[str, int]:
    extra = FAMILIES[family(data)].extra
    return {"NODE": 0, f"ANODE p={extra}": extra}


def _findings(outcomes: Sequence[Outcome], data: Sequence[str]) -> dict[str, Any]:
    findings: dict[str, Any] = {"published, full mnist": "NODE exceeds 1,000 evaluations and is unstable"}
    for each in data:
        for name in _models(each):
            group = of(outcomes, name, each)
            ended = [o.status for o in group if o.status != "success"]
            findings[f"{each}, {name}: runs ended by their evaluations or otherwise"] = ", ".join(ended) or "none"
            begun = [o for o in group if len(o.records) > 1]
            most, first, jump, height = math.nan, math.nan, math.nan, math.nan
            if begun:
                nfe, loss = curves(begun, "nfe_forward"), curves(begun, "loss")[:, 1:]
                most, first = float(np.nanmax(nfe)), float(nfe[:, 1].mean())
                ratios = loss / np.fmin.accumulate(loss, axis=1)
                highest = np.unravel_index(np.nanargmax(ratios), ratios.shape)
                jump, height = float(ratios[highest]), float(loss[highest])
            findings[f"{each}, {name}: NFE of the first epoch, and the most of any"] = f"{first:.0f}, {most:.0f}"
            findings[f"{each}, {name}: largest loss of an epoch over the least before it"] = jump
            findings[f"{each}, {name}: the loss of that epoch"] = height
    return findings
