"""Training objectives: modules whose ``forward(batch)`` returns the scalar loss, so that DDP synchronises gradients."""

from __future__ import annotations

from torch import Tensor, nn

from cnf.flow import Density

Batch = Tensor | tuple[Tensor, Tensor]


class MaximumLikelihood(nn.Module):
    """The negative log-likelihood, or its bound, averaged over a batch, in nats.

    Args:
        model: a :class:`~cnf.Flow` or :class:`~cnf.LiftedFlow`.

    Example:
        >>> import torch
        >>> from cnf import density_model
        >>> loss = MaximumLikelihood(density_model((2,)))(torch.randn(16, 2))
        >>> loss.backward()
    """

    def __init__(self, model: Density) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """The loss, a scalar.

        Args:
            batch: samples x (B, *S), or the pair (x, c) of samples and contexts (B, C).
        """
        x, c = (batch, None) if isinstance(batch, Tensor) else batch
        return -self.model.elbo(x, c).mean()
