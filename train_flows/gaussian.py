"""The Gaussian of the training samples, which a flow should beat."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import multivariate_normal

from train_flows.data import Dataset
from train_flows.text import lines_of


def nll(dataset: Dataset) -> float | None:
    """Test NLL in nats of the Gaussian with mean and full covariance of the training part: what a flow should beat.

    None when the covariance is singular, so that there is no such density.
    """
    x, test = (part.double().flatten(1).numpy() for part in (dataset.train, dataset.test))
    scale = x.std(axis=0)  # factored out, for columns of very different units
    covariance = np.cov((x / scale).T, bias=True)
    try:
        gaussian = multivariate_normal(x.mean(axis=0) / scale, covariance)
    except np.linalg.LinAlgError:
        return None
    return float(np.log(scale).sum() - gaussian.logpdf(test / scale).mean())


def beside(figures: dict[str, Any], log_scale: float) -> str:
    """Flow and Gaussian in units of standard deviations, where tables of any units compare."""
    gaussian = figures["gaussian_nll"]
    flow = f"{figures['nll']['value'] - log_scale:.4f}"
    other = "its covariance is singular" if gaussian is None else f"{gaussian - log_scale:.4f}"
    return lines_of([("NLL, standardized", f"{flow} nats (full-covariance Gaussian: {other})")])
