"""Flow matching: training the field of a flow by regression, without a solve."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anode import InputError, SecondOrderField
from cnf.couplings import coupling as find_coupling
from cnf.couplings import independent
from cnf.density import Density
from cnf.objectives import Batch, split


class Interpolant(NamedTuple):
    """The way from z to x, alpha x + beta z, at a time.

    Attributes:
        alpha: share of the data.
        beta: share of the base.
        alpha_rate: d alpha / dt.
        beta_rate: d beta / dt.
    """

    alpha: Tensor
    beta: Tensor
    alpha_rate: Tensor
    beta_rate: Tensor


def _straight(t: Tensor) -> Interpolant:
    return Interpolant(t, 1 - t, torch.ones_like(t), -torch.ones_like(t))


def _variance_preserving(t: Tensor) -> Interpolant:
    angle = math.pi / 2 * t
    alpha, beta = angle.sin(), angle.cos()
    return Interpolant(alpha, beta, math.pi / 2 * beta, -math.pi / 2 * alpha)


INTERPOLATIONS: dict[str, Callable[[Tensor], Interpolant]] = {
    "straight": _straight,
    "variance-preserving": _variance_preserving,
}


class FlowMatching(nn.Module):
    r"""Conditional flow matching: the field learns the mean velocity of paths from base points to data points.

        loss = mean over x, z and t of |f(t, x_t) - (alpha'_t x + beta'_t z)|^2 / D + weight KL(q(a given x), N(0, I))
        x_t = alpha_t x + beta_t z + sigma eps,        z from the base, eps ~ N(0, I), t ~ U[0, 1]

    Its minimiser carries the base at t = 0 to the data at t = 1, blurred by sigma. The field is that of the flow, so
    ``log_prob`` and ``sample`` work at once. Data go through the lift and the static transforms of the model first.
    The times of a batch are stratified, one in each of B equal intervals, in random order. Noise blurs both ends: with
    sigma, paths begin at N(0, (1 + sigma^2) I), and samples at N(0, I) all the same. Of augmented data (x, a), the last
    term keeps a learned q near the base; it is zero where nothing is augmented, or q is N(0, I). A base with parameters
    stays as it is.

    Args:
        model: a flow whose transform ends with its one :class:`~cnf.Continuous`, or a lifted one.
        coupling: ``"independent"``, ``"optimal_transport"`` (of each batch) or ``"entropic"``; see
            :mod:`cnf.couplings`.
        interpolation: ``"straight"``, alpha = t and beta = 1 - t, or ``"variance-preserving"``, alpha = sin(pi t / 2)
            and beta = cos(pi t / 2).
        sigma: standard deviation of the noise, in units of the standardised data.
        kl: weight of the divergence of q from N(0, I); of learned dequantisation noise, from uniform noise.

    Raises:
        InputError: for an unknown coupling or interpolation, or a coupling where base points belong to their data; a
            negative sigma or weight; a flow of several ODEs, or one whose velocities are given, as of momentum.

    References:
        Lipman, Chen, Ben-Hamu, Nickel, Le 2023, arXiv 2210.02747; Tong et al. 2023, arXiv 2302.00482; Albergo,
        Vanden-Eijnden 2023, arXiv 2209.15571 (variance-preserving).

    Example:
        >>> from cnf import density_model
        >>> flow = density_model((2,))
        >>> FlowMatching(flow, coupling="optimal_transport")(torch.randn(64, 2)).backward()
    """

    def __init__(
        self,
        model: Density,
        coupling: str = "independent",
        interpolation: str = "straight",
        sigma: float = 0.0,
        kl: float = 1.0,
    ) -> None:
        super().__init__()
        if interpolation not in INTERPOLATIONS:
            raise InputError(f"interpolation={interpolation!r} is unknown; choose one of {', '.join(INTERPOLATIONS)}")
        for name, value in (("sigma", sigma), ("kl", kl)):
            if not (value >= 0 and math.isfinite(value)):
                raise InputError(f"{name}={value} must be a number from 0, such as 0.01")
        if coupling != "independent" and model.paired:
            raise InputError(
                f"coupling={coupling!r} would tie base points to others than theirs, of components or of augmented "
                'variables at rest: use coupling="independent"'
            )
        if isinstance(model.parts()[1].field, SecondOrderField):
            raise InputError("positions move by their momentum, not by a field that could be matched: use likelihood")
        self.model = model
        self.couple = find_coupling(coupling)
        self.interpolate = INTERPOLATIONS[interpolation]
        self.sigma = sigma
        self.kl = kl

    def forward(self, batch: Batch) -> Tensor:
        """The loss, a scalar.

        Args:
            batch: samples x (B, *S), or the pair (x, c) of samples and contexts (B, C).

        Raises:
            InputError: for samples or contexts that do not fit the flow, none, or contexts with a coupling, which would
                make base points tell of them while those of sampling do not.
        """
        x, c = split(batch)
        ode, x, z, c, kl = self.model.ends(x, c)
        if self.couple is not independent:
            if c is not None:
                raise InputError('a coupling of x and z ties z to contexts: use coupling="independent" with them')
            z = self.couple(z, x)
        t = _stratified(x)
        mixed = self.interpolate(t.view(-1, *[1] * (x.ndim - 1)))
        here = mixed.alpha * x + mixed.beta * z
        if self.sigma:
            here = here + self.sigma * torch.randn_like(x)
        moving = ode.field.diagonal(x.shape[1])
        at = torch.cat([here[:, moving], x[:, moving.stop :]], 1)  # what stands still is the same at both ends
        velocity = mixed.alpha_rate * x + mixed.beta_rate * z
        loss = (ode.field(t, at, c) - velocity)[:, moving].square().mean()
        return loss if kl is None else loss + self.kl * kl.mean()


def _stratified(x: Tensor) -> Tensor:
    """A time for each sample, uniform in [0, 1] whatever its place in the batch, and one in each of B equal parts."""
    part = torch.randperm(len(x), device=x.device)
    return (part + torch.rand(len(x), dtype=x.dtype, device=x.device)) / len(x)
