"""Classifiers and regressors of one interface: neural ODEs, augmented or not, and what they are compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anode import storage
from anode.baselines import MLP, ResNet
from anode.blocks import Augment, ODEBlock
from anode.conv_fields import ConvField
from anode.errors import InputError
from anode.fields import Field, MLPField
from anode.odenet import NormConvField, pooled_head
from anode.odenet import stem as find_stem
from anode.second_order import SecondOrderField
from anode.solver import Solver
from anode.stages import Classifier, Leading
from anode.standardize import Pixels, Standardize

KIND = "classifier"
MODELS = ("node", "second-order", "resnet", "mlp")
FIELDS = ("mlp", "conv", "norm-conv")
STEMS = ("none", "conv", "residual")
LIFTS = ("zeros", "learned")
READOUTS = ("linear", "pool", "none")


def classifier(
    shape: Sequence[int],
    outputs: int,
    *,
    model: str = "node",
    extra: int = 0,
    lift: str = "zeros",
    field: str = "mlp",
    hidden: Sequence[int] = (32, 32),
    filters: int = 64,
    activation: str = "relu",
    time: str = "concat",
    blocks: int = 5,
    stem: str = "none",
    readout: str = "linear",
    solver: Solver | Mapping[str, Any] = Solver(rtol=1e-3, atol=1e-3),  # noqa: B008 - a frozen value
    standardize: bool = False,
    levels: int | None = None,
    data: Tensor | None = None,
) -> Classifier:
    """A classifier or regressor from plain values, so that experiments vary one of them and stored models rebuild.

    ===================  ===============  =====================================================
    ``model``            ``extra``        what it is
    ===================  ===============  =====================================================
    ``"node"``           0                neural ODE (NODE)
    ``"node"``           p > 0            augmented neural ODE (ANODE)
    ``"second-order"``   as many as x     position and velocity, the velocity being augmented
    ``"resnet"``         0 or p           ``blocks`` residual blocks with a field each
    ``"mlp"``            0                multilayer perceptron
    ===================  ===============  =====================================================

    On images, ``field="conv"`` gives the networks of the ANODE paper; ``field="norm-conv", stem="conv",
    readout="pool"`` the ODE-Net of Chen et al., and its counterpart with ``model="resnet", blocks=6``.

    Args:
        shape: shape S of one sample, ``(D,)`` or ``(C, H, W)``.
        outputs: number K of outputs: classes, or values.
        model: see above.
        extra: augmented dimensions p (channels of images), appended along dimension 1.
        lift: how they begin: ``"zeros"``, or ``"learned"``: one linear layer (a 3x3 convolution of images) takes x to
            the whole state at time 0.
        field: ``"mlp"`` (:class:`~anode.MLPField`, which flattens images), ``"conv"`` (:class:`~anode.ConvField`) or
            ``"norm-conv"`` (:class:`~anode.NormConvField`).
        hidden: widths of the hidden layers of an MLP field, or of the perceptron.
        filters: of a convolutional field, or of the stem.
        activation: ``"relu"``, ``"softplus"``, ``"tanh"`` or ``"silu"``; ``"norm-conv"`` has its own.
        time: how the field of an ODE depends on time; see :class:`~anode.MLPField`.
        blocks: number of residual blocks.
        stem: ``"none"``, or what makes a small map of an image, which is then augmented: ``"conv"`` or ``"residual"``.
        readout: ``"linear"``, one layer on the whole state; ``"pool"``, one on the mean of each channel of a map; or
            ``"none"``, its first K components.
        solver: the numerics, as a :class:`~anode.Solver` or its fields.
        standardize: begin with :class:`~anode.Standardize`; implied by ``data``.
        levels: begin with :class:`~anode.Pixels`, for inputs that are whole numbers below this.
        data: samples (N, *S) to take its mean and standard deviation from.

    Raises:
        InputError: for an unknown name, a number out of range, or values that do not go together.

    References:
        Dupont, Doucet, Teh 2019, arXiv 1904.01681 (ANODE); Chen, Rubanova, Bettencourt, Duvenaud 2018,
        arXiv 1806.07366 (ODE-Net); Massaroli, Poli, Park, Yamashita, Asama 2020,
        arXiv 2002.08071 (learned lift, "input-layer augmentation"); Norcliffe et al. 2020, arXiv 2006.07220
        (second order).

    Example:
        >>> anode = classifier((2,), 1, extra=5)
        >>> anode(torch.randn(8, 2)).shape, anode.features(torch.randn(8, 2)).shape
        (torch.Size([8, 1]), torch.Size([8, 7]))
    """
    solver = solver if isinstance(solver, Solver) else Solver(**solver)
    _check_names(model=(model, MODELS), lift=(lift, LIFTS), field=(field, FIELDS), stem=(stem, STEMS))
    _check_names(readout=(readout, READOUTS))
    _check_numbers(shape, outputs, extra, blocks)
    _check_together(shape, outputs, model, extra, lift, readout)
    _check_images(shape, model, field, stem, readout)

    first: list[nn.Module] = [] if levels is None else [Pixels(levels)]
    if standardize or data is not None:
        first.append(Standardize(shape).fit(data) if data is not None else Standardize(shape))
    mapped = tuple(shape)
    if stem != "none":
        first.append(find_stem(stem, shape[0], filters))
        mapped = _shape_after(first[-1], shape)
    first.append(_lift(mapped, extra, lift))
    lifted = (mapped[0] + extra, *mapped[1:])
    dim = math.prod(lifted)

    def make_field(time: str) -> Field:
        if field == "mlp":
            return MLPField(dim, hidden, activation, time)
        return ConvField(lifted[0], filters, activation, time) if field == "conv" else NormConvField(lifted[0], time)

    body: nn.Module
    if model == "node":
        body = ODEBlock(make_field(time), solver)
    elif model == "second-order":
        acceleration = MLPField(dim // 2, hidden, activation, time, context=dim // 2)
        body = ODEBlock(SecondOrderField(acceleration), solver)
    elif model == "resnet":
        body = ResNet(make_field("none") for _ in range(blocks))
    else:
        body = MLP(dim, hidden, activation)
    last: nn.Module
    if readout == "linear":
        last = nn.Sequential(nn.Flatten(), nn.Linear(hidden[-1] if model == "mlp" else dim, outputs))
    else:
        last = pooled_head(lifted[0], outputs) if readout == "pool" else Leading(outputs)
    network = Classifier(nn.Sequential(*first) if len(first) > 1 else first[0], body, last)
    network.arguments = {
        "shape": list(shape),
        "outputs": outputs,
        "model": model,
        "extra": extra,
        "lift": lift,
        "field": field,
        "hidden": list(hidden),
        "filters": filters,
        "activation": activation,
        "time": time,
        "blocks": blocks,
        "stem": stem,
        "readout": readout,
        "solver": asdict(solver),
        "standardize": standardize or data is not None,
        "levels": levels,
    }
    return network


def save(model: Classifier, folder: str | Path, **notes: Any) -> None:
    """Store a model made by :func:`classifier`: ``config.json`` and ``model.safetensors``.

    Args:
        model: the model.
        folder: created when missing; files of those names are replaced.
        notes: further plain values for ``config.json``.

    Raises:
        InputError: when the model was composed by hand and cannot be rebuilt from plain values.
    """
    storage.save_model(folder, KIND, model, model.config, **notes)


def load(folder: str | Path, device: torch.device | str | None = None) -> Classifier:
    """Rebuild a stored classifier; no code from the files is executed.

    Args:
        folder: a run of ``train-flows classify``, or a folder written by :func:`save`.
        device: where to put it; the CPU when omitted.

    Returns:
        The model in evaluation mode.

    Raises:
        InputError: when the folder is missing, damaged, or of something else.
    """
    return storage.load_model(folder, KIND, classifier, device)


def _lift(shape: Sequence[int], extra: int, lift: str) -> nn.Module:
    if lift == "zeros":
        return Augment(extra)
    if len(shape) == 1:
        return nn.Linear(shape[0], shape[0] + extra)
    return nn.Conv2d(shape[0], shape[0] + extra, 3, padding=1)


def _shape_after(part: nn.Module, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of what a stem makes of images of a shape: more than a pixel, which normalisation would set to 0."""
    try:
        with torch.no_grad():
            channels, height, width = part(torch.zeros(1, *shape)).shape[1:]
    except (RuntimeError, ValueError):
        height = width = 0
    if height * width < 2:
        raise InputError(f"shape={tuple(shape)} is too small for a stem: leave it out")
    return channels, height, width


def _check_names(**given: tuple[str, Sequence[str]]) -> None:
    for name, (value, known) in given.items():
        if value not in known:
            raise InputError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}")


def _check_numbers(shape: Sequence[int], outputs: int, extra: int, blocks: int) -> None:
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise InputError(f"shape={tuple(shape)} must be (D,) of vectors or (C, H, W) of images")
    if outputs < 1 or blocks < 1 or extra < 0:
        raise InputError(f"outputs={outputs} and blocks={blocks} must be at least 1, extra={extra} at least 0")


def _check_together(shape: Sequence[int], outputs: int, model: str, extra: int, lift: str, readout: str) -> None:
    if model == "second-order" and extra != shape[0]:
        raise InputError(f"extra={extra} must be {shape[0]} with model='second-order': as many velocities as positions")
    if model == "mlp" and (extra or lift != "zeros" or readout != "linear"):
        raise InputError("model='mlp' has no state to augment or to read directly: leave out extra, lift and readout")
    if readout == "none" and (len(shape) != 1 or outputs > shape[0] + extra):
        raise InputError(f"readout='none' needs vectors of outputs={outputs} components at least, not {tuple(shape)}")


def _check_images(shape: Sequence[int], model: str, field: str, stem: str, readout: str) -> None:
    if (field, stem) != ("mlp", "none") or readout == "pool":
        if len(shape) != 3:
            raise InputError(
                f"field={field!r}, stem={stem!r}, readout={readout!r}: convolutions, stems and pools are for images "
                f"(C, H, W), not for shape={tuple(shape)}"
            )
        if model in ("second-order", "mlp"):
            raise InputError(
                f"model={model!r} has no maps: take field='mlp', stem='none', readout='linear', or another model"
            )
    if readout == "pool" and field == "mlp" and stem == "none":
        raise InputError("readout='pool' averages over a map: take a convolutional field or a stem")
