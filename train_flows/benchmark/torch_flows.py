"""The flow of :mod:`train_flows.benchmark.contender` by other packages on PyTorch."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from train_flows.benchmark.contender import BASE, DATA, Contender, Weights

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "softplus": nn.Softplus}


class PlainField(nn.Module):
    """The field written plainly, which counts its evaluations."""

    def __init__(self, weights: Weights, activation: str) -> None:
        super().__init__()
        dtype = torch.from_numpy(weights[0][0]).dtype
        layers: list[nn.Module] = []
        for weight, bias in weights:
            linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=dtype)
            linear.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
            layers += [linear, ACTIVATIONS[activation]()]
        self.net = nn.Sequential(*layers[:-1])
        self.calls = 0

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluate the field."""
        self.calls += 1
        return self.net(torch.cat([x, t.to(x.dtype).expand(len(x), 1)], 1))


class OfTorch(Contender):
    """By a package on PyTorch, with the plain field and derivatives by autograd."""

    def __init__(self, weights: Weights, activation: str, tolerance: float, exact: bool = True) -> None:
        super().__init__(weights, activation, tolerance, exact)
        self.field = PlainField(weights, activation)

    def step(self, x: Tensor) -> None:
        """See :meth:`Contender.step`."""
        self.field.zero_grad()
        (-self.log_prob(x).mean()).backward()

    def gradients(self) -> list[np.ndarray]:
        """See :meth:`Contender.gradients`."""
        return [p.grad.numpy() for p in self.field.parameters() if p.grad is not None]

    def evaluations(self, work: Callable[[], Any]) -> int:
        """See :meth:`Contender.evaluations`."""
        before = self.field.calls
        work()
        return self.field.calls - before

    def rates(self, t: Tensor, x: Tensor, eps: Tensor | None) -> tuple[Tensor, Tensor]:
        """Velocity and divergence, by a pull-back for every dimension or for the probe."""
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.requires_grad_()
            velocity = self.field(t, x)
            if eps is not None:
                row = torch.autograd.grad(velocity, x, eps, create_graph=graph)[0]
                return velocity, (row * eps).sum(1)
            traces = [
                torch.autograd.grad(velocity[:, i].sum(), x, create_graph=graph, retain_graph=True)[0][:, i]
                for i in range(x.shape[1])
            ]
        return velocity, torch.stack(traces).sum(0)

    def probe(self, x: Tensor) -> Tensor | None:
        """The noise of a solve, where the trace is estimated."""
        return None if self.exact else torch.empty_like(x).bernoulli_().mul_(2).sub_(1)


class Plain(OfTorch):
    """By torchdiffeq, as FFJORD's code does with the adjoint."""

    def __init__(self, *args: Any, solve: Callable[..., Any], **more: Any) -> None:
        super().__init__(*args, **more)
        self.solve = solve

    def log_prob(self, x: Tensor) -> Tensor:
        """See :meth:`Contender.log_prob`."""
        z, change = self._integrate(_Rates(self, self.probe(x)), (x.clone(), x.new_zeros(len(x))), DATA, BASE)
        return _log_normal(z) + change

    def sample(self, z: Tensor) -> Tensor:
        """See :meth:`Contender.sample`."""
        return self._integrate(self.field, z, BASE, DATA)

    def _integrate(self, f: nn.Module, y: Any, t0: float, t1: float) -> Any:
        like = y if isinstance(y, Tensor) else y[0]
        times = like.new_tensor([t0, t1])
        path = self.solve(f, y, times, rtol=self.tolerance, atol=self.tolerance, method="dopri5")
        return path[1] if isinstance(y, Tensor) else tuple(part[1] for part in path)


class _Rates(nn.Module):
    """Right-hand side of state and log-density, a module whose parameters the adjoint finds."""

    def __init__(self, of: OfTorch, eps: Tensor | None) -> None:
        super().__init__()
        self.field, self.eps = of.field, eps
        self.rates = of.rates

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.rates(t, state[0], self.eps)


class Zuko(OfTorch):
    """By zuko's transform, which has a solver and checkpoints of its own."""

    def log_prob(self, x: Tensor) -> Tensor:
        """See :meth:`Contender.log_prob`."""
        z, change = self._transform().call_and_ladj(x)
        return _log_normal(z) + change

    def sample(self, z: Tensor) -> Tensor:
        """See :meth:`Contender.sample`."""
        return self._transform().inv(z)

    def _transform(self) -> Any:
        zuko = importlib.import_module("zuko")
        tolerances = {"atol": self.tolerance, "rtol": self.tolerance}
        return zuko.transforms.FreeFormJacobianTransform(
            self.field, DATA, BASE, tuple(self.field.parameters()), **tolerances, exact=self.exact
        )


class Torchdyn(OfTorch):
    """By torchdyn's solver; its state is one matrix of log-density and points."""

    def log_prob(self, x: Tensor) -> Tensor:
        """See :meth:`Contender.log_prob`."""
        eps = self.probe(x)

        def f(t: Tensor, y: Tensor) -> Tensor:
            velocity, divergence = self.rates(t, y[:, 1:], eps)
            return torch.cat([divergence[:, None], velocity], 1)

        end = self._integrate(f, torch.cat([x.new_zeros(len(x), 1), x], 1), DATA, BASE)
        return _log_normal(end[:, 1:]) + end[:, 0]

    def sample(self, z: Tensor) -> Tensor:
        """See :meth:`Contender.sample`."""
        return self._integrate(self.field, z, BASE, DATA)

    def _integrate(self, f: Callable[..., Any], y: Tensor, t0: float, t1: float) -> Tensor:
        solve = importlib.import_module("torchdyn.numerics").odeint
        tolerances = {"atol": self.tolerance, "rtol": self.tolerance}
        return solve(f, y, y.new_tensor([t0, t1]), solver="dopri5", **tolerances)[1][-1]


class Torchode(Torchdyn):
    """By torchode, in which every sample has steps of its own."""

    def _integrate(self, f: Callable[..., Any], y: Tensor, t0: float, t1: float) -> Tensor:
        to = importlib.import_module("torchode")
        term = to.ODETerm(lambda t, y: f(t[:, None], y), with_stats=False)
        controller = to.IntegralController(atol=self.tolerance, rtol=self.tolerance, term=term)
        solver = to.AutoDiffAdjoint(to.Dopri5(term=term), controller, backprop_through_step_size_control=False)
        start, end = (y.new_full((len(y),), t) for t in (t0, t1))
        problem = to.InitialValueProblem(y, start, end, t_eval=None)
        return solver.solve(problem).ys[:, -1]


def _log_normal(z: Tensor) -> Tensor:
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
