"""Accuracy and loss of classifiers, and of densities given the class, and what their solves cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anode import Classifier, Solver, SolverError, count_evals, with_solver
from anode.errors import check_choice
from anode.solver import solvers_in
from cnf import Density
from train_flows.data import class_contexts
from train_flows.evaluation import likelihood
from train_flows.evaluation.chunks import Samples, chunks, in_chunks, number_of, rows_of, to_model
from train_flows.run import distributed

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "smooth-l1": F.smooth_l1_loss,
    "mse": F.mse_loss,
    "cross-entropy": F.cross_entropy,
}


def loss_name(classes: Sequence[str]) -> str:
    """Return the loss to train by: cross-entropy of classes, or smooth L1 of values -1 and +1, as in the paper."""
    return "cross-entropy" if classes else "smooth-l1"


def loss(name: str, outputs: Tensor, y: Tensor) -> Tensor:
    """Return the mean loss of outputs (B, K), in float32 at least: a scalar.

    Args:
        name: ``"smooth-l1"`` or ``"mse"`` for targets y (B, K), ``"cross-entropy"`` for classes y (B,).
        outputs: of a network.
        y: targets or classes.
    """
    check_choice("loss", name, LOSSES)
    return LOSSES[name](outputs.to(torch.promote_types(outputs.dtype, torch.float32)), y)


def outputs(model: nn.Module, data: Samples) -> tuple[Tensor, Tensor]:
    """Return the outputs (N, K) of a model, and the targets, on its device."""
    found = in_chunks(model, data, lambda x, y: (model(x).cpu(), y.cpu()))
    return to_model(model, tuple(torch.cat(parts) for parts in zip(*found, strict=True)))


def predicted(values: Tensor) -> Tensor:
    """Return the class of outputs (N, K): the largest of several, the sign of one."""
    return values.argmax(1) if values.shape[1] > 1 else values[:, 0] > 0


@torch.no_grad()
def figures(model: nn.Module, data: Samples, name: str) -> dict[str, float]:
    """Return ``loss``, ``accuracy``, ``nfe`` (evaluations of one solve) and the squared error ``mse`` of values."""
    return _figures(model, data, name)[0]


@torch.no_grad()
def measure(model: Classifier, data: Samples, classes: Sequence[str]) -> dict[str, Any]:
    """Measure a classifier on at least one sample.

    Args:
        model: the classifier.
        data: inputs and targets.
        classes: their names; empty if the targets are values.

    Returns:
        ``samples``, their number n; ``accuracy`` and its ``standard_error``, see :func:`standard_error`; ``loss`` and
        its name ``loss_kind``; ``nfe``, evaluations of one solve; ``tolerance`` (None without adaptive steps); and, of
        an adaptive solver, ``tighter``: accuracy, loss and evaluations at tolerances ten times tighter, and
        ``changed``, the share of samples whose class differs there (None if that solve fails).
    """
    name, n = loss_name(classes), number_of(data)
    found, before = _figures(model, data, name)
    found.pop("mse", None)
    measured: dict[str, Any] = {
        "samples": n,
        "accuracy": found["accuracy"],
        "standard_error": standard_error(found["accuracy"], n),
        "loss": found["loss"],
        "loss_kind": name,
        "nfe": found["nfe"],
        "tolerance": None,
    }
    solver = next(iter(solvers_in(model)), None)
    if solver is None or not solver.adaptive:
        return measured
    tighter = dataclasses.replace(solver, rtol=solver.rtol / 10, atol=solver.atol / 10)
    return {
        **measured,
        "tolerance": _tolerance(solver),
        "tighter": _at(with_solver(model, tighter), data, name, before),
    }


def standard_error(accuracy: float, n: int) -> float:
    """Return the binomial standard error of an accuracy k / n, at (k + 1) / (n + 2), so that it is never zero."""
    share = (n * accuracy + 1) / (n + 2)
    return math.sqrt(share * (1 - share) / n)


def table(measured: dict[str, Any]) -> str:
    """Return measured figures as lines to read, with those of training if they are given."""
    tolerance = measured["tolerance"]
    how = f", rtol {tolerance['rtol']:g}, atol {tolerance['atol']:g}" if tolerance else ""
    value = f"{measured['accuracy']:.4f} +- {measured['standard_error']:.4f}"
    rows = [
        ("accuracy", f"{value} ({measured['samples']} samples{how})"),
        ("loss", f"{measured['loss']:.4g} ({measured['loss_kind']})"),
    ]
    if measured["nfe"]:
        backward = f", {measured['nfe_backward']:.0f} backward in training" if "nfe_backward" in measured else ""
        rows.append(("NFE", f"{measured['nfe']:.0f}{backward}"))
    if "train_loss" in measured:
        rows.append(("training", f"accuracy {measured['train_accuracy']:.4f}, loss {measured['train_loss']:.4g}"))
    if tolerance:
        rows.append(("tighter", _tighter(measured["tighter"])))
    return likelihood.lines(rows)


def _figures(model: nn.Module, data: Samples, name: str) -> tuple[dict[str, float], Tensor]:
    """Return the figures, and the predicted classes."""
    with count_evals(model) as nfe:
        found, y = outputs(model, data)
    evaluations = sum(distributed.gathered(nfe.forward))
    values, classes = y.is_floating_point(), predicted(found)
    right = classes == (predicted(y) if values else y)
    mse = {"mse": float(F.mse_loss(found, y))} if values else {}
    return {
        **mse,
        "loss": float(loss(name, found, y)),
        "accuracy": float(right.sum()) / len(right),
        "nfe": evaluations / len(chunks(data)),
    }, classes


def _tolerance(solver: Solver) -> dict[str, float]:
    return {"rtol": solver.rtol, "atol": solver.atol}


def _at(model: Classifier, data: Samples, name: str, before: Tensor) -> dict[str, float] | None:
    """Return the figures of a model with another solver, and the share of classes that change; None if it fails."""
    try:
        found, after = _figures(model, data, name)
    except SolverError:
        return None
    found.pop("mse", None)
    return {**found, "changed": float((before != after).float().mean()), **_tolerance(solvers_in(model)[0])}


def _tighter(found: dict[str, float] | None) -> str:
    if found is None:
        return "the solve failed"
    return (
        f"accuracy {found['accuracy']:.4f}, loss {found['loss']:.4g}, NFE {found['nfe']:.0f} "
        f"(rtol {found['rtol']:g}, atol {found['atol']:g}); {found['changed']:.2%} of the classes change"
    )


# Densities given the class


@torch.no_grad()
def measure_density(model: Density, data: Samples, samples: int = likelihood.IMPORTANCE_SAMPLES) -> dict[str, Any]:
    """Measure the classifier argmax_k log p(x given k), for classes that are equally likely beforehand.

    Args:
        model: the density.
        data: samples x with contexts c (N, K) that are 1 for the true class and 0 for others.
        samples: importance samples, if the log-density is a bound; then the largest bound decides.

    Returns:
        ``accuracy`` and its ``standard_error``; ``tested``, N; ``classes``, K; and the kind of the log-densities, see
        :func:`train_flows.evaluation.likelihood.kind_of`.
    """
    classes = rows_of(data, slice(1))[1]
    assert classes is not None, "a density given the class has contexts"
    k = classes.shape[1]

    def right(x: Tensor, c: Tensor) -> Tensor:
        return (log_given_each(model, x, k, samples).argmax(1) == c.argmax(1)).cpu()

    accuracy = torch.cat(in_chunks(model, data, right)).double().mean().item()
    return {
        "accuracy": accuracy,
        "standard_error": standard_error(accuracy, number_of(data)),
        "tested": number_of(data),
        "classes": k,
        **likelihood.kind_of(model, samples),
    }


@torch.no_grad()
def log_given_each(model: Density, x: Tensor, classes: int, samples: int) -> Tensor:
    """Return log p(x given k) in nats, for x (B, *S) and each of K classes: (B, K).

    All classes see the same noise of dequantisation, augmented variables and probes, so that the differences between
    them are not noise.
    """
    found = []
    for k in range(classes):
        c = to_model(model, class_contexts(torch.full((len(x),), k), classes))
        with torch.random.fork_rng(enabled=k < classes - 1):  # the last class leaves other noise to the next chunk
            found.append(likelihood.log_prob(model, x, samples, c))
    return torch.stack(found, 1)


def density_table(measured: dict[str, Any]) -> str:
    """Return the figures of :func:`measure_density` as lines to read."""
    value = f"{measured['accuracy']:.4f} +- {measured['standard_error']:.4f}"
    how = f"{measured['tested']} samples, by the NLL given each of {measured['classes']} classes"
    return likelihood.lines([("accuracy", f"{value} ({how}: {likelihood.how(measured)})")])
