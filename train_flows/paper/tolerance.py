"""Figure 3 of Chen et al. 2018: what a tolerance buys, in error, time, memory and evaluations.

The networks are neural ODEs trained on the concentric spheres; error is the root mean square difference of the final
states of 256 points to those of a solve at 1e-10. All solves are in float64.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from anode import Classifier, Solver, SolverError, count_evals, with_solver
from train_flows.paper import pictures
from train_flows.paper.report import AttemptAll, Report, curves, mean, of, report
from train_flows.paper.trials import Trained, Trial

TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
REFERENCE = Solver(rtol=1e-10, atol=1e-10, max_steps=100_000)
DEPTHS = (1, 2, 3, 5, 8)
GRADIENTS = ("direct", "adjoint")
PANELS = (
    ("error", ("direct",), "error against evaluations"),
    ("seconds_forward", ("direct",), "time of a forward solve"),
    ("nfe_backward", ("adjoint",), "evaluations of the adjoint"),
    ("bytes_kept", GRADIENTS, "memory kept for the backward pass"),
    ("seconds", GRADIENTS, "time of a forward and backward solve"),
)
NODES = {"NODE": "relu", "NODE tanh": "tanh"}  # with kinks, at which steps fail, and without
SHOWN = (1e-3, 1e-5, 1e-7)
TRIALS = [
    *[Trial(name, "spheres", {"activation": activation}) for name, activation in NODES.items()],
    *[Trial(f"ResNet of {k}", "spheres", {"model": "resnet", "blocks": k}) for k in DEPTHS],
]
POINTS = 256  # to solve for
REPEATS = 5  # of a timing, of which the median is taken


def run(attempt_all: AttemptAll) -> Report:
    """Train, and solve every trained network at every tolerance with both kinds of gradients."""
    outcomes = attempt_all(TRIALS)
    nodes = [outcome for outcome in outcomes if outcome.trial.name in NODES and outcome.status == "success"]
    solves = [
        {"network": o.trial.name, "seed": o.seed, **row} for o in nodes for row in measure(o.model, o.train.x[:POINTS])
    ]
    good = [row for row in solves if row["status"] == "success"]
    depth = _equal_depth(outcomes)
    done = report(outcomes, partial(_figure, good, outcomes, depth), _findings(good, outcomes, depth))
    return dataclasses.replace(done, runs=[*done.runs, {"data": "spheres", "name": "solves", "solves": solves}])


def measure(model: Classifier, x: Tensor) -> list[dict[str, Any]]:
    """Error, evaluations, seconds and memory kept for the backward pass, for every tolerance and gradient.

    Args:
        model: a neural ODE in float32.
        x: points (N, D); solves are in float64, so that rounding leaves the small tolerances alone.

    Returns:
        A row for each, with a ``status``: that of a failed solve has nothing else.
    """
    model, x = copy.deepcopy(model).double(), x.double()
    try:
        with torch.no_grad():
            reference = with_solver(model, REFERENCE).features(x)
    except SolverError as error:
        return [{"status": f"reference: {error.cause}"}]
    rows = []
    for tolerance in TOLERANCES:
        for gradient in GRADIENTS:
            solver = Solver(rtol=tolerance, atol=tolerance, gradient=gradient, max_steps=100_000)
            row: dict[str, Any] = {"tolerance": tolerance, "gradient": gradient}
            try:
                row |= {"status": "success", **_solved(with_solver(model, solver), x, reference)}
            except SolverError as error:
                row["status"] = error.cause
            rows.append(row)
    return rows


def _solved(model: Classifier, x: Tensor, reference: Tensor) -> dict[str, float]:
    with count_evals(model) as nfe, kept_bytes() as kept:
        features = model.features(x)
    size = kept()
    features.square().mean().backward()
    forward, both = [], []
    for _ in range(REPEATS):
        started = time.perf_counter()
        again = model.features(x)
        forward.append(time.perf_counter() - started)
        again.square().mean().backward()
        both.append(time.perf_counter() - started)
        model.zero_grad()
    return {
        "error": float((features.detach() - reference).square().mean().sqrt()),
        "nfe_forward": nfe.forward,
        "nfe_backward": nfe.backward,
        "seconds_forward": statistics.median(forward),
        "seconds": statistics.median(both),
        "bytes_kept": size,
    }


class _Kept:
    """A tensor that autograd holds on to; it dies with the graph."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@contextmanager
def kept_bytes() -> Generator[Callable[[], int]]:
    """Measure the memory that autograd keeps for the backward pass: the bytes of the storages still held when asked."""
    alive: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def keep(tensor: Tensor) -> _Kept:
        kept = _Kept(tensor.detach())  # with its graph, an output that is kept would keep itself
        alive.add(kept)
        return kept

    def total() -> int:
        storages = (kept.tensor.untyped_storage() for kept in alive)
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    with saved_tensors_hooks(keep, lambda kept: kept.tensor):
        yield total


def _equal_depth(outcomes: Sequence[Trained]) -> int | None:
    """The fewest residual blocks, of those tried, whose mean accuracy is not below that of the NODE."""
    wanted = mean(of(outcomes, "NODE"), "accuracy")
    return next((k for k in DEPTHS if mean(of(outcomes, f"ResNet of {k}"), "accuracy") >= wanted), None)


def _findings(solves: Sequence[dict[str, Any]], outcomes: Sequence[Trained], depth: int | None) -> dict[str, Any]:
    def at(metric: str, tolerance: float, network: str, gradient: str = "direct") -> float:
        wanted = {"tolerance": tolerance, "network": network, "gradient": gradient}
        values = [solve[metric] for solve in solves if wanted.items() <= solve.items()]
        return float(np.mean(values)) if values else math.nan

    findings: dict[str, Any] = {}
    for network in NODES:
        errors = ", ".join(f"{at('error', t, network):.2g}" for t in SHOWN)
        costs = ", ".join(f"{at('nfe_forward', t, network):.0f}" for t in SHOWN)
        backward, forward = (at(f"nfe_{way}", 1e-5, network, "adjoint") for way in ("backward", "forward"))
        findings[f"{network}: error at 1e-3, 1e-5, 1e-7"] = errors
        findings[f"{network}: NFE at 1e-3, 1e-5, 1e-7"] = costs
        findings[f"{network}: NFE of the adjoint, backward / forward at 1e-5"] = backward / forward
        for metric, what in (("bytes_kept", "memory kept"), ("seconds", "time of a solve and its gradient")):
            direct, adjoint = (at(metric, 1e-5, network, gradient) for gradient in GRADIENTS)
            findings[f"{network}: {what}, direct / adjoint at 1e-5"] = direct / adjoint
    findings["blocks of a ResNet of equal accuracy"] = depth
    findings["NFE of the NODE in the last epoch"] = mean(of(outcomes, "NODE"), "nfe_forward")
    return findings


def _figure(solves: Sequence[dict[str, Any]], outcomes: Sequence[Trained], depth: int | None) -> Figure:
    figure = Figure(figsize=(15, 6.4), layout="constrained")
    *panels, last = figure.subplots(2, 3).ravel()
    for axes, (metric, gradients, title) in zip(panels, PANELS, strict=True):
        for i, network in enumerate(NODES):
            for gradient in gradients:
                rows = [row for row in solves if (row["network"], row["gradient"]) == (network, gradient)]
                if rows:
                    x, y = ([row[name] for row in rows] for name in ("nfe_forward", metric))
                    marker = "o" if gradient == "direct" else "x"
                    axes.loglog(x, y, marker, ms=4, color=f"C{i}", label=f"{network}, {gradient}")
        axes.set(title=title, xlabel="forward evaluations", ylabel=metric.replace("_", " "))
        axes.xaxis.set_minor_formatter(NullFormatter())
    equal = [row["nfe_forward"] for row in solves]
    panels[2].plot(equal, equal, color="0.7", lw=1, label="as many as forward")
    for axes in panels:
        if axes.lines:
            axes.legend(fontsize="small")
    pictures.bands(last, {"NODE, evaluations": curves(of(outcomes, "NODE"), "nfe_forward")}, "depth while training")
    if depth is not None:
        last.axhline(depth, color="C1", ls="--", label="ResNet of equal accuracy, blocks")
        last.set_ylim(bottom=0)
        last.legend()
    return figure
