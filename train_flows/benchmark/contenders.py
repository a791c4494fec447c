"""One and the same continuous flow by several packages: equal weights, equal tolerance, exact trace or one probe."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from anode import MLPField, Solver, count_evals
from cnf import Continuous, Flow, MaximumLikelihood, Normal, WarmStarted

# Of each layer (n_out, n_in) and (n_out,); time is the last input of the first.
Weights = Sequence[tuple[np.ndarray, np.ndarray]]
BASE, DATA = 0.0, 1.0  # times
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "softplus": nn.Softplus}


class Contender:
    """The density of a flow from data at t = 1 to N(0, I) at t = 0.

    Args:
        weights: of the field.
        activation: of its hidden layers.
        tolerance: relative and absolute.
        exact: the trace, or one Rademacher probe of it.
    """

    def __init__(self, weights: Weights, activation: str, tolerance: float, exact: bool = True) -> None:
        self.weights = weights
        self.activation = activation
        self.tolerance = tolerance
        self.exact = exact

    def log_prob(self, x: Any) -> Any:
        """Log p(x), (B,)."""
        raise NotImplementedError

    def sample(self, z: Any) -> Any:
        """Base points to data."""
        raise NotImplementedError

    def gradients(self) -> list[np.ndarray]:
        """Those of the last :meth:`step`, shaped like the weights: (dW1, db1, dW2, ...)."""
        raise NotImplementedError

    def step(self, x: Any) -> None:
        """A training step, without the update of the weights: the loss -log p(x) and its gradients."""
        raise NotImplementedError

    def evaluations(self, work: Callable[[], Any]) -> int | None:
        """Of the field in a piece of work, forward and backward; None where they cannot be told."""
        raise NotImplementedError

    def points(self, x: np.ndarray) -> Any:
        """Points as the package wants them."""
        return torch.from_numpy(x)


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


class Ours(Contender):
    """By this package.

    Args:
        weights: of the field.
        activation: of its hidden layers.
        tolerance: relative and absolute.
        exact: the trace, or one Rademacher probe of it.
        gradient: see :class:`~anode.Solver`.
        compile: the field.
        warm: training steps begin their solves with the step that suited the last one.
    """

    def __init__(
        self,
        weights: Weights,
        activation: str,
        tolerance: float,
        exact: bool = True,
        gradient: str = "checkpoint",
        compile: bool = False,
        warm: bool = False,
    ) -> None:
        super().__init__(weights, activation, tolerance, exact)
        dim, hidden = len(weights[-1][1]), [len(bias) for _, bias in weights[:-1]]
        self.field = MLPField(dim, hidden, activation, time="concat").to(torch.from_numpy(weights[0][0]).dtype)
        state: dict[str, Tensor] = {}
        for i, (weight, bias) in enumerate(weights):
            state |= {f"layers.{i}.weight": torch.from_numpy(weight), f"layers.{i}.bias": torch.from_numpy(bias)}
        state |= {"layers.0.weight": state["layers.0.weight"][:, :-1], "layers.0.time": state["layers.0.weight"][:, -1]}
        self.field.load_state_dict(state)
        if compile:
            self.field.compile()
        solver = Solver(rtol=tolerance, atol=tolerance, gradient=gradient)
        self.flow = Flow(Continuous(self.field, solver, "exact" if exact else "hutchinson"), Normal((dim,)))
        self.flow.base.to(next(self.field.parameters()).dtype)
        objective = MaximumLikelihood(self.flow)
        self.objective = WarmStarted(objective) if warm else objective

    def log_prob(self, x: Tensor) -> Tensor:
        """See :meth:`Contender.log_prob`."""
        return self.flow.log_prob(x)

    def sample(self, z: Tensor) -> Tensor:
        """See :meth:`Contender.sample`."""
        return self.flow.decode(z)

    def step(self, x: Tensor) -> None:
        """See :meth:`Contender.step`."""
        self.field.zero_grad()
        self.objective(x).backward()

    def gradients(self) -> list[np.ndarray]:
        """See :meth:`Contender.gradients`."""
        found = {name: p.grad for name, p in self.field.named_parameters() if p.grad is not None}
        grads = []
        for i in range(len(self.weights)):
            weight = found[f"layers.{i}.weight"]
            if i == 0:
                weight = torch.cat([weight, found["layers.0.time"][:, None]], 1)
            grads += [weight.numpy(), found[f"layers.{i}.bias"].numpy()]
        return grads

    def evaluations(self, work: Callable[[], Any]) -> int:
        """See :meth:`Contender.evaluations`."""
        with count_evals(self.field) as nfe:
            work()
        return nfe.forward + nfe.backward


def _log_normal(z: Tensor) -> Tensor:
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)


def _missing(package: str) -> bool:
    return importlib.util.find_spec(package) is None


def contenders(compile: bool = True) -> dict[str, Callable[..., Contender]]:
    """Who is here, by name: functions of weights, activation, tolerance and whether the trace is exact."""
    here: dict[str, Callable[..., Contender]] = {}
    for gradient in ("checkpoint", "direct"):
        here[f"ours, {gradient}"] = _with(Ours, gradient=gradient)
        if compile:
            here[f"ours, {gradient}, compiled"] = _with(Ours, gradient=gradient, compile=True)
            here[f"ours, {gradient}, compiled, warm"] = _with(Ours, gradient=gradient, compile=True, warm=True)
    here["torchdiffeq, adjoint (FFJORD)"] = _with(Plain, solve=odeint_adjoint)
    here["torchdiffeq, direct"] = _with(Plain, solve=odeint)
    for name, made in {"zuko": Zuko, "torchdyn": Torchdyn, "torchode": Torchode}.items():
        if not _missing(name):
            here[name] = made
    if not _missing("diffrax"):
        jax_flows = importlib.import_module("train_flows.benchmark.jax_flows")
        for adjoint in jax_flows.ADJOINTS:
            here[f"diffrax, {adjoint}"] = _with(jax_flows.Diffrax, adjoint=adjoint)
    return here


def _with(made: Callable[..., Contender], **more: Any) -> Callable[..., Contender]:
    return lambda *args, **others: made(*args, **others, **more)


def random_weights(dim: int, hidden: Sequence[int], seed: int, dtype: Any = np.float32) -> Weights:
    """Weights of a field drawn like those of linear layers."""
    rng = np.random.default_rng(seed)
    made = []
    for i, (n_in, n_out) in enumerate(pairwise((dim, *hidden, dim))):
        inputs = n_in + (i == 0)
        bound = 1 / math.sqrt(inputs)
        made.append(
            (
                rng.uniform(-bound, bound, (n_out, inputs)).astype(dtype),
                rng.uniform(-bound, bound, n_out).astype(dtype),
            )
        )
    return made
