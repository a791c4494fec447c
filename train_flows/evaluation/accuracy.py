"""Accuracy and loss of classifiers, and of densities given the class, and what their solves cost."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anode import Classifier, SolverError, count_evals, with_solver
from anode.solver import solvers_in
from cnf import Density
from train_flows.data import Split, class_contexts
from train_flows.evaluation import chunks, in_chunks, likelihood, to_model
from train_flows.run import distributed


def loss(outputs: Tensor, y: Tensor) -> Tensor:
    """Return the mean loss of outputs (B, K), in float32 at least: a scalar.

    It is the cross-entropy of classes y (B,), or the smooth L1 loss of values y (B, K), as in the ANODE paper.
    """
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    return F.smooth_l1_loss(outputs, y) if y.is_floating_point() else F.cross_entropy(outputs, y)


@torch.no_grad()
def figures(model: nn.Module, data: Split) -> tuple[dict[str, float], Tensor]:
    """Return the figures of a network on inputs and targets, and the predicted classes (N,).

    Returns:
        ``loss``, ``accuracy``, ``nfe`` (evaluations of one solve), the squared error ``mse`` of values; and the class
        of each sample, the largest of several outputs or the sign of one.
    """
    with count_evals(model) as nfe:
        found = in_chunks(model, data, lambda x, y: (model(x).cpu(), y.cpu()), "measuring")
    outputs, y = to_model(model, tuple(torch.cat(parts) for parts in zip(*found, strict=True)))
    values, evaluations = y.is_floating_point(), sum(distributed.gathered(nfe.forward))
    classes = outputs.argmax(1) if outputs.shape[1] > 1 else outputs[:, 0] > 0
    right = classes == (y[:, 0] > 0 if values else y)
    return {
        **({"mse": float(F.mse_loss(outputs, y))} if values else {}),
        "loss": float(loss(outputs, y)),
        "accuracy": float(right.sum()) / len(right),
        "nfe": evaluations / len(chunks(data)),
    }, classes


@torch.no_grad()
def measure(model: Classifier, data: Split) -> dict[str, Any]:
    """Measure a classifier on at least one sample.

    Returns:
        ``samples``, their number n; ``accuracy`` and its ``standard_error``, see :func:`standard_error`; ``loss`` and
        its name ``loss_kind``; ``nfe``, evaluations of one solve; ``tolerance`` (None without adaptive steps); and, of
        an adaptive solver, ``tighter``: accuracy, loss and evaluations at tolerances ten times tighter, and
        ``changed``, the share of samples whose class differs there (None if that solve fails).
    """
    found, classes = figures(model, data)
    measured: dict[str, Any] = {
        "samples": len(data),
        "accuracy": found["accuracy"],
        "standard_error": standard_error(found["accuracy"], len(data)),
        "loss": found["loss"],
        "loss_kind": "smooth-l1" if "mse" in found else "cross-entropy",
        "nfe": found["nfe"],
        "tolerance": None,
    }
    solver = next(iter(solvers_in(model)), None)
    if solver is None or not solver.adaptive:
        return measured
    measured |= {"tolerance": {"rtol": solver.rtol, "atol": solver.atol}, "tighter": None}
    tighter = dataclasses.replace(solver, rtol=solver.rtol / 10, atol=solver.atol / 10)
    with contextlib.suppress(SolverError):
        found, others = figures(with_solver(model, tighter), data)
        found.pop("mse", None)
        changed = float((classes != others).float().mean())
        measured["tighter"] = {**found, "changed": changed, "rtol": tighter.rtol, "atol": tighter.atol}
    return measured


def standard_error(accuracy: float, n: int) -> float:
    """Return the binomial standard error of an accuracy k / n, at (k + 1) / (n + 2), so that it is never zero."""
    share = (n * accuracy + 1) / (n + 2)
    return math.sqrt(share * (1 - share) / n)


# Densities given the class


@torch.no_grad()
def measure_density(model: Density, data: Split, samples: int = likelihood.IMPORTANCE_SAMPLES) -> dict[str, Any]:
    """Measure the classifier argmax_k log p(x given k), for classes that are equally likely beforehand.

    Args:
        model: the density.
        data: samples x with contexts c (N, K) that are 1 for the true class and 0 for others.
        samples: importance samples, if the log-density is a bound; then the largest bound decides.

    Returns:
        ``accuracy`` and its ``standard_error``; ``tested``, N; ``classes``, K; and the kind of the log-densities, see
        :func:`train_flows.evaluation.likelihood.kind_of`.
    """
    assert data.c is not None, "a density given the class has contexts"
    k = data.c.shape[1]

    def right(x: Tensor, c: Tensor) -> Tensor:
        return (log_given_each(model, x, k, samples).argmax(1) == c.argmax(1)).cpu()

    accuracy = torch.cat(in_chunks(model, data, right, "classifying")).double().mean().item()
    return {
        "accuracy": accuracy,
        "standard_error": standard_error(accuracy, len(data)),
        "tested": len(data),
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
