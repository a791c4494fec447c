"""The flow of :mod:`train_flows.benchmark.contender` by diffrax, compiled by JAX."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from train_flows.benchmark.contender import BASE, DATA, Contender, Weights

jax.config.update("jax_enable_x64", True)  # types are those of the weights and points
ADJOINTS: dict[str, Callable[[], Any]] = {
    "checkpoints": diffrax.RecursiveCheckpointAdjoint,
    "backsolve": diffrax.BacksolveAdjoint,
}
ACTIVATIONS = {"tanh": jnp.tanh, "softplus": jax.nn.softplus}
MOST_STEPS = 256


class Diffrax(Contender):
    """By diffrax: one solve of the batch, whose steps are those of its error's largest component."""

    def __init__(
        self, weights: Weights, activation: str, tolerance: float, exact: bool = True, adjoint: str = "checkpoints"
    ) -> None:
        super().__init__(weights, activation, tolerance, exact)
        self.params = [(jnp.asarray(weight), jnp.asarray(bias)) for weight, bias in weights]
        self.adjoint = adjoint
        self._log_prob = jax.jit(self._density)
        self._sample = jax.jit(self._decoded)
        self._step = jax.jit(jax.grad(lambda params, x, key: -self._density(params, x, key)[0].mean()))
        self._key = jax.random.key(0)
        self._counted = 0
        self.found: Sequence[Any] = ()

    def points(self, x: np.ndarray) -> Any:
        """See :meth:`Contender.points`."""
        return jnp.asarray(x)

    def log_prob(self, x: Any) -> Any:
        """See :meth:`Contender.log_prob`."""
        value, steps = self._log_prob(self.params, x, self._next_key())
        self._counted += 6 * int(steps) + 2
        return jax.block_until_ready(value)

    def sample(self, z: Any) -> Any:
        """See :meth:`Contender.sample`."""
        x, steps = self._sample(self.params, z)
        self._counted += 6 * int(steps) + 2
        return jax.block_until_ready(x)

    def step(self, x: Any) -> None:
        """See :meth:`Contender.step`."""
        self.found = jax.block_until_ready(self._step(self.params, x, self._next_key()))

    def gradients(self) -> list[np.ndarray]:
        """See :meth:`Contender.gradients`."""
        return [np.asarray(part) for layer in self.found for part in layer]

    def evaluations(self, work: Callable[[], Any]) -> int | None:
        """See :meth:`Contender.evaluations`; from the steps of a solve, which a training step does not tell."""
        self._counted = 0
        work()
        return self._counted or None

    def _next_key(self) -> Any:
        self._key, key = jax.random.split(self._key)
        return key

    def _field(self, params: Any, t: Any, x: Any) -> Any:
        *hidden, (last, shift) = params
        h = jnp.append(x, t.astype(x.dtype))
        for weight, bias in hidden:
            h = ACTIVATIONS[self.activation](weight @ h + bias)
        return last @ h + shift

    def _density(self, params: Any, x: Any, key: Any) -> Any:
        eps = None if self.exact else jax.random.rademacher(key, x.shape, jnp.int8)  # whole: BacksolveAdjoint leaves it

        def of_one(params: Any, t: Any, x: Any, probe: Any) -> Any:
            def field(x: Any) -> Any:
                return self._field(params, t, x)

            if probe is not None:
                velocity, pulled = jax.vjp(field, x)
                probe = probe.astype(x.dtype)
                return velocity, pulled(probe)[0] @ probe
            velocity, push = jax.linearize(field, x)
            return velocity, jnp.trace(jax.vmap(push)(jnp.eye(len(x), dtype=x.dtype)))

        def f(t: Any, y: Any, args: Any) -> Any:
            params, eps = args  # that BacksolveAdjoint may have no others
            return jax.vmap(of_one, in_axes=(None, None, 0, None if eps is None else 0))(params, t, y[0], eps)

        (z, change), steps = self._solved(f, (params, eps), (x, jnp.zeros(len(x), x.dtype)), DATA, BASE)
        return -0.5 * (z**2 + math.log(2 * math.pi)).sum(1) + change, steps

    def _decoded(self, params: Any, z: Any) -> Any:
        def f(t: Any, x: Any, params: Any) -> Any:
            return jax.vmap(self._field, in_axes=(None, None, 0))(params, t, x)

        return self._solved(f, params, z, BASE, DATA)

    def _solved(self, f: Callable[..., Any], args: Any, y: Any, t0: float, t1: float) -> Any:
        dtype = jax.tree.leaves(y)[0].dtype  # of times too, or states would be promoted to theirs
        control = diffrax.PIDController(rtol=self.tolerance, atol=self.tolerance, norm=_largest)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(f),
            diffrax.Dopri5(),
            jnp.asarray(t0, dtype),
            jnp.asarray(t1, dtype),
            None,
            y,
            args,
            stepsize_controller=control,
            adjoint=ADJOINTS[self.adjoint](),
            max_steps=MOST_STEPS,
        )
        return jax.tree.map(lambda part: part[0], solution.ys), solution.stats["num_steps"]


def _largest(y: Any) -> Any:
    """The largest root mean square of the components, as in the other packages."""
    return jnp.max(jnp.stack([jnp.sqrt(jnp.mean(part**2)) for part in jax.tree.leaves(y)]))
