"""Encoders of a history: a recurrent network that reads it backwards, and the initial states of an ODE."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F
from typing_extensions import override

from anode.time_series.series import History


class BackwardGRU(nn.Module):
    """A gated recurrent network over a history, from its last observation to its first: (B, H).

    It reads values, masks and the time to the next observation. Reading backwards, its last state is the one at the
    first time, where the ODE starts.

    Args:
        features: number D of features.
        width: width H of its state.

    References:
        Chen et al. 2018, arXiv 1806.07366, section 5; Cho et al. 2014, arXiv 1406.1078 (GRU).
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.gru = nn.GRU(2 * features + 1, width, batch_first=True)

    @override
    def forward(self, history: History) -> Tensor:
        last = history.lengths[:, None] - 1
        place = torch.arange(history.times.shape[1], device=last.device)
        gaps = F.pad(history.times.diff(dim=1), (0, 1))
        inputs = torch.cat([history.values, history.mask, gaps[..., None]], dim=-1)
        backwards = (last - place).clamp(min=0)[..., None].expand(-1, -1, inputs.shape[-1])
        outputs, _ = self.gru(inputs.gather(1, backwards))
        return outputs[torch.arange(len(last), device=last.device), last[:, 0]]


class Start(NamedTuple):
    """Initial states of an ODE.

    Attributes:
        states: K samples for each series, (K, B, S); one without a posterior.
        kl: divergence of the posterior from the prior, (B,); without a posterior the negative logarithm of the prior,
            up to a constant.
    """

    states: Tensor
    kl: Tensor


class ObservedStart(nn.Module):
    """The first observation with augmented dimensions, y(0) = (x, 0) + e.

    e is a linear map of the encoded history, which corrects the noise of the first observation, with the prior N(0, I);
    without an encoder the same learned vector for every series, zero in the dimensions of x, without a prior. A missing
    feature starts at its mean.

    Args:
        features: dimensions D of x.
        extra: augmented dimensions.
        encoder: encoder of the history, or None.
    """

    def __init__(self, features: int, extra: int, encoder: BackwardGRU | None) -> None:
        super().__init__()
        self.dim, self.extra = features + extra, extra
        self.encoder: Any = encoder
        self.readout: Any = None if encoder is None else nn.Linear(encoder.width, self.dim)
        self.augmented = nn.Parameter(torch.zeros(extra)) if encoder is None else None

    @override
    def forward(self, history: History, samples: int) -> Start:
        first = history.values[:, 0]
        if self.augmented is not None:
            states = torch.cat([first, self.augmented.expand(len(first), -1)], dim=1)
            return Start(states[None], first.new_zeros(len(first)))
        e = self.readout(self.encoder(history))
        return Start((F.pad(first, (0, self.extra)) + e)[None], e.square().sum(1) / 2)


class PosteriorStart(nn.Module):
    """A latent variable z with augmented zeros, y(0) = (z, 0), z ~ q(z | history), a diagonal Gaussian.

    Args:
        latent: dimensions of z, whose prior is N(0, I).
        extra: augmented dimensions.
        encoder: encoder of the history.
    """

    def __init__(self, latent: int, extra: int, encoder: BackwardGRU) -> None:
        super().__init__()
        self.dim, self.extra = latent + extra, extra
        self.encoder = encoder
        self.readout = nn.Linear(encoder.width, 2 * latent)

    def posterior(self, history: History) -> Normal:
        """Return q(z | history), batch shape (B, Z)."""
        mean, raw = self.readout(self.encoder(history)).chunk(2, dim=1)
        return Normal(mean, F.softplus(raw) + 1e-4)

    @override
    def forward(self, history: History, samples: int) -> Start:
        """Draw samples of the initial state; 0 samples stand for the mean of the posterior."""
        q = self.posterior(history)
        z = q.rsample((samples,)) if samples else q.mean[None]
        prior = Normal(torch.zeros_like(q.loc), torch.ones_like(q.scale))
        return Start(F.pad(z, (0, self.extra)), kl_divergence(q, prior).sum(1))
