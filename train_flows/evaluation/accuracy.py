"""Accuracy and loss of classifiers, and of densities given the class, and what their solves cost."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anode import Classifier, SolverError, count_evals, with_solver
from anode.classifiers import class_numbers
from anode.solver import solvers_in
from cnf import Density
from train_flows.data import Split, class_contexts
from train_flows.evaluation import chunks, in_chunks, likelihood, to_model
from train_flows.run import distributed


def loss(outputs: Tensor, y: Tensor, scale: Tensor | None = None) -> Tensor:
    """Return the mean loss of outputs (B, K), in float32 at least: a scalar.

    It is the cross-entropy of classes y (B,), or of values y (B, K) the squared error in units of their standard
    deviations, ``scale``. Without these it is the smooth L1 loss, as in the ANODE paper.
    """
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    if not y.is_floating_point():
        return F.cross_entropy(outputs, y)
    return F.smooth_l1_loss(outputs, y) if scale is None else ((outputs - y) / scale).square().mean()


@torch.no_grad()
def figures(model: Classifier, data: Split) -> tuple[dict[str, float], Tensor]:
    """Return the figures of a network on inputs and targets, and what it predicts.

    Returns:
        ``loss`` and ``nfe`` (evaluations of one solve). Of classes and signs, ``accuracy``, and the squared error
        ``mse`` of values; with the class of each sample, the largest of several outputs or the sign of one. Of a
        regression, ``rmse``, the root of the mean squared error in the units of the target, and ``r2``, the
        share 1 - rmse^2 / var(y) of the variance that is explained; with the predicted values (N, K).
    """
    with count_evals(model) as nfe:
        found = in_chunks(model, data, lambda x, y: (model(x).cpu(), y.cpu()), "measuring", delay=2.0)
    outputs, y = to_model(model, tuple(torch.cat(parts) for parts in zip(*found, strict=True)))
    scale, evaluations = None if model.target is None else model.target.scale, sum(distributed.gathered(nfe.forward))
    common = {"loss": float(loss(outputs, y, scale)), "nfe": evaluations / len(chunks(data))}
    if scale is not None:
        rmse, spread = root_mean_square(outputs - y), root_mean_square(y - y.mean(0))
        return {**common, "rmse": rmse, "r2": 1 - (rmse / spread) ** 2 if spread else math.nan}, outputs
    values = y.is_floating_point()
    classes = class_numbers(outputs)
    right = classes == (class_numbers(y) if values else y)
    mse = {"mse": float(F.mse_loss(outputs, y))} if values else {}
    return {**mse, **common, "accuracy": float(right.sum()) / len(right)}, classes


def root_mean_square(errors: Tensor) -> float:
    """Return the root of the mean of squares."""
    return errors.double().square().mean().sqrt().item()


@torch.no_grad()
def measure(model: Classifier, data: Split) -> dict[str, Any]:
    """Measure a classifier or a regression on at least one sample.

    Returns:
        ``samples``, their number n; ``accuracy`` and its ``standard_error``, see :func:`standard_error`, and the
        classes that no sample has, ``untested``; of a regression ``rmse`` with its ``standard_error``, sd(e^2) /
        (2 rmse sqrt(n)) of errors e, ``r2``, and ``rmse_of_mean``, the RMSE of the mean of the training part;
        ``loss`` and its name ``loss_kind``; ``nfe``, evaluations of one solve;
        ``tolerance`` (None without adaptive steps); and, of an adaptive solver, ``tighter``: the figures at tolerances
        ten times tighter, and ``changed``, the share of samples whose class differs there, or the RMS change of values
        in units of the standard deviation of the target (None if that solve fails).
    """
    found, predicted = figures(model, data)
    assert data.y is not None, "classifiers have targets"
    measured: dict[str, Any] = {"samples": len(data), **found, "tolerance": None}
    if model.target is not None:
        squares, rmse = (predicted.cpu() - data.y).double().square().mean(1), found["rmse"]
        measured |= {
            "standard_error": (squares.std(correction=0) / (2 * max(rmse, 1e-300) * math.sqrt(len(data)))).item(),
            "rmse_of_mean": root_mean_square(model.target.mean.cpu() - data.y),
            "loss_kind": "squared error, standardised",
        }
    else:
        counts = torch.bincount(data.y, minlength=model.outputs or 0).tolist() if "mse" not in found else []
        names = model.classes or tuple(map(str, range(len(counts))))
        measured |= {
            "standard_error": standard_error(found["accuracy"], len(data)),
            "untested": [name for name, count in zip(names, counts, strict=False) if count == 0],
            "loss_kind": "smooth-l1" if "mse" in found else "cross-entropy",
        }
    measured.pop("mse", None)
    solver = next(iter(solvers_in(model)), None)
    if solver is None or not solver.adaptive:
        return measured
    measured |= {"tolerance": {"rtol": solver.rtol, "atol": solver.atol}, "tighter": None}
    tighter = dataclasses.replace(solver, rtol=solver.rtol / 10, atol=solver.atol / 10)
    with contextlib.suppress(SolverError):
        found, others = figures(with_solver(model, tighter), data)
        found.pop("mse", None)
        if model.target is not None:
            changed = root_mean_square((predicted - others) / model.target.scale)
        else:
            changed = float((predicted != others).float().mean())
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
