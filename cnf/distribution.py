"""A density as a :class:`torch.distributions.Distribution`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints
from typing_extensions import override

from anode.errors import InputError
from anode.inputs import to_tensor, whole_number

if TYPE_CHECKING:
    from cnf.flow import Density


class FlowDistribution(Distribution):
    """The distribution p(x given c) of a density, for code that expects torch.distributions.

    Its batch shape is ``c.shape[:-1]``, its event shape the shape of one sample. ``log_prob`` is exact, an estimate or
    a bound, as ``density.kind`` states. Values must be finite and lie in the support, with ``validate_args=False`` too.

    Args:
        density: the density.
        c: contexts, (*batch, C), or None.
        validate_args: see :class:`torch.distributions.Distribution`.

    Example:
        >>> from anode import MLPField
        >>> from cnf import Continuous, Flow, Normal
        >>> flow = Flow(Continuous(MLPField(2, context=3)), Normal((2,)))
        >>> posterior = flow(torch.randn(5, 3))
        >>> posterior.batch_shape, posterior.event_shape, posterior.rsample((4,)).shape
        (torch.Size([5]), torch.Size([2]), torch.Size([4, 5, 2]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, density: Density, c: Tensor | None = None, validate_args: bool | None = None) -> None:
        c = None if c is None else to_tensor("c", c)
        if c is not None and c.ndim == 0:
            raise InputError(f"c={c} does not fit the flow: pass a tensor (*batch, C)")
        self.density = density
        self.c = c
        super().__init__(Size() if c is None else Size(c.shape[:-1]), density.event_shape, validate_args)

    @property
    @override
    def support(self) -> constraints.Constraint:
        return self.density.support

    @property
    @override
    def has_rsample(self) -> bool:
        return self.density.has_rsample

    @override
    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> FlowDistribution:
        new = self._get_checked_instance(FlowDistribution, _instance)
        new.density = self.density
        new.c = None if self.c is None else self.c.expand(*batch_shape, -1)
        super(FlowDistribution, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __repr__(self) -> str:
        sizes = f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}"
        return f"FlowDistribution({type(self.density).__name__}, {sizes})"

    @override
    def log_prob(self, value: Tensor) -> Tensor:
        value = to_tensor("value", value).to(self.density.like)
        if self._validate_args and value.numel():  # torch's own checks fail without values
            self._validate_sample(value)
        batch = torch.broadcast_shapes(value.shape[: value.ndim - len(self.event_shape)], self.batch_shape)
        x = value.expand(*batch, *self.event_shape).reshape(batch.numel(), *self.event_shape)
        return self.density.log_prob(x, self._contexts(batch)).reshape(batch)

    @override
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        batch = _sizes(sample_shape) + self.batch_shape
        return self.density.sample(batch.numel(), self._contexts(batch)).reshape(*batch, *self.event_shape)

    @override
    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        batch = _sizes(sample_shape) + self.batch_shape
        return self.density.rsample(batch.numel(), self._contexts(batch)).reshape(*batch, *self.event_shape)

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw samples and their log-densities in one solve, with gradients through both."""
        batch = _sizes(sample_shape) + self.batch_shape
        x, log_p = self.density.rsample_and_log_prob(batch.numel(), self._contexts(batch))
        return x.reshape(*batch, *self.event_shape), log_p.reshape(batch)

    def _contexts(self, batch: Size) -> Tensor | None:
        """Return one context for each sample of a flattened batch, (B, C)."""
        return None if self.c is None else self.c.expand(*batch, -1).reshape(batch.numel(), self.c.shape[-1])


def _sizes(sample_shape: Sequence[int] | float) -> Size:
    """Return the sizes of a sample shape; a number n stands for (n,)."""
    sizes = sample_shape if isinstance(sample_shape, Sequence) else [sample_shape]
    return Size([whole_number("sample_shape", size, 0) for size in sizes])
