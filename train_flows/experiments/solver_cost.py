"""Figure 3 of Neural ODEs (Chen et al. 2018): what a tolerance buys, in error, time, memory and evaluations.

The networks are neural ODEs trained on the concentric spheres; error is the root mean square difference of the final
states of 256 points to those of a solve at 1e-10. All solves are in float64. They are kept in the run folder.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from timeit import repeat
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from anode import Classifier, Solver, SolverError, count_evals, storage, with_solver
from train_flows.experiments.anode_on_functions import points, trainings
from train_flows.experiments.grid import Experiment
from train_flows.experiments.panels import Panel, by_epoch, draw_panels
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
                row |= {"status": "success", **_figures(with_solver(model, solver), x, reference)}
            except SolverError as error:
                row["status"] = error.cause
            rows.append(row)
    return rows


def _figures(model: Classifier, x: Tensor, reference: Tensor) -> Mapping[str, float]:
    with count_evals(model) as nfe, kept_bytes() as kept:
        features = model.features(x)
    size = kept()
    features.square().mean().backward()
    forward = repeat(lambda: model.features(x), number=1, repeat=REPEATS)
    both = repeat(lambda: model.features(x).square().mean().backward(), number=1, repeat=REPEATS)
    return {
        "error": float((features.detach() - reference).square().mean().sqrt()),
        "nfe_forward": nfe.forward,
        "nfe_backward": nfe.backward,
        "seconds_forward": median(forward),
        "seconds": median(both),
        "bytes_kept": size,
    }


@contextmanager
def kept_bytes() -> Generator[Callable[[], int]]:
    """Measure the memory that autograd keeps for the backward pass: bytes of the storages that are still held."""
    references: list[weakref.ref[Tensor]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept = tensor.detach()  # with its graph, an output that is kept would keep itself
        references.append(weakref.ref(kept))
        return kept

    def total() -> int:
        storages = (kept.untyped_storage() for reference in references if (kept := reference()) is not None)
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    with saved_tensors_hooks(keep, lambda kept: kept):
        yield total


def equal_depth(results: Results) -> int | None:
    """Return the smallest number of residual blocks whose mean accuracy is not below that of the NODE."""
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
        for name, metric, digits in (("error", "error", ".2g"), ("NFE", "nfe_forward", ".0f")):
            values = ", ".join(f"{at(metric, tolerance, network):{digits}}" for tolerance in SHOWN)
            findings[f"{network}: {name} at 1e-3, 1e-5, 1e-7"] = values
        backward, forward = (at(f"nfe_{way}", 1e-5, network, "adjoint") for way in ("backward", "forward"))
        findings[f"{network}: NFE of the adjoint, backward / forward at 1e-5"] = backward / forward
        for metric, what in (("bytes_kept", "memory kept"), ("seconds", "time of a solve and its gradient")):
            direct, adjoint = (at(metric, 1e-5, network, gradient) for gradient in GRADIENTS)
            findings[f"{network}: {what}, direct / adjoint at 1e-5"] = direct / adjoint
    findings["blocks of a ResNet of equal accuracy"] = equal_depth(results)
    findings["NFE of the NODE in the last epoch"] = results.of("NODE").mean("nfe_forward")
    return findings


def _draw_solves(metric: str, gradients: Sequence[str], label: str) -> Panel:
    def draw(axes: Axes, results: Results) -> None:
        solves = solves_of(results)
        for network, color in zip(NODES, plots.LINE_COLORS, strict=False):
            for gradient in gradients:
                rows = [row for row in solves if (row["network"], row["gradient"]) == (network, gradient)]
                x, y = ([row[name] for row in rows] for name in ("nfe_forward", metric))
                marker = "o" if gradient == "direct" else "x"
                axes.loglog(x, y, marker, ms=4, color=color, label=f"{network}, {gradient}")
        if metric == "nfe_backward":
            equal = sorted(row["nfe_forward"] for row in solves)
            axes.plot(equal, equal, color="0.7", lw=1, label="equal to forward")
        axes.set(xlabel="forward evaluations", ylabel=label)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())

    return draw


def _draw_depth(axes: Axes, results: Results) -> None:
    by_epoch("nfe_forward")(axes, results.of("NODE"))
    if (depth := equal_depth(results)) is not None:
        axes.axhline(depth, color=plots.LINE_COLORS[1], ls="--", label="blocks of a ResNet of equal accuracy")
        axes.set_ylim(bottom=0)


PANELS = (
    _draw_solves("error", ("direct",), "root mean square error"),
    _draw_solves("seconds_forward", ("direct",), "seconds of a forward solve"),
    _draw_solves("nfe_backward", ("adjoint",), "backward evaluations"),
    _draw_solves("bytes_kept", GRADIENTS, "bytes kept for the backward pass"),
    _draw_solves("seconds", GRADIENTS, "seconds of a solve and its gradient"),
    _draw_depth,
)
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
        lambda r: draw_panels(r, *PANELS),
        _findings,
    )
}
