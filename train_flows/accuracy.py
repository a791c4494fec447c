"""The accuracy and loss of a classifier on samples, and what the solves cost."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from anode import Classifier, Solver, SolverError, with_solver
from anode.solver import solvers_in
from train_flows import supervised
from train_flows.data.labelled import Pairs
from train_flows.supervised import Supervised, outputs_together, predicted
from train_flows.text import lines_of


def loss_of(classes: object) -> str:
    """The loss to train by: cross-entropy of classes, smooth-L1 of values -1 and +1, as in the paper."""
    return "smooth-l1" if classes is None else "cross-entropy"


def measure(model: Classifier, pairs: Pairs, classes: object) -> dict[str, Any]:
    """Measure a classifier on samples.

    Args:
        model: the classifier.
        pairs: at least one.
        classes: their names; None where targets are values.

    Returns:
        ``samples``, their number n; ``accuracy``, the share of those that are right, and its ``standard_error``, see
        :func:`standard_error`; ``loss`` and its name ``loss_kind``; ``nfe``,
        evaluations of the field a solve; ``tolerance``; and, for an adaptive solver, ``tighter``: accuracy, loss and
        evaluations at tolerances ten times tighter, and ``changed``, the share of samples whose class is another
        there. It is None where that solve fails.
    """
    objective = Supervised(model, loss_of(classes))
    found = supervised.measure(objective, pairs)
    solver = next(iter(solvers_in(model)), None)
    n = len(pairs.x)
    figures: dict[str, Any] = {
        "samples": n,
        "accuracy": found["accuracy"],
        "standard_error": standard_error(found["accuracy"], n),
        "loss": found["loss"],
        "loss_kind": loss_of(classes),
        "nfe": found["nfe"],
        "tolerance": None,
    }
    if solver is None or not solver.adaptive:
        return figures
    figures["tolerance"] = {"rtol": solver.rtol, "atol": solver.atol}
    tighter = dataclasses.replace(solver, rtol=solver.rtol / 10, atol=solver.atol / 10)
    try:
        figures["tighter"] = _at(objective, tighter, pairs)
    except SolverError:
        figures["tighter"] = None
    return figures


def standard_error(accuracy: float, n: int) -> float:
    """Of an accuracy k / n: binomial, of (k + 1) / (n + 2), so that it is never zero."""
    share = (n * accuracy + 1) / (n + 2)
    return math.sqrt(share * (1 - share) / n)


@torch.no_grad()
def _at(objective: Supervised, solver: Solver, pairs: Pairs) -> dict[str, float]:
    tighter = with_solver(objective, solver)
    found = supervised.measure(tighter, pairs)
    before, after = (predicted(outputs_together(each.model, pairs.x)) for each in (objective, tighter))
    return {
        "accuracy": found["accuracy"],
        "loss": found["loss"],
        "nfe": found["nfe"],
        "changed": float((before != after).float().mean()),
        "rtol": solver.rtol,
        "atol": solver.atol,
    }


def table(figures: dict[str, Any]) -> str:
    """Measured figures as lines to read; those of training are there for a run that has just ended."""
    at = figures["tolerance"]
    how = "" if at is None else f", rtol {at['rtol']:g}, atol {at['atol']:g}"
    spread = f"{figures['accuracy']:.4f} +- {figures['standard_error']:.4f}"
    lines = [
        ("accuracy", f"{spread} ({figures['samples']} samples{how})"),
        ("loss", f"{figures['loss']:.4g} ({figures['loss_kind']})"),
    ]
    if figures["nfe"]:
        backward = f", {figures['nfe_backward']:.0f} backward in training" if "nfe_backward" in figures else ""
        lines.append(("NFE", f"{figures['nfe']:.0f}{backward}"))
    if "train_loss" in figures:
        lines.append(("training", f"accuracy {figures['train_accuracy']:.4f}, loss {figures['train_loss']:.4g}"))
    if at is not None:
        tighter = figures["tighter"]
        lines.append(("tighter", "the solve failed" if tighter is None else _tighter(tighter)))
    return lines_of(lines)


def _tighter(figures: dict[str, float]) -> str:
    return (
        f"accuracy {figures['accuracy']:.4f}, loss {figures['loss']:.4g}, NFE {figures['nfe']:.0f} "
        f"(rtol {figures['rtol']:g}, atol {figures['atol']:g}); {figures['changed']:.2%} of the classes change"
    )
