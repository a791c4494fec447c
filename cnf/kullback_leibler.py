"""The two Kullback-Leibler objectives: maximum likelihood, of data, and the reverse divergence, of a known density."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from anode.errors import InputError
from anode.inputs import whole_number
from cnf.batches import Batch, repeat_samples, split_batch, weighted_mean
from cnf.continuous import Continuous
from cnf.flow import Density, Flow
from cnf.transforms import SolveOptions


class MaximumLikelihood(nn.Module):
    """The negative log-likelihood, or its bound, averaged over a batch, in nats, plus weighted path energies.

        loss = mean over the batch of [-log p(x) + sum_e weight_e E_e(x)]

    Energies are sums over the dimensions of a sample; see :class:`cnf.Continuous`. A published weight of 0.01 on means
    over dimensions, added to a loss in bits/dim, is 0.01 log 2 = 0.0069 here.

    If a model draws auxiliary variables y, log p(x) is bounded by K draws (IWAE), log (1/K) sum_k p(y_k) / q(y_k).

    Args:
        model: any density.
        kinetic: weight of the kinetic energy.
        frobenius: weight of the squared norm of the Jacobian.
        acceleration: weight of the squared acceleration of state and log-density.
        steer: largest random shift of the base time; see :class:`cnf.SolveOptions`.
        samples: K, for a bound.

    References:
        Finlay et al. 2020, arXiv 2002.02798; Ghosh et al. 2020, arXiv 2006.10711; Burda et al. 2016, arXiv 1509.00519
        (IWAE).

    Example:
        >>> import torch
        >>> from cnf import density_model
        >>> objective = MaximumLikelihood(density_model((2,)), acceleration=1e-3)
        >>> objective(torch.randn(16, 2)).backward()
        >>> sorted(objective.terms(torch.randn(16, 2), energies=("kinetic",)))
        ['acceleration', 'kinetic', 'nll']
    """

    def __init__(
        self,
        model: Density,
        kinetic: float = 0.0,
        frobenius: float = 0.0,
        acceleration: float = 0.0,
        steer: float = 0.0,
        samples: int = 1,
    ) -> None:
        super().__init__()
        check_density(model)
        weights = {"kinetic": kinetic, "frobenius": frobenius, "acceleration": acceleration}
        for name, weight in weights.items():
            check_weight(name, weight)
        check_weight("steer", steer)
        self.model = model
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.steer = SolveOptions(steer=steer).steer
        self.samples = whole_number("samples", samples)
        self._check_ode((*self.weights, *(["steer"] if steer else [])))
        model.check_num_samples(samples)

    def forward(self, batch: Batch, c: Any = None, *, weights: Any = None, kl_weight: float = 1.0) -> Tensor:
        """Compute the loss, a scalar.

        Args:
            batch: samples x (B, *S), or the pair (x, c) of samples and contexts (B, C).
            c: contexts (B, C), if they are not in the batch.
            weights: weights of the samples (B,), not negative; the mean is then sum_i w_i loss_i / sum_i w_i.
            kl_weight: weight of the divergence of a learned q from its default, see :class:`cnf.lifts.LiftResult`. It
                rises from 0 to 1 in a warm-up, which keeps q from collapsing; below 1, the loss is not a bound.

        References:
            Sonderby et al. 2016, arXiv 1602.02282 (warm-up).
        """
        terms = self.terms(batch, c, weights=weights, kl_weight=kl_weight)
        loss = terms["nll"]
        for name, weight in self.weights.items():
            loss = loss + weight * terms[name]
        return loss

    def terms(
        self,
        batch: Batch,
        c: Any = None,
        *,
        energies: Sequence[str] = (),
        weights: Any = None,
        kl_weight: float = 1.0,
    ) -> dict[str, Tensor]:
        """Compute the terms of the loss without their factors: ``"nll"``, the energies in it, and ``energies``."""
        check_weight("kl_weight", kl_weight)
        x, c = split_batch(batch, c)
        names = tuple(dict.fromkeys((*self.weights, *energies)))
        self._check_ode(names)
        value, of_paths, kl = self.model.elbo(*repeat_samples(self.samples, x, c), SolveOptions(names, self.steer))
        log_weights = value if kl_weight == 1 or kl is None else value + (1 - kl_weight) * kl
        if self.samples > 1:
            log_weights = log_weights.view(self.samples, -1).logsumexp(0) - math.log(self.samples)
        of_paths = {name: energy.view(self.samples, -1).mean(0) for name, energy in of_paths.items()}
        terms = {"nll": -log_weights, **of_paths}
        return {name: weighted_mean(values, weights) for name, values in terms.items()}

    def _check_ode(self, names: Sequence[str]) -> None:
        if names and not any(isinstance(part, Continuous) for part in self.model.modules()):
            raise InputError(
                f"{', '.join(names)}: the model does not have an ODE, along whose paths to integrate; leave it out"
            )


class ReverseKL(nn.Module):
    """The divergence KL(q | p) of a flow q from an unnormalised density p~, without the constant log Z, in nats.

        loss = E_q [log q(x) - log p~(x)] = KL(q | p) - log Z

    Samples and their log-densities come from one solve, and gradients pass through both.

    Args:
        flow: q, whose base has reparameterised samples, such as :class:`cnf.Normal`.
        log_target: log p~ of points (B, *S), (B,), differentiable.

    References:
        Rezende, Mohamed 2015, arXiv 1505.05770.

    Example:
        >>> from cnf import density_model
        >>> objective = ReverseKL(density_model((2,)), lambda x: -(x - 3).square().sum(1) / 2)
        >>> objective(256).backward()
    """

    def __init__(self, flow: Flow, log_target: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        if not isinstance(flow, Flow):
            raise InputError(f"flow={type(flow).__name__} is not a Flow, whose samples have a log-density: pass one")
        if not callable(log_target):
            raise InputError(f"log_target={log_target} cannot be called: pass a function of points")
        if not flow.has_rsample:
            raise InputError(f"base={flow.base} has parameters that samples carry no gradient to: use Normal")
        self.flow = flow
        self.log_target = log_target

    def forward(self, batch: int) -> Tensor:
        """Compute the loss, a scalar, from a number of samples of the flow, at least one."""
        if not isinstance(batch, Real):
            raise InputError(f"batch of type {type(batch).__name__} must be a number of samples, which the flow draws")
        batch = whole_number("batch", batch)
        x, log_q = self.flow.rsample_and_log_prob(batch)
        log_p = self.log_target(x)
        if not isinstance(log_p, Tensor):
            raise InputError(f"log_target returned a {type(log_p).__name__}: compute a tensor ({batch},) by torch")
        if log_p.shape != log_q.shape:
            raise InputError(f"log_target returned shape {tuple(log_p.shape)} for {batch} points: return ({batch},)")
        finite = torch.isfinite(log_p)
        if not finite.all():
            raise InputError(
                f"log_target is not finite at {int((~finite).sum())} of {batch} points: samples can lie anywhere, so "
                "the target needs unbounded support"
            )
        if x.requires_grad and not log_p.requires_grad:
            raise InputError("log_target returned no graph: compute it from x by differentiable operations, undetached")
        return (log_q - log_p).mean()


def check_density(model: object) -> None:
    """Raise an :class:`anode.InputError` unless a model is a density."""
    if not isinstance(model, Density):
        raise InputError(f"model of type {type(model).__name__} is not a density: pass a Flow, or density_model(...)")


def check_weight(name: str, value: float) -> None:
    """Raise an :class:`anode.InputError` unless a value is a finite number from 0."""
    if not (isinstance(value, Real) and value >= 0 and math.isfinite(value)):
        raise InputError(f"{name}={value!r} must be a finite number from 0, such as 1e-3")
