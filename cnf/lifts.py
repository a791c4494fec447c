"""Lifts: putting x into a larger or continuous space where a flow lives, and the bound that comes of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from anode import InputError
from cnf.flow import Bound, Density, Flow
from cnf.transforms import Path


class Lift(nn.Module):
    """A random map y ~ q(y given x) whose x is known from y alone: x = project(y).

    For such a lift log p(x) >= E_q [log p(y) - log q(y given x)].
    """

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw y given x.

        Args:
            x: (B, *S).
            c: context, (B, C), or None.

        Returns:
            y and log q(y given x) (B,), in nats.
        """
        raise NotImplementedError

    def project(self, y: Tensor) -> Tensor:
        """Drop back from y to x."""
        raise NotImplementedError


class Dequantize(Lift):
    """Uniform dequantisation of x in {0, ..., levels - 1}: y = (x + u) / levels, u ~ U[0, 1), elementwise.

    y lies in [0, 1) with log q(y given x) = D log(levels), D being the number of dimensions.

    Args:
        levels: how many values an element takes, 256 for 8-bit images.

    References:
        Theis, van den Oord, Bethge 2016, arXiv 1511.01844, section 3.1.
    """

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        if levels < 2:
            raise InputError(f"levels={levels} must be at least 2")
        self.levels = levels

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :meth:`Lift.forward`; x is of any type, its values whole numbers.

        Raises:
            InputError: when a value is not one of the levels.
        """
        if x.ndim < 2:
            raise InputError(f"x of shape {tuple(x.shape)} is no batch: pass (B, *S)")
        value = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        if not ((value >= 0) & (value < self.levels) & (value == value.floor())).all():
            raise InputError(f"x must hold whole numbers from 0 to {self.levels - 1}; it holds others")
        y = (value + torch.rand_like(value)) / self.levels
        below_one = 1 - torch.finfo(y.dtype).eps / 2  # rounding of (x + u) / levels can reach 1
        log_q = value.new_full((len(x),), math.log(self.levels) * math.prod(x.shape[1:]))
        return y.clamp(max=below_one), log_q

    def project(self, y: Tensor) -> Tensor:
        """See :meth:`Lift.project`; values beyond the levels go to the nearest level."""
        return (y * self.levels).floor().clamp(0, self.levels - 1)


class LiftedFlow(Density):
    """The density, or probability mass, of x when y ~ q(y given x) is modelled by a flow.

    Its likelihood is known through lower bounds only; :meth:`log_prob` tightens with ``samples``.

    Args:
        lift: how x becomes y.
        flow: the density of y.

    Raises:
        InputError: when ``lift`` is not a :class:`Lift`; in particular, zero padding is not a density.
    """

    def __init__(self, lift: Lift, flow: Flow) -> None:
        super().__init__()
        if not isinstance(lift, Lift):
            raise InputError(
                f"lift={lift} is not a Lift: a density needs y ~ q(y given x) with a known log q. "
                "Zero padding (Augment) has none; its flow would not integrate to 1."
            )
        self.lift = lift
        self.flow = flow

    @property
    def kind(self) -> str:
        """See :attr:`Density.kind`: always ``"bound"``."""
        return "bound"

    def elbo_on_path(self, x: Tensor, c: Tensor | None = None, path: Path | None = None) -> Bound:
        """Log p(y) - log q(y given x) for one draw of y, (B,): its expectation is below log p(x given c)."""
        y, log_q = self.lift(x, c)
        value, energies = self.flow.elbo_on_path(y.to(self.flow.base.like.dtype), c, path)
        return Bound(value - log_q, energies)

    def log_prob(self, x: Tensor, c: Tensor | None = None, samples: int = 64) -> Tensor:
        """The importance-weighted bound log (1/K) sum_k p(y_k) / q(y_k given x), (B,).

        Args:
            x: (B, *S).
            c: context, (B, C), or None.
            samples: K; the expected bound rises with it towards log p(x given c).

        Raises:
            InputError: when the flow only estimates its log-density and K > 1: the mean of exp(estimate) is too large,
                so that the result would be no bound.

        References:
            Burda, Grosse, Salakhutdinov 2016, arXiv 1509.00519, equation 8.
        """
        if samples < 1:
            raise InputError(f"samples={samples} must be at least 1")
        if samples > 1 and self.flow.kind == "estimate":
            raise InputError(
                f"samples={samples} of an estimated log-density is no bound: use divergence='exact' or elbo"
            )
        log_weights = torch.stack([self.elbo(x, c) for _ in range(samples)])
        return log_weights.logsumexp(0) - math.log(samples)

    def sample(self, n: int, c: Tensor | None = None) -> Tensor:
        """See :meth:`Density.sample`."""
        return self.lift.project(self.flow.sample(n, c))
