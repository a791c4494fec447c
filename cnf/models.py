"""One constructor of densities from plain values, so that a stored model rebuilds itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anode import InputError, MLPField, Solver, storage
from cnf.bases import Base, Mixture, Normal
from cnf.continuous import Continuous
from cnf.flow import Density, Flow
from cnf.lifts import Dequantize, LiftedFlow
from cnf.transforms import Compose, Logit, Standardize
from cnf.whiten import Whiten

KIND = "density"
BASES: dict[str, Callable[[Sequence[int], int], Base]] = {
    "normal": lambda shape, components: Normal(shape),
    "mixture": Mixture,
}


def density_model(
    shape: Sequence[int],
    *,
    hidden: Sequence[int] = (128, 128),
    activation: str | Sequence[str] = "tanh",
    time: str = "bias",
    residual: bool = False,
    context: int = 0,
    whiten: bool = False,
    base: str = "normal",
    components: int = 8,
    divergence: str = "exact",
    probes: int = 1,
    noise: str = "rademacher",
    levels: int | None = None,
    alpha: float = 0.05,
    solver: Solver | Mapping[str, Any] = Solver(),  # noqa: B008 - a frozen value
    data: Tensor | None = None,
) -> Flow | LiftedFlow:
    """A continuous normalizing flow: standardisation, then one ODE, then the base.

    The network of the field starts at zero, so that the untrained flow on the normal base is the Gaussian of the data,
    of diagonal covariance or, with ``whiten``, of the full one; not so with ``residual``. Discrete data (``levels``)
    are dequantised and sent through a logit first, and the likelihood is a bound.

    Args:
        shape: shape S of one sample, such as ``(2,)`` or ``(1, 8, 8)``.
        hidden: widths of the hidden layers of the field; up to two have their divergence in closed form.
        activation: see :class:`~anode.MLPField`.
        time: see :class:`~anode.MLPField`.
        residual: see :class:`~anode.MLPField`.
        context: number of context features c of a conditional density p(x given c).
        whiten: take the correlations of the data out before the ODE; see :class:`~cnf.Whiten`.
        base: ``"normal"``, or ``"mixture"`` for a learned mixture of Gaussians.
        components: of the mixture.
        divergence: ``"exact"`` or ``"hutchinson"``.
        probes: number of Hutchinson probes.
        noise: ``"rademacher"`` or ``"gaussian"`` probes.
        levels: number of values of each element of discrete data, 256 for 8-bit images; None for real numbers.
        alpha: see :class:`~cnf.Logit`; used with ``levels``.
        solver: the numerics, as a :class:`~anode.Solver` or its fields.
        data: samples (N, *S) to take moments from; without them the data should be standardised, and white.

    Returns:
        A :class:`~cnf.Flow`, or a :class:`~cnf.LiftedFlow` with ``levels``.

    Raises:
        InputError: for a value out of range, or data of another shape.

    Example:
        >>> flow = density_model((3,), hidden=(64, 64), context=2)
        >>> flow.log_prob(torch.randn(5, 3), torch.randn(5, 2)).shape
        torch.Size([5])
    """
    if base not in BASES:
        raise InputError(f"base={base!r} is unknown; choose one of {', '.join(BASES)}")
    solver = solver if isinstance(solver, Solver) else Solver(**solver)
    field = MLPField(math.prod(shape), hidden, activation, time, context, zero_init=True, residual=residual)
    start = BASES[base](shape, components)
    ode = Continuous(field, solver, divergence, probes, noise)
    scaling = [Standardize(shape), *([Whiten(shape)] if whiten else [])]
    model: Flow | LiftedFlow
    if levels is None:
        model = Flow(Compose([*scaling, ode]), start)
    else:
        model = LiftedFlow(Dequantize(levels), Flow(Compose([Logit(alpha), *scaling, ode]), start))
    if data is not None:
        data = _real(data, shape, levels, alpha)
        for part in scaling:
            data = part.fit(data).encode(data)
    model.arguments = {
        "shape": list(shape),
        "hidden": list(hidden),
        "activation": activation if isinstance(activation, str) else list(activation),
        "time": time,
        "residual": residual,
        "context": context,
        "whiten": whiten,
        "base": base,
        "components": components,
        "divergence": divergence,
        "probes": probes,
        "noise": noise,
        "levels": levels,
        "alpha": alpha,
        "solver": asdict(solver),
    }
    return model


def _real(data: Tensor, shape: Sequence[int], levels: int | None, alpha: float) -> Tensor:
    """The data as the standardisation sees them."""
    if data.shape[1:] != torch.Size(shape):
        raise InputError(f"data of shape {tuple(data.shape)} does not fit samples of shape {tuple(shape)}")
    if len(data) == 0 or not torch.isfinite(data.float()).all():
        raise InputError(f"data of shape {tuple(data.shape)} must be finite and not empty to be standardised by")
    if levels is None:
        return data
    y, _ = Dequantize(levels)(data)
    return Logit(alpha).encode(y)


def save(model: Density, folder: str | Path, **notes: Any) -> None:
    """Store a model made by :func:`density_model`: ``config.json`` and ``model.safetensors``.

    Args:
        model: the model.
        folder: created when missing; files of those names are replaced.
        notes: further plain values for ``config.json``.

    Raises:
        InputError: when the model was composed by hand and cannot be rebuilt from plain values.
    """
    storage.save_model(folder, KIND, model, model.config, **notes)


def load(folder: str | Path, device: torch.device | str | None = None) -> Flow | LiftedFlow:
    """Rebuild a stored model; no code from the files is executed.

    Args:
        folder: a run of ``train-flows density``, or a folder written by :func:`save`.
        device: where to put it; the CPU when omitted.

    Returns:
        The model in evaluation mode.

    Raises:
        InputError: when the folder is missing, damaged, or of something else.
    """
    return storage.load_model(folder, KIND, density_model, device)
