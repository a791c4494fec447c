"""Who takes part in the speed benchmark: this package, and the others that are here."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchdiffeq import odeint, odeint_adjoint

from anode import MLPField, Solver, count_evals
from cnf import Continuous, Flow, MaximumLikelihood, Normal, WarmStarted
from train_flows.benchmark.contender import Contender, Weights
from train_flows.benchmark.torch_flows import Plain, Torchdyn, Torchode, Zuko


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
