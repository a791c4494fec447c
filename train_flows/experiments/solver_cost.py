"""Figure 3 of Neural ODEs (Chen et al. 2018): what a tolerance buys, in error, time, memory and evaluations.

The networks are neural ODEs trained on the concentric spheres; error is the root mean square difference of the final
states of 256 points to those of a solve at 1e-10. All solves are in float64. They are kept in the run folder.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from anode import Classifier, Solver, SolverError, count_evals, storage, with_solver
from train_flows.experiments.anode_on_functions import points, trainings
from train_flows.experiments.grid import Experiment
from train_flows.experiments.results import Results
from train_flows.figures import plots

TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
REFERENCE = Solver(rtol=1e-10, atol=1e-10, max_steps=100_000)
GRADIENTS = ("direct", "adjoint")
DEPTHS = (1, 2, 3, 5, 8)
NODES = ("NODE", "NODE tanh")  # with kinks, at which steps fail, and without
POINTS = 256  # to solve for
REPEATS = 5  # of a timing, whose median is taken
SHOWN = (1e-3, 1e-5, 1e-7)
PANELS = (
    ("error", ("direct",), "error against evaluations"),
    ("seconds_forward", ("direct",), "time of a forward solve"),
    ("nfe_backward", ("adjoint",), "evaluations of the adjoint"),
    ("bytes_kept", GRADIENTS, "memory kept for the backward pass"),
    ("seconds", GRADIENTS, "time of a forward and backward solve"),
)
UNITS = {
    "error": "root mean square error",
    "seconds_forward": "seconds",
    "nfe_backward": "backward evaluations",
    "bytes_kept": "bytes",
    "seconds": "seconds",
}
Rows = list[dict[str, Any]]


def solves_of(results: Results) -> Rows:
    """Solve every trained neural ODE, or read the earlier solves; return the successful ones with their network."""
    rows: Rows = []
    for outcome in (o for label in NODES for o in results.of(label).succeeded):
        path = outcome.folder / "solves.json"
        if not path.is_file():
            storage.write_json(path, measure(outcome.model, points(outcome)[0][:POINTS]))
        rows += [{"network": outcome.label, **row} for row in storage.read_json(path)]
    return [row for row in rows if row["status"] == "success"]


def measure(model: Classifier, x: Tensor) -> Rows:
    """Return error, evaluations, seconds and memory kept for the backward pass, for every tolerance and gradient.

    Args:
        model: a neural ODE.
        x: points (N, D); solves are in float64, so that rounding leaves the small tolerances alone.

    Returns:
        A row for each, with a ``status``; a failed solve has nothing else.
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
    """Measure the memory that autograd keeps for the backward pass: bytes of the storages that are still held."""
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


def equal_depth(results: Results) -> int | None:
    """Return the fewest residual blocks, of those tried, whose mean accuracy is not below that of the NODE."""
    wanted = results.of("NODE").mean("train_accuracy")
    return next((k for k in DEPTHS if results.of(f"ResNet of {k}").mean("train_accuracy") >= wanted), None)


def _findings(results: Results) -> dict[str, Any]:
    solves = solves_of(results)

    def at(metric: str, tolerance: float, network: str, gradient: str = "direct") -> float:
        wanted = {"tolerance": tolerance, "network": network, "gradient": gradient}
        values = [solve[metric] for solve in solves if wanted.items() <= solve.items()]
        return float(np.mean(values)) if values else math.nan

    findings: dict[str, Any] = {}
    for network in NODES:
        errors = ", ".join(f"{at('error', tolerance, network):.2g}" for tolerance in SHOWN)
        costs = ", ".join(f"{at('nfe_forward', tolerance, network):.0f}" for tolerance in SHOWN)
        backward, forward = (at(f"nfe_{way}", 1e-5, network, "adjoint") for way in ("backward", "forward"))
        findings[f"{network}: error at 1e-3, 1e-5, 1e-7"] = errors
        findings[f"{network}: NFE at 1e-3, 1e-5, 1e-7"] = costs
        findings[f"{network}: NFE of the adjoint, backward / forward at 1e-5"] = backward / forward
        for metric, what in (("bytes_kept", "memory kept"), ("seconds", "time of a solve and its gradient")):
            direct, adjoint = (at(metric, 1e-5, network, gradient) for gradient in GRADIENTS)
            findings[f"{network}: {what}, direct / adjoint at 1e-5"] = direct / adjoint
    findings["blocks of a ResNet of equal accuracy"] = equal_depth(results)
    findings["NFE of the NODE in the last epoch"] = results.of("NODE").mean("nfe_forward")
    return findings


def _draw(results: Results) -> Figure:
    solves, depth = solves_of(results), equal_depth(results)
    figure = Figure(figsize=(15, 6.4), layout="constrained")
    *panels, last = figure.subplots(2, 3).ravel()
    for axes, (metric, gradients, title) in zip(panels, PANELS, strict=True):
        for network, color in zip(NODES, plots.LINE_COLORS, strict=False):
            for gradient in gradients:
                rows = [row for row in solves if (row["network"], row["gradient"]) == (network, gradient)]
                x, y = ([row[name] for row in rows] for name in ("nfe_forward", metric))
                marker = "o" if gradient == "direct" else "x"
                axes.loglog(x, y, marker, ms=4, color=color, label=f"{network}, {gradient}")
        axes.set(title=title, xlabel="forward evaluations", ylabel=UNITS[metric])
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
    equal = sorted(row["nfe_forward"] for row in solves)
    panels[2].plot(equal, equal, color="0.7", lw=1, label="as many as forward")
    for axes in panels:
        axes.legend(fontsize="small")
    nfe = {"NODE, evaluations": results.of("NODE").curves("nfe_forward")}
    plots.bands(last, nfe, "depth while training", "evaluations or blocks")
    if depth is not None:
        last.axhline(depth, color=plots.LINE_COLORS[1], ls="--", label="ResNet of equal accuracy, blocks")
        last.set_ylim(bottom=0)
        last.legend()
    return figure


NETWORKS = {
    "NODE": "",
    "NODE tanh": "--activation tanh",
    **{f"ResNet of {k}": f"--model resnet --blocks {k}" for k in DEPTHS},
}
EXPERIMENTS = {
    "tolerance": Experiment(
        "error, time, memory and evaluations against tolerance (Neural ODEs, fig. 3)",
        ("spheres",),
        "functions",
        trainings({"spheres": NETWORKS}),
        _draw,
        _findings,
    )
}
