"""One continuous flow by this package and by others on PyTorch and JAX, one function for each package.

The flow leads from data at t = 1 to N(0, I) at t = 0. Its field is a perceptron with time as the last input of the
first layer, solved by dopri5.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint
from typing_extensions import override

from anode import MLPField, Solver, count_evals
from cnf import Continuous, Flow, MaximumLikelihood, Normal

BASE, DATA = 0.0, 1.0  # times
PACKAGES = ("torch", "torchdiffeq", "zuko", "torchdyn", "diffrax", "jax")
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "softplus": nn.Softplus}
MAX_JAX_STEPS = 256


@dataclass(frozen=True)
class FlowSpec:
    """A flow that every package can compute."""

    field: MLPField  # with time as an input of its first layer
    activation: str  # of its hidden layers
    tolerance: float  # relative and absolute
    exact: bool = True  # the trace; otherwise one Rademacher probe of it


@dataclass
class Contender:
    """A flow as one package computes it.

    Attributes:
        log_prob: log p(x), (B,), of points (B, D).
        sample: maps base points to data.
        step: training step without update: the loss, -log p(x), and its gradients.
        gradients: gradients of the last step, in the order and shapes (dW1, db1, dW2, ...).
        evaluations: number of evaluations of the field in a piece of work, forward and backward; None if unknown.
        points: converts an array to points of the package.
        field: the field, of a package on PyTorch.
    """

    log_prob: Callable[[Any], Any]
    sample: Callable[[Any], Any]
    step: Callable[[Any], None]
    gradients: Callable[[], list[np.ndarray]]
    evaluations: Callable[[Callable[[], Any]], int | None]
    points: Callable[[np.ndarray], Any] = torch.from_numpy
    field: Any = None


def contenders(compile: bool = True) -> dict[str, Callable[[FlowSpec], Contender]]:
    """Return the contenders that are installed, by name.

    Args:
        compile: include this package with compiled fields.
    """
    found: dict[str, Callable[[FlowSpec], Contender]] = {
        f"ours, {gradient}{', compiled' * compiled}": partial(ours, gradient=gradient, compile=compiled)
        for gradient in ("checkpoint", "direct")
        for compiled in sorted({False, compile})
    }
    found |= {
        "torchdiffeq, adjoint (FFJORD)": partial(torchdiffeq, solve=odeint_adjoint),
        "torchdiffeq, direct": partial(torchdiffeq, solve=odeint),
        "zuko": zuko,
        "torchdyn": torchdyn,
        "diffrax, checkpoints": partial(diffrax, adjoint="checkpoints"),
        "diffrax, backsolve": partial(diffrax, adjoint="backsolve"),
    }
    return {name: make for name, make in found.items() if not name.startswith(tuple(missing()))}


def missing() -> list[str]:
    """Return the names of the packages that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def ours(flow: FlowSpec, gradient: Any = "checkpoint", compile: bool = False) -> Contender:
    """By this package, whose divergence is a closed form."""
    field = copy.deepcopy(flow.field)
    if compile:
        field.compile()
    solver = Solver(rtol=flow.tolerance, atol=flow.tolerance, gradient=gradient)
    ode = Continuous(field, solver, "exact" if flow.exact else "hutchinson")
    model = Flow(ode, Normal((field.dim,))).to(next(field.parameters()).dtype)
    objective = MaximumLikelihood(model)

    def step(x: Tensor) -> None:
        field.zero_grad()
        objective(x).backward()

    def gradients() -> list[np.ndarray]:
        return [part.numpy() for layer in layers_of(field, lambda p: p.grad) for part in layer]

    def evaluations(work: Callable[[], Any]) -> int:
        with count_evals(field) as nfe:
            work()
        return nfe.forward + nfe.backward

    return Contender(model.log_prob, model.decode, step, gradients, evaluations, field=field)


def layers_of(field: MLPField, of: Callable[[Tensor], Any] = Tensor.detach) -> list[tuple[Tensor, Tensor]]:
    """Return the weight (n_out, n_in) and bias (n_out,) of each layer, with time as the last input of the first layer.

    Args:
        field: with ``time="concat"``.
        of: what to return of each parameter: its values, or its gradient.
    """
    layers: list[Any] = list(field.layers)
    weights = [of(layer.weight) for layer in layers]
    weights[0] = torch.cat([weights[0], of(layers[0].time)[:, None]], 1)
    return list(zip(weights, [of(layer.bias) for layer in layers], strict=True))


def torchdiffeq(flow: FlowSpec, solve: Callable[..., Any]) -> Contender:
    """By torchdiffeq; with the adjoint, as in FFJORD's code."""
    field = PlainField(flow)
    options: dict[str, Any] = {"rtol": flow.tolerance, "atol": flow.tolerance, "method": "dopri5"}

    def log_prob(x: Tensor) -> Tensor:
        rates, start = _Rates(field, _probe(flow, x)), (x.clone(), x.new_zeros(len(x)))
        z, change = solve(rates, start, x.new_tensor([DATA, BASE]), **options)
        return _log_normal(z[1]) + change[1]

    def sample(z: Tensor) -> Tensor:
        return solve(field, z, z.new_tensor([BASE, DATA]), **options)[1]

    return _on_torch(field, log_prob, sample)


def zuko(flow: FlowSpec) -> Contender:
    """By zuko's transform, which has its own solver and checkpoints."""
    field, transforms = PlainField(flow), importlib.import_module("zuko").transforms
    options: dict[str, Any] = {"atol": flow.tolerance, "rtol": flow.tolerance, "exact": flow.exact}

    def transform() -> Any:
        return transforms.FreeFormJacobianTransform(field, DATA, BASE, tuple(field.parameters()), **options)

    def log_prob(x: Tensor) -> Tensor:
        z, change = transform().call_and_ladj(x)
        return _log_normal(z) + change

    return _on_torch(field, log_prob, lambda z: transform().inv(z))


def torchdyn(flow: FlowSpec) -> Contender:
    """By torchdyn's solver, whose state is one matrix of log-density and points."""
    field, solve = PlainField(flow), importlib.import_module("torchdyn.numerics").odeint
    options = {"solver": "dopri5", "atol": flow.tolerance, "rtol": flow.tolerance}

    def log_prob(x: Tensor) -> Tensor:
        eps = _probe(flow, x)

        def f(t: Tensor, y: Tensor) -> Tensor:
            velocity, divergence = _rates(field, t, y[:, 1:], eps)
            return torch.cat([divergence[:, None], velocity], 1)

        start = torch.cat([x.new_zeros(len(x), 1), x], 1)
        end = solve(f, start, x.new_tensor([DATA, BASE]), **options)[1][-1]
        return _log_normal(end[:, 1:]) + end[:, 0]

    return _on_torch(field, log_prob, lambda z: solve(field, z, z.new_tensor([BASE, DATA]), **options)[1][-1])


def _on_torch(field: PlainField, log_prob: Callable[..., Tensor], sample: Callable[..., Tensor]) -> Contender:
    def step(x: Tensor) -> None:
        field.zero_grad()
        (-log_prob(x).mean()).backward()

    def evaluations(work: Callable[[], Any]) -> int:
        before = field.calls
        work()
        return field.calls - before

    def gradients() -> list[np.ndarray]:
        return [p.grad.numpy() for p in field.parameters() if p.grad is not None]

    return Contender(log_prob, sample, step, gradients, evaluations, field=field)


class PlainField(nn.Module):
    """The field in plain PyTorch, which counts its evaluations."""

    def __init__(self, flow: FlowSpec) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for weight, bias in layers_of(flow.field):
            linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
            linear.load_state_dict({"weight": weight, "bias": bias})
            layers += [linear, ACTIVATIONS[flow.activation]()]
        self.net = nn.Sequential(*layers[:-1])
        self.calls = 0

    @override
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(torch.cat([x, t.to(x.dtype).expand(len(x), 1)], 1))


class _Rates(nn.Module):
    """Velocity and divergence as a module, whose parameters the adjoint finds."""

    def __init__(self, field: PlainField, eps: Tensor | None) -> None:
        super().__init__()
        self.field, self.eps = field, eps

    @override
    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return _rates(self.field, t, state[0], self.eps)


def _rates(field: nn.Module, t: Tensor, x: Tensor, eps: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return velocity and divergence by autograd: one pull-back for every dimension, or one of the probe."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if x.requires_grad else x.requires_grad_()
        velocity = field(t, x)
        if eps is not None:
            return velocity, (torch.autograd.grad(velocity, x, eps, create_graph=graph)[0] * eps).sum(1)
        rows = (
            torch.autograd.grad(velocity[:, i].sum(), x, create_graph=graph, retain_graph=True)[0][:, i]
            for i in range(x.shape[1])
        )
        return velocity, torch.stack(list(rows)).sum(0)


def _probe(flow: FlowSpec, x: Tensor) -> Tensor | None:
    return None if flow.exact else torch.empty_like(x).bernoulli_().mul_(2).sub_(1)


def _log_normal(z: Any) -> Any:
    return -0.5 * (z**2 + math.log(2 * math.pi)).sum(1)


def diffrax(flow: FlowSpec, adjoint: str = "checkpoints") -> Contender:
    """By diffrax, compiled by JAX: one solve of the batch, with the largest error of a component in control."""
    dfx, jax = importlib.import_module("diffrax"), importlib.import_module("jax")
    jnp = jax.numpy
    jax.config.update("jax_enable_x64", True)  # types are those of weights and points
    adjoints = {"checkpoints": dfx.RecursiveCheckpointAdjoint, "backsolve": dfx.BacksolveAdjoint}
    activation = {"tanh": jnp.tanh, "softplus": jax.nn.softplus}[flow.activation]
    params = [(jnp.asarray(weight.numpy()), jnp.asarray(bias.numpy())) for weight, bias in layers_of(flow.field)]
    keys = map(jax.random.key, itertools.count())
    steps: list[int] = []
    last: list[Any] = []

    def field(params: Any, t: Any, x: Any) -> Any:
        h = jnp.append(x, t.astype(x.dtype))
        for weight, bias in params[:-1]:
            h = activation(weight @ h + bias)
        return params[-1][0] @ h + params[-1][1]

    def solve(f: Callable[..., Any], args: Any, y: Any, t0: float, t1: float) -> Any:
        def norm(y: Any) -> Any:
            return jnp.max(jnp.stack([jnp.sqrt(jnp.mean(part**2)) for part in jax.tree.leaves(y)]))

        times = (jnp.asarray(t, jax.tree.leaves(y)[0].dtype) for t in (t0, t1))  # otherwise states are promoted
        control = dfx.PIDController(rtol=flow.tolerance, atol=flow.tolerance, norm=norm)
        options = {"stepsize_controller": control, "adjoint": adjoints[adjoint](), "max_steps": MAX_JAX_STEPS}
        solution = dfx.diffeqsolve(dfx.ODETerm(f), dfx.Dopri5(), *times, None, y, args, **options)
        return jax.tree.map(lambda part: part[0], solution.ys), solution.stats["num_steps"]

    def rates(params: Any, t: Any, x: Any, eps: Any) -> Any:
        if eps is not None:
            velocity, pull = jax.vjp(partial(field, params, t), x)
            return velocity, pull(eps.astype(x.dtype))[0] @ eps.astype(x.dtype)
        velocity, push = jax.linearize(partial(field, params, t), x)
        return velocity, jnp.trace(jax.vmap(push)(jnp.eye(len(x), dtype=x.dtype)))

    def density(params: Any, x: Any, key: Any) -> Any:
        eps = None if flow.exact else jax.random.rademacher(key, x.shape, jnp.int8)  # BacksolveAdjoint skips integers
        of_batch = jax.vmap(rates, in_axes=(None, None, 0, None if eps is None else 0))

        def f(t: Any, y: Any, args: Any) -> Any:
            return of_batch(args[0], t, y[0], args[1])

        (z, change), n_steps = solve(f, (params, eps), (x, jnp.zeros(len(x), x.dtype)), DATA, BASE)
        return _log_normal(z) + change, n_steps

    def decode(params: Any, z: Any) -> Any:
        of_batch = jax.vmap(field, in_axes=(None, None, 0))
        return solve(lambda t, x, params: of_batch(params, t, x), params, z, BASE, DATA)

    compiled_density, compiled_decode = jax.jit(density), jax.jit(decode)
    gradient = jax.jit(jax.grad(lambda params, x, key: -density(params, x, key)[0].mean()))

    def counted(result: Any) -> Any:
        value, n_steps = jax.block_until_ready(result)
        steps.append(int(n_steps))
        return value

    def step(x: Any) -> None:
        last[:] = jax.block_until_ready(gradient(params, x, next(keys)))

    def evaluations(work: Callable[[], Any]) -> int | None:  # from the steps, which a training step does not report
        steps.clear()
        work()
        return 6 * steps[-1] + 2 if steps else None

    return Contender(
        lambda x: counted(compiled_density(params, x, next(keys))),
        lambda z: counted(compiled_decode(params, z)),
        step,
        lambda: [np.asarray(part) for layer in last for part in layer],
        evaluations,
        jnp.asarray,
    )
