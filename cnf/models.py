"""One constructor of densities from plain values, so that a stored model rebuilds itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from anode import InputError, Solver, storage
from cnf.augment import VariationalAugment
from cnf.augmented_fields import MIXTURES, check, field_of
from cnf.bases import Base, Conditional, Normal
from cnf.categorical import CategoricalFlow
from cnf.continuous import Continuous
from cnf.density import Density
from cnf.dequantize import Dequantize
from cnf.flow import Flow
from cnf.lifted_flow import LiftedFlow
from cnf.lifts import Lift, Lifts, Through
from cnf.mixture import Mixture
from cnf.multiscale import multiscale as several_scales
from cnf.networks import check_scales, network
from cnf.transforms import Compose, Logit, Standardize, Transform
from cnf.whiten import Whiten

KIND = "density"


def density_model(
    shape: Sequence[int],
    *,
    field: str = "mlp",
    hidden: Sequence[int] = (128, 128),
    filters: int = 32,
    activation: str | Sequence[str] = "tanh",
    time: str = "bias",
    residual: bool = False,
    blocks: int = 1,
    multiscale: bool = False,
    context: int = 0,
    whiten: bool = False,
    base: str = "normal",
    components: int = 8,
    extra: int = 0,
    augmentation: str = "joint",
    posterior: str = "normal",
    correlated: bool = False,
    divergence: str = "exact",
    probes: int = 1,
    noise: str = "rademacher",
    levels: int | None = None,
    dequantization: str = "uniform",
    alpha: float = 0.05,
    solver: Solver | Mapping[str, Any] = Solver(),  # noqa: B008 - a frozen value
    data: Tensor | None = None,
) -> Flow | CategoricalFlow | LiftedFlow:
    """A continuous normalizing flow: standardisation, then one ODE or several, then the base.

    The network of the field starts at zero, so that the untrained flow on the normal base is the Gaussian of the data,
    of diagonal covariance or, with ``whiten``, of the full one; not so with ``residual``. Discrete data (``levels``)
    are dequantised and sent through a logit first, and the likelihood is a bound.

    Args:
        shape: shape S of one sample, such as ``(2,)`` or ``(1, 8, 8)``.
        field: ``"mlp"``, a perceptron, which flattens images; or for images ``"conv"`` (:class:`~anode.ConvField`),
            ``"stack"`` (:class:`~anode.ConvStack`) and ``"unet"`` (:class:`~anode.UNetField`). The first two know their
            divergence in closed form, of up to two hidden layers; that of the others is for Hutchinson's estimator.
        hidden: widths of the hidden layers of a perceptron; filters of a stack, or of the levels of a U-Net.
        filters: of ``"conv"``.
        activation: see :class:`~anode.MLPField`; the first one, for convolutions.
        time: see :class:`~anode.MLPField` and :class:`~anode.ConvField`.
        residual: see :class:`~anode.MLPField`.
        blocks: how many ODEs in a row, each with a field of its own; at every scale, before and after its squeeze.
        multiscale: make images smaller in steps and leave half of the channels to the base at each, by
            :func:`cnf.multiscale`; for fields of images of any size.
        context: number of context features c of a conditional density p(x given c).
        whiten: take the correlations of the data out before the ODE; see :class:`~cnf.Whiten`.
        base: ``"normal"``; ``"mixture"``, a learned mixture of Gaussians, fitted to ``data`` to begin with; or
            ``"conditional"``, of p(z given a), for a flow with augmented dimensions a.
        components: of the mixture.
        extra: number of augmented dimensions a, or channels; of flows, for mixtures.
        augmentation: what the field makes of them: ``"joint"``: of a flow of (x, a), like any other; ``"frozen"``:
            da/dt = 0, so that there is a flow of x for every a; ``"momentum"``: dx/dt = a, as many as x has;
            ``"categorical"``: a mixture of ``extra`` flows, whose density is exact; ``"copies"``: the same of copies of
            one flow, at different places and scales.
        correlated: whether the components of a mixture have a full covariance; see :class:`~cnf.Mixture`.
        posterior: a ~ q(a given x): ``"normal"`` or ``"learned"``; see :class:`~cnf.VariationalAugment`. For
            mixtures: ``"fitted"`` draws one component in training, by the mixture fitted to ``data``, which
            spares the sum over all.
        divergence: ``"exact"`` or ``"hutchinson"``.
        probes: number of Hutchinson probes.
        noise: ``"rademacher"`` or ``"gaussian"`` probes.
        levels: number of values of each element of discrete data, 256 for 8-bit images; None for real numbers.
        dequantization: ``"uniform"`` or ``"learned"`` noise; see :class:`~cnf.Dequantize`; used with ``levels``.
        alpha: see :class:`~cnf.Logit`; used with ``levels``, and above 0 then.
        solver: the numerics, as a :class:`~anode.Solver` or its fields.
        data: samples (N, *S) to take moments from; without them the data should be standardised, and white.

    Returns:
        A :class:`~cnf.Flow`; a :class:`~cnf.CategoricalFlow`; or a :class:`~cnf.LiftedFlow`, with ``levels`` or
        augmented dimensions.

    Raises:
        InputError: for a value out of range, choices that exclude each other, or data of another shape.

    Example:
        >>> flow = density_model((3,), hidden=(64, 64), context=2)
        >>> flow.log_prob(torch.randn(5, 3), torch.randn(5, 2)).shape
        torch.Size([5])
        >>> density_model((3,), extra=2).log_prob(torch.randn(5, 3), samples=8).shape  # a bound
        torch.Size([5])
    """
    arguments = {name: value for name, value in locals().items() if name != "data"}
    check(shape, field, base, extra, augmentation, posterior, residual, context)
    check_scales(field, blocks, multiscale, base, extra, augmentation)
    if levels is not None and alpha == 0:
        raise InputError("alpha=0 makes the logits of values at the ends of the levels infinite: pass 1e-6 or more")
    solver = solver if isinstance(solver, Solver) else Solver(**solver)
    mixed = extra > 0 and augmentation in MIXTURES
    augmented = 0 if mixed else extra
    state = (shape[0] + augmented, *shape[1:])
    scaling = [Standardize(shape), *([Whiten(shape)] if whiten else [])]
    static = [*([] if levels is None else [Logit(alpha)]), *scaling]
    start = _base("mixture" if mixed else base, state, extra if mixed else components, extra, correlated)
    augment = VariationalAugment(augmented, posterior, shape) if augmented else None
    if data is not None:
        _fit(scaling, augment, start, _real(data, shape, levels, alpha))
    make = network(field, hidden, filters, activation, time, residual, math.prod(shape[1:]))

    def ode(channels: int | None = None) -> Continuous:
        """An ODE of the state; or of images with so many channels, of another size and with augmented ones anywhere."""
        dynamics = field_of(augmentation, make, shape, context, extra) if channels is None else make(channels, context)
        return Continuous(dynamics, solver, divergence, probes, noise, augmented if channels is None else 0)

    odes: list[Transform] = [several_scales(state, ode, blocks)] if multiscale else [ode() for _ in range(blocks)]
    lifts: list[Lift] = [] if levels is None else [Dequantize(levels, dequantization, shape)]
    if augment is not None:
        lifts += [Through(Compose(static), shape), augment]
    model: Flow | CategoricalFlow | LiftedFlow
    if mixed:
        draw, told = posterior == "fitted", augmentation == "categorical"
        model = CategoricalFlow(Compose(static), cast(Mixture, start), cast(Continuous, odes[0]), draw, told)
    else:
        chain = odes if augmented else [*static, *odes]
        model = Flow(chain[0] if len(chain) == 1 else Compose(chain), start)
    if lifts:
        model = LiftedFlow(lifts[0] if len(lifts) == 1 else Lifts(lifts), model)
    model.arguments = {
        **arguments,
        "shape": list(shape),
        "hidden": list(hidden),
        "activation": activation if isinstance(activation, str) else list(activation),
        "solver": asdict(solver),
    }
    return model


def _base(name: str, state: Sequence[int], components: int, extra: int, correlated: bool) -> Base:
    if name == "conditional":
        return Conditional(state, extra)
    return Mixture(state, components, correlated) if name == "mixture" else Normal(state)


def _fit(scaling: Sequence[Standardize | Whiten], augment: VariationalAugment | None, base: Base, data: Tensor) -> None:
    """Take moments from the data, and the components of a mixture from what is left of them."""
    for part in scaling:
        data = part.fit(data).encode(data)
    if isinstance(base, Mixture):
        base.fit(data if augment is None else augment(data).point)


def _real(data: Tensor, shape: Sequence[int], levels: int | None, alpha: float) -> Tensor:
    """The data as the standardisation sees them."""
    if data.shape[1:] != torch.Size(shape):
        raise InputError(f"data of shape {tuple(data.shape)} does not fit samples of shape {tuple(shape)}")
    if len(data) == 0 or not torch.isfinite(data.float()).all():
        raise InputError(f"data of shape {tuple(data.shape)} must be finite and not empty to be standardised by")
    if levels is None:
        return data
    return Logit(alpha).encode(Dequantize(levels)(data).point)


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


def load(folder: str | Path, device: torch.device | str | None = None) -> Flow | CategoricalFlow | LiftedFlow:
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
