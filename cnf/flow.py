"""The flow: an exact density from a transform and a base."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anode import FrozenField
from cnf.bases import Base
from cnf.continuous import Continuous
from cnf.density import Bound, Density, Ends, check_samples, for_each, parts_of, single_path
from cnf.transforms import Compose, PathOptions, Transform


class Flow(Density):
    """A normalizing flow: the density of x when z = g(x, c) has the density of the base.

        log p(x given c) = log p_base(g(x, c)) + log |det dg/dx|

    Args:
        transform: the map g from data to base.
        base: the distribution of z, such as :class:`~cnf.Normal`.

    Example:
        >>> from anode import MLPField
        >>> from cnf import Continuous, Normal
        >>> flow = Flow(Continuous(MLPField(2)), Normal((2,)))
        >>> flow.log_prob(torch.randn(5, 2)).shape, flow.sample(7).shape
        (torch.Size([5]), torch.Size([7, 2]))

    References:
        Papamakarios, Nalisnick, Rezende, Mohamed, Lakshminarayanan 2021, arXiv 1912.02762.
    """

    def __init__(self, transform: Transform, base: Base) -> None:
        super().__init__()
        self.transform = transform
        self.base = base

    @property
    def kind(self) -> str:
        """See :attr:`Density.kind`: ``"estimate"`` when a divergence is estimated, else ``"exact"``."""
        odes = (part for part in self.modules() if isinstance(part, Continuous))
        return "exact" if all(ode.divergence == "exact" for ode in odes) else "estimate"

    @property
    def like(self) -> Tensor:
        """See :attr:`Density.like`."""
        return self.base.like

    def log_prob(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Log p(x given c) in nats.

        Args:
            x: (B, *S), in the units of the data and the floating-point type of the model.
            c: context, (B, C), or None.

        Returns:
            (B,), of the :attr:`kind` named there.

        Raises:
            InputError: when x has another shape or type, or values that are not finite.
            SolverError: when an ODE cannot be solved.
        """
        self.check_data(x, c)
        z, log_det, _ = self.transform(x, c)
        return self.base.log_prob(z) + log_det

    def elbo_on_path(self, x: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Bound:
        """See :meth:`Density.elbo_on_path`; the bound is tight."""
        self.check_data(x, c)
        z, log_det, energies = self.transform(x, c, path)
        return Bound(self.base.log_prob(z) + log_det, energies)

    @property
    def paired(self) -> bool:
        """See :attr:`Density.paired`: where augmented dimensions stand still, base points have those of the data."""
        return isinstance(self.parts()[1].field, FrozenField)

    def ends(self, x: Tensor, c: Tensor | None = None) -> Ends:
        """See :meth:`Density.ends`."""
        self.check_data(x, c)
        static, ode = self.parts()
        x = static.encode(x, c)
        if isinstance(ode.field, FrozenField):
            return Ends(ode, x, self.base.sample_beside(x[:, -ode.field.extra :]), c)
        return Ends(ode, x, self.base.sample(len(x)), c)

    @torch.no_grad()
    def sample(self, n: int, c: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """See :meth:`Density.sample`."""
        return self.decode(self.base.sample(n, temperature), for_each(c, n))

    def sample_with_log_prob(self, n: int, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw n samples and their log-densities in one solve; gradients flow through both.

        Args:
            n: how many.
            c: one context (C,) for all, or one for each (n, C), or None.

        Returns:
            Samples (n, *S) and log p(x given c) (n,).
        """
        z, c = self.base.sample(n), for_each(c, n)
        self._check("z", z, c)
        x, log_det, _ = self.transform.inverse(z, c)
        return x, self.base.log_prob(z) - log_det

    def encode(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Data x (B, *S) to base points z, without the log-determinant."""
        self.check_data(x, c)
        return self.transform.encode(x, c)

    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        """Base points z to data x (B, *S), without the log-determinant."""
        self._check("z", z, c)
        return self.transform.decode(z, c)

    @torch.no_grad()
    def trajectory(self, z: Tensor, times: Sequence[float] | Tensor, c: Tensor | None = None) -> Tensor:
        """The path of base points to data, in the units of the data at every time.

        At time s it is where the points come to when every ODE runs from 0 to s alone: by one solve, for static
        transforms and one ODE next to the base; by one for each time, for other compositions, such as several scales.

        Args:
            z: base points (B, *S).
            times: T times from 0 (base) to 1 (data), strictly increasing.
            c: context, (B, C), or None.

        Returns:
            (T, B, *S).
        """
        self._check("z", z, c)
        parts = single_path(self.transform)
        if parts is None:
            return torch.stack([self.transform.decode(z, c, PathOptions(until=float(time))) for time in times])
        static, ode = parts
        return torch.stack([static.decode(x, c) for x in ode.trajectory(z, times, c)])

    def sample_paths(self, n: int, times: Sequence[float] | Tensor, c: Tensor | None = None) -> Tensor:
        """See :meth:`Density.sample_paths`."""
        return self.trajectory(self.base.sample(n), times, for_each(c, n))

    def returned(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """See :meth:`Density.returned`."""
        return self.decode(self.encode(x, c), c)

    def parts(self) -> tuple[Compose, Continuous]:
        """See :meth:`Density.parts`."""
        return parts_of(self.transform)

    def check_data(self, x: Tensor, c: Tensor | None = None) -> None:
        """Raise an :class:`~anode.InputError` for data or contexts that do not fit the flow or are not finite."""
        self._check("x", x, c)

    def _check(self, name: str, x: Tensor, c: Tensor | None) -> None:
        check_samples(name, x, c, self.base.shape, self.like.dtype)
