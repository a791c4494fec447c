"""Couplings of base and data points for flow matching: the choice of which point flows to which."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def independent(z: Tensor, x: Tensor) -> Tensor:
    """Return the base points as they were drawn."""
    return z


@torch.no_grad()
def optimal_transport(z: Tensor, x: Tensor) -> Tensor:
    """Permute the base points to minimise the sum of |x_i - z_i|^2 over the batch, exactly.

    The assignment problem takes O(B^3) at worst: on one core 0.1 seconds for B = 512, one second for 1024.

    Args:
        z: base points (B, *S).
        x: data points (B, *S).

    Returns:
        The rows of z, one for each row of x.

    References:
        Tong et al. 2023, arXiv 2302.00482; Pooladian et al. 2023, arXiv 2304.14772.
    """
    costs = torch.cdist(x.flatten(1), z.flatten(1)).square()  # |x_i - z_j|^2, (B, B)
    return z[torch.as_tensor(linear_sum_assignment(costs.cpu().numpy())[1], device=z.device)]


COUPLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "independent": independent,
    "optimal-transport": optimal_transport,
}
