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
        coupling: ``"independent"``, or ``"optimal-transport"`` within each batch; see :func:`optimal_transport`.
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
        if coupling != "independent" and model.couples_base:
            raise InputError(
                f"coupling={coupling!r} would move base points to another component: use coupling='independent'"
            )
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
            batch: samples x (B, *S), or with ``coupling="independent"`` the pair (x, c) of samples and contexts (B, C).
            c: contexts (B, C), if they are not in the batch.
            weights: weights of the samples (B,), not negative; the mean is then sum_i w_i loss_i / sum_i w_i.
        """
        x, c = split_batch(batch, c)
        if c is not None and self.coupling != "independent":
            raise InputError("a coupling makes base points depend on contexts: use coupling='independent' with them")
        ode, x, z, c, kl = self.model.matching_pair(x, c)
        if self.coupling == "optimal-transport":
            z = optimal_transport(z, x)
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
def optimal_transport(z: Tensor, x: Tensor) -> Tensor:
    """Permute base points z (B, *S) to minimise the sum of |x_i - z_i|^2 over a batch of data x (B, *S), exactly.

    The assignment problem takes O(B^3) at worst: on one core 0.1 seconds for B = 512, one second for 1024.

    References:
        Tong et al. 2023, arXiv 2302.00482; Pooladian et al. 2023, arXiv 2304.14772.
    """
    from scipy.optimize import linear_sum_assignment  # half a second, which other couplings need not wait for

    costs = torch.cdist(x.flatten(1), z.flatten(1)).square()  # |x_i - z_j|^2, (B, B)
    return z[torch.as_tensor(linear_sum_assignment(costs.cpu().numpy())[1], device=z.device)]
