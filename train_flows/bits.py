"""Bits per dimension: the unit in which likelihoods of images are told.

    bits/dim = NLL / (D ln 2)

is of the probability mass of x in {0, ..., levels - 1}^D, such as the 8-bit values of all pixels and channels. It is
known through bounds, and published figures are of different ones:

- FFJORD (Grathwohl et al. 2019, arXiv 1810.01367): by one draw of uniform dequantisation for each image, which is
  ``nll_one_draw`` of :func:`train_flows.likelihood.measure`
- VFlow (Chen et al. 2020, arXiv 2002.09741) and i-DODE (Zheng et al. 2023, arXiv 2305.03935): importance-weighted, of
  4,096 and up to 20 draws, which is lower; as ``nll`` there, of as many as its ``samples`` say
- the code of RNODE (Finlay et al. 2020, arXiv 2002.02798): the density at the middle of the bins, which is no bound
"""

from __future__ import annotations

import math

from torch import nn

from cnf import Dequantize


def dequantisation(model: nn.Module) -> str | None:
    """The noise by which a model makes real numbers of discrete data, such as ``"uniform"``; None for others."""
    return next((part.noise for part in model.modules() if isinstance(part, Dequantize)), None)


def per_dim(nats: float, dims: int) -> float:
    """Nats of a sample of so many dimensions in bits per dimension."""
    return nats / (dims * math.log(2))
