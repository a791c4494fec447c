"""Named settings: for each data set the values that differ from the defaults; the command line overrides both."""

from __future__ import annotations

from typing import Any

from train_flows.data import paper, toy

DENSITY: dict[str, dict[str, Any]] = {
    "toy": {"hidden": (64, 64), "steps": 800},
    "table": {"hidden": (256, 256), "steps": 2500, "lr": 5e-3, "validate_every": 250},
    "digits": {"hidden": (256, 256), "batch_size": 128, "lr": 3e-3},
}


CLASSIFY: dict[str, dict[str, Any]] = {
    "paper": {},
    "table": {"epochs": 100, "extra": 5},
    "digits": {"hidden": (64, 64), "extra": 5},
}


def density(source: str) -> dict[str, Any]:
    """The recipe of a data set of ``train-flows density``: its own, or that of toys or of tables."""
    return DENSITY.get(source, DENSITY["toy" if source in toy.DENSITIES else "table"])


def classify(source: str) -> dict[str, Any]:
    """The recipe of a data set of ``train-flows classify``: its own, that of the paper's functions, or of tables."""
    return CLASSIFY.get(source, CLASSIFY["paper" if paper.known(source) else "table"])
