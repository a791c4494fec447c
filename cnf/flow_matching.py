"""Flow matching: the field of a flow learned by regression, without solving an ODE."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from anode import SecondOrderField
from anode.errors import InputError, check_choice
from cnf.batches import Batch, split_batch, weighted_mean
from cnf.continuous import Continuous
from cnf.flow import Density
from cnf.kullback_leibler import check_density, check_weight

COUPLINGS = ("independent", "optimal-transport")
INTERPOLATIONS = ("straight", "variance-preserving")
COMPONENT_POINTS = 500  # of a component in a batch: with fewer, its field learns the noise of the pairs
NEAR, SUBSET = 0.05, 128  # mean distance of paired contexts over their spread; rows on which its weight is sought


class FlowMatching(nn.Module):
    r"""Conditional flow matching: the field learns the mean velocity of paths from base points to data points.

        loss = mean over x, z and t of |f(t, x_t) - (alpha'_t x + beta'_t z)|^2 / D + kl KL(q(a given x), N(0, I))
        x_t = alpha_t x + beta_t z + sigma eps,        z from the base, eps ~ N(0, I), t ~ U[0, 1]

    Its minimiser carries the base at t = 0 to the data at t = 1, blurred by sigma. It trains the field of the model
    itself, whose ``log_prob`` and ``sample`` need no further step. The lift and the static transforms of the model
    apply to the data first. The times of a batch are stratified, one in each of B equal intervals, in random order.
    The noise blurs both ends: paths begin at N(0, (1 + sigma^2) I), whereas samples begin at N(0, I). The last term
    keeps a learned q near its default; it is absent if q is not learned. Parameters of the base are not trained.

    Args:
        model: a flow whose transform ends with its one :class:`cnf.Continuous`, or a lifted one.
        coupling: ``"independent"``, or ``"optimal-transport"`` within each batch, among equal or near contexts; see
            :func:`optimal_transport`. A mixture of flows couples within its components, in batches of 500 points each.
        interpolation: ``"straight"``, alpha = t and beta = 1 - t, or ``"variance-preserving"``, alpha = sin(pi t / 2)
            and beta = cos(pi t / 2).
        sigma: standard deviation of the noise, in units of the standardised data.
        kl: weight of the divergence of a learned q from its default, N(0, I) or uniform dequantisation noise.

    References:
        Lipman et al. 2023, arXiv 2210.02747; Tong et al. 2023, arXiv 2302.00482; Albergo, Vanden-Eijnden 2023, arXiv
        2209.15571 (variance-preserving).

    Example:
        >>> from cnf import density_model
        >>> flow = density_model((2,))
        >>> FlowMatching(flow, coupling="optimal-transport")(torch.randn(64, 2)).backward()
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
        check_density(model)
        check_choice("coupling", coupling, COUPLINGS)
        check_choice("interpolation", interpolation, INTERPOLATIONS)
        check_weight("sigma", sigma)
        check_weight("kl", kl)
        _, ode = model.split()
        if not isinstance(ode, Continuous):
            raise InputError(
                f"flow matching trains the field of an ODE, not {type(ode).__name__}: use MaximumLikelihood"
            )
        if isinstance(ode.field, SecondOrderField):
            raise InputError(
                "flow matching cannot train a second-order field, whose positions move by momentum: use likelihood"
            )
        self.model = model
        self.coupling = coupling
        self.interpolation = interpolation
        self.sigma = sigma
        self.kl = kl

    def forward(self, batch: Batch, c: Any = None, *, weights: Any = None) -> Tensor:
        """Compute the loss, a scalar.

        Args:
            batch: samples x (B, *S), or the pair (x, c) of samples and contexts (B, C).
            c: contexts (B, C), if they are not in the batch.
            weights: weights of the samples (B,), not negative; the mean is then sum_i w_i loss_i / sum_i w_i.

        Raises:
            InputError: if the groups of a coupling are too small.
        """
        ode, x, z, c, kl = self.model.matching_pair(*split_batch(batch, c))
        if self.coupling == "optimal-transport":
            z = optimal_transport(z, x, c, COMPONENT_POINTS if self.model.couples_base else 0)
        part = torch.randperm(len(x), device=x.device)
        t = (part + torch.rand(len(x), dtype=x.dtype, device=x.device)) / len(x)
        alpha = t.view(-1, *[1] * (x.ndim - 1))
        beta, velocity = 1 - alpha, x - z
        if self.interpolation == "variance-preserving":
            alpha, beta = torch.sin(math.pi / 2 * alpha), torch.cos(math.pi / 2 * alpha)
            velocity = math.pi / 2 * beta * x - math.pi / 2 * alpha * z
        point = alpha * x + beta * z
        if self.sigma:
            point = point + self.sigma * torch.randn_like(x)
        squared = (ode.field(t, point, c) - velocity).square()
        loss = squared.mean() if weights is None else weighted_mean(squared.flatten(1).mean(1), weights)
        return loss if kl is None else loss + self.kl * weighted_mean(kl, weights)


@torch.no_grad()
def optimal_transport(z: Tensor, x: Tensor, c: Tensor | None = None, smallest: int = 0) -> Tensor:
    """Permute base points z (B, *S) to minimise the sum of |x_i - z_i|^2 over a batch of data x (B, *S).

    A free choice would make base points depend on contexts c (B, C), but those of sampling do not. Base points are
    therefore exchanged among equal contexts only, exactly, if a batch has at most B / 2 different ones: classes, or
    components. Otherwise the cost is |x_i - z_j|^2 + w |c_i - c_j|^2, where z_j was drawn for c_j.
    The weight w rises in each batch until the mean of |c_i - c_j| over the pairs is at most 5% of the root mean square
    of |c_i - mean(c)|. The more columns contexts have, the fewer are near: pairs then stay almost as drawn.

    The assignment takes O(n^3) at worst for a group of n: on one core 0.02 seconds for n = 512, 0.1 seconds for 1024.

    Args:
        z: base points.
        x: data.
        c: contexts, standardised; None without.
        smallest: number of points that groups of equal contexts need on average; near contexts do for 0.

    Raises:
        InputError: if groups are smaller, or of a batch of one point.

    References:
        Tong et al. 2023, arXiv 2302.00482; Pooladian et al. 2023, arXiv 2304.14772; Cheng, Schwing 2025, arXiv
        2503.10636 (contexts).
    """
    drawn = torch.arange(len(x), device=x.device)
    order, groups = drawn.clone(), (drawn,) if c is None else _equal_rows(c)
    needed = max(2, smallest * len(groups))
    if len(x) < needed:
        raise InputError(
            f"the coupling of a batch of {len(x)} needs {needed} points, for groups: {len(groups)}; pass larger "
            "batches, or coupling='independent'"
        )
    if c is not None and 2 * len(groups) > len(x):
        return z[_assign_near(_squared_distances(x, z), c)]
    for rows in groups:
        order[rows] = rows[_assign(_squared_distances(x[rows], z[rows]))]
    return z[order]


def _equal_rows(c: Tensor) -> tuple[Tensor, ...]:
    """Return the indices of equal rows of contexts (B, C), in groups."""
    _, group, counts = torch.unique(c, dim=0, return_inverse=True, return_counts=True)
    return group.argsort(stable=True).split(counts.tolist())


def _assign_near(costs: Tensor, c: Tensor) -> Tensor:
    """Solve an assignment of costs (B, B) between rows of near contexts (B, C); see :func:`optimal_transport`.

    A few rows need about the same weight as all of them, and show it in less time. Pairs as drawn have distance 0.
    """
    spread = (c - c.mean(0)).square().sum(1).mean().sqrt()
    apart = torch.cdist(c, c, compute_mode="donot_use_mm_for_euclid_dist") / spread  # with zeros on the diagonal
    weight, near = costs.mean().clamp(min=1e-12), apart.square()
    for n in (min(SUBSET, len(c)), len(c)):
        while True:
            pairs = _assign(costs[:n, :n] + weight * near[:n, :n])
            if apart[:n].gather(1, pairs.unsqueeze(1)).mean() <= NEAR:
                break
            weight = 1.5 * weight
    return pairs


def _squared_distances(x: Tensor, z: Tensor) -> Tensor:
    """Return |x_i - z_j|^2, (B, B)."""
    return torch.cdist(x.flatten(1), z.flatten(1)).square()


def _assign(costs: Tensor) -> Tensor:
    """Return for each row the column of an assignment of least cost, exactly."""
    from scipy.optimize import linear_sum_assignment  # half a second, which other couplings need not wait for

    return torch.as_tensor(linear_sum_assignment(costs.cpu().numpy())[1], device=costs.device)
