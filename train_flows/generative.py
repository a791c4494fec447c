"""The classifier that a density given the class is: the class under which a sample is most likely."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cnf import Density
from train_flows import likelihood, likelihood_table, processes
from train_flows.accuracy import standard_error
from train_flows.data.dataset import indicators
from train_flows.portions import Given, chunks
from train_flows.precision import suited
from train_flows.text import lines_of


def measure(model: Density, x: Tensor, c: Tensor, samples: int = 64) -> dict[str, Any]:
    """Measure the classifier argmax_k log p(x given k), for classes that are equally likely beforehand.

    Args:
        model: the density.
        x: (N, *S).
        c: true classes as indicators (N, K).
        samples: importance samples, where the log-density is a bound; then the largest bound decides.

    Returns:
        ``accuracy`` and its ``standard_error``, see :func:`train_flows.accuracy.standard_error`; ``tested``, N;
        ``classes``, K; and what the log-densities are, see :func:`train_flows.likelihood.kind_of`.
    """
    right = log_given_each(model, x, c.shape[1], samples).argmax(1) == c.argmax(1).cpu()
    accuracy = right.double().mean().item()
    return {
        "accuracy": accuracy,
        "standard_error": standard_error(accuracy, len(x)),
        "tested": len(x),
        "classes": c.shape[1],
        **likelihood.kind_of(model, samples),
    }


@torch.no_grad()
def log_given_each(model: Density, x: Tensor, classes: int, samples: int = 64) -> Tensor:
    """Log p(x given k) in nats, of x (N, *S), for each of K classes: (N, K), on the CPU.

    All classes see the same noise, of dequantisation, augmented variables and probes, so that differences between them
    are none of noise.
    """

    def solved(part: Given) -> Tensor:
        found = []
        for k in range(classes):
            c = indicators(torch.full((len(part[0]),), k), classes)
            with torch.random.fork_rng(enabled=k < classes - 1):  # the last one leaves other noise to the next part
                found.append(likelihood.log_prob(model, part[0], samples, suited(model, c)).cpu())
        return torch.stack(found, 1)

    return torch.cat(processes.shared_out(list(chunks((suited(model, x), None))), solved))


def table(figures: dict[str, Any]) -> str:
    """Measured figures as lines to read."""
    value = f"{figures['accuracy']:.4f} +- {figures['standard_error']:.4f}"
    how = f"{figures['tested']} samples, by the NLL given each of {figures['classes']} classes"
    return lines_of([("accuracy", f"{value} ({how}: {likelihood_table.how(figures)})")])
