"""Figure 3 of Chen et al. 2018: what a tolerance buys, in error, time, memory and evaluations.

The networks are neural ODEs trained on the concentric spheres; error is the root mean square difference of the final
states of 256 points to those of a solve at 1e-10. All solves are in float64.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from anode import Classifier, Solver, count_evals, with_solver
from train_flows.paper import pictures
from train_flows.paper.report import Report, curves, final, of, report
from train_flows.paper.trials import Outcome, Trial

TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
REFERENCE = Solver(rtol=1e-10, atol=1e-10, max_steps=100_000)
DEPTHS = (1, 2, 3, 5, 8)
TRIALS = [
    Trial("NODE", "spheres"),
    *[Trial(f"ResNet of {k}", "spheres", {"model": "resnet", "blocks": k}) for k in DEPTHS],
]
POINTS = 256  # to solve for
REPEATS = 5  # of a timing, of which the median is taken


def run(attempt_all: Callable[[Sequence[Trial]], list[Outcome]]) -> Report:
    """Train, and solve every trained network at every tolerance with both kinds of gradients."""
    outcomes = attempt_all(TRIALS)
    nodes = [outcome for outcome in of(outcomes, "NODE") if outcome.status == "success"]
    solves = [row | {"seed": o.seed} for o in nodes for row in measure(o.model, o.train.x[:POINTS])]
    depth = _equal_depth(outcomes)
    done = report(outcomes, _figure(solves, outcomes, depth), _findings(solves, outcomes, depth))
    return dataclasses.replace(done, runs=[*done.runs, {"data": "spheres", "name": "solves", "solves": solves}])


def measure(model: Classifier, x: Tensor) -> list[dict[str, Any]]:
    """Error, evaluations, seconds and memory kept for the backward pass, for every tolerance and gradient.

    Args:
        model: a neural ODE in float32.
        x: points (N, D); solves are in float64, so that rounding leaves the small tolerances alone.
    """
    model, x = copy.deepcopy(model).double(), x.double()
    with torch.no_grad():
        reference = with_solver(model, REFERENCE).features(x)
    rows = []
    for tolerance in TOLERANCES:
        for gradient in ("direct", "adjoint"):
            solver = Solver(rtol=tolerance, atol=tolerance, gradient=gradient, max_steps=100_000)
            at = with_solver(model, solver)
            forward, seconds = [], []
            for _ in range(REPEATS):
                started = time.perf_counter()
                with count_evals(at) as nfe, kept_bytes() as kept:
                    features = at.features(x)
                forward.append(time.perf_counter() - started)
                features.square().mean().backward()
                seconds.append(time.perf_counter() - started)
                at.zero_grad()
            error = (features.detach() - reference).square().mean().sqrt()
            rows.append(
                {
                    "tolerance": tolerance,
                    "gradient": gradient,
                    "error": float(error),
                    "nfe_forward": nfe.forward,
                    "nfe_backward": nfe.backward,
                    "seconds_forward": statistics.median(forward),
                    "seconds": statistics.median(seconds),
                    "bytes_kept": kept[0],
                }
            )
    return rows


@contextmanager
def kept_bytes() -> Generator[list[int]]:
    """Count the bytes of distinct tensors that autograd keeps for the backward pass; the list holds their sum."""
    kept, seen = [0], set()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept[0] += storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def _equal_depth(outcomes: Sequence[Outcome]) -> int | None:
    """The fewest residual blocks, of those tried, whose mean accuracy is not below that of the NODE."""
    wanted = final(of(outcomes, "NODE"), "accuracy").mean()
    return next((k for k in DEPTHS if final(of(outcomes, f"ResNet of {k}"), "accuracy").mean() >= wanted), None)


def _findings(solves: Sequence[dict[str, Any]], outcomes: Sequence[Outcome], depth: int | None) -> dict[str, Any]:
    def mean(metric: str, tolerance: float, gradient: str) -> float:
        return float(np.mean([s[metric] for s in solves if (s["tolerance"], s["gradient"]) == (tolerance, gradient)]))

    direct, adjoint = (mean("bytes_kept", 1e-5, gradient) for gradient in ("direct", "adjoint"))
    return {
        "error at 1e-3, 1e-5, 1e-7": ", ".join(f"{mean('error', t, 'direct'):.2g}" for t in (1e-3, 1e-5, 1e-7)),
        "NFE at 1e-3, 1e-5, 1e-7": ", ".join(f"{mean('nfe_forward', t, 'direct'):.0f}" for t in (1e-3, 1e-5, 1e-7)),
        "NFE of the adjoint, backward / forward at 1e-5": mean("nfe_backward", 1e-5, "adjoint")
        / mean("nfe_forward", 1e-5, "adjoint"),
        "memory kept, direct / adjoint at 1e-5": direct / adjoint,
        "time of a step, direct / adjoint at 1e-5": mean("seconds", 1e-5, "direct") / mean("seconds", 1e-5, "adjoint"),
        "blocks of a ResNet of equal accuracy": depth,
        "NFE of the NODE in the last epoch": float(final(of(outcomes, "NODE"), "nfe_forward").mean()),
    }


def _figure(solves: Sequence[dict[str, Any]], outcomes: Sequence[Outcome], depth: int | None) -> Figure:
    figure = Figure(figsize=(15, 6.4), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    panels = (
        ("nfe_forward", "error", ("direct",), "error against evaluations"),
        ("nfe_forward", "seconds_forward", ("direct",), "time of a forward solve"),
        ("nfe_forward", "nfe_backward", ("adjoint",), "evaluations of the adjoint"),
        ("nfe_forward", "bytes_kept", ("direct", "adjoint"), "memory kept for the backward pass"),
        ("nfe_forward", "seconds", ("direct", "adjoint"), "time of a forward and backward solve"),
    )
    for panel, (x, y, gradients, title) in zip(axes, panels, strict=False):
        for i, gradient in enumerate(gradients):
            rows = [row for row in solves if row["gradient"] == gradient]
            panel.scatter([row[x] for row in rows], [row[y] for row in rows], s=12, color=f"C{i}", label=gradient)
        panel.set(title=title, xlabel="forward evaluations", ylabel=y.replace("_", " "), xscale="log", yscale="log")
        panel.legend()
    low, high = axes[2].get_xlim()
    axes[2].plot([low, high], [low, high], color="0.7", lw=1)
    pictures.bands(axes[5], {"NODE, evaluations": curves(of(outcomes, "NODE"), "nfe_forward")}, "depth while training")
    if depth is not None:
        axes[5].axhline(depth, color="C1", ls="--", label="ResNet of equal accuracy, blocks")
        axes[5].set_ylim(bottom=0)
        axes[5].legend()
    return figure
