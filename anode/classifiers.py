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
from anode.errors import InputError
from anode.fields import MLPField
from anode.second_order import SecondOrderField
from anode.solver import Solver, config_of
from anode.standardize import Standardize

KIND = "classifier"
MODELS = ("node", "second-order", "resnet", "mlp")
LIFTS = ("zeros", "learned")
READOUTS = ("linear", "none")


class Classifier(nn.Module):
    """Outputs = readout(body(lift(x))): from inputs to the state at time 0, to the state at time 1, to outputs.

    Args:
        lift: from inputs (B, *S) to states, such as :class:`~anode.Augment`.
        body: from states at time 0 to states at time 1, such as :class:`~anode.ODEBlock`.
        readout: from states to outputs (B, K): logits of classes, or values.

    Attributes:
        arguments: of :func:`classifier`, where it made the model; else None.
    """

    arguments: dict[str, Any] | None = None

    def __init__(self, lift: nn.Module, body: nn.Module, readout: nn.Module) -> None:
        super().__init__()
        self.lift = lift
        self.body = body
        self.readout = readout

    @property
    def config(self) -> dict[str, Any] | None:
        """The plain values that rebuild the model as it is solved now; None for a model composed by hand."""
        return config_of(self, self.arguments)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs (B, K) of x (B, *S)."""
        return self.readout(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """What the readout sees: the states at time 1."""
        return self.body(self.lift(x))

    def trajectory(self, x: Tensor, times: Sequence[float] | Tensor) -> Tensor:
        """The states (T, B, ...) at the given times, from 0 to 1; straight lines between the blocks of a ResNet.

        Raises:
            InputError: for a body without trajectories, such as a multilayer perceptron, or times that begin elsewhere.
        """
        if not isinstance(self.body, ODEBlock | ResNet):
            raise InputError(f"model has a body {type(self.body).__name__}, which has no trajectories: take an ODE")
        if len(times) == 0 or float(times[0]) != 0:
            raise InputError(f"times={times} must begin at 0, where the states are those of the lift")
        return self.body.trajectory(self.lift(x), times)


class Leading(nn.Module):
    """The first components of the state as outputs, for networks without a learned readout."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, y: Tensor) -> Tensor:
        """The first components (B, K) of the state y (B, D)."""
        return y[:, : self.outputs]


def classifier(
    shape: Sequence[int],
    outputs: int,
    *,
    model: str = "node",
    extra: int = 0,
    lift: str = "zeros",
    hidden: Sequence[int] = (32, 32),
    activation: str = "relu",
    time: str = "concat",
    blocks: int = 5,
    readout: str = "linear",
    solver: Solver | Mapping[str, Any] = Solver(rtol=1e-3, atol=1e-3),  # noqa: B008 - a frozen value
    standardize: bool = False,
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

    Args:
        shape: shape S of one sample, ``(D,)`` or ``(C, H, W)``.
        outputs: number K of outputs: classes, or values.
        model: see above.
        extra: augmented dimensions p (channels of images), appended along dimension 1.
        lift: how they begin: ``"zeros"``, or ``"learned"``: one linear layer (a 3x3 convolution of images) takes x to
            the whole state at time 0.
        hidden: widths of the hidden layers of each field, or of the perceptron.
        activation: ``"relu"``, ``"softplus"``, ``"tanh"`` or ``"silu"``.
        time: how the field of an ODE depends on time; see :class:`~anode.MLPField`.
        blocks: number of residual blocks.
        readout: ``"linear"``, one layer on the whole state, or ``"none"``, its first K components.
        solver: the numerics, as a :class:`~anode.Solver` or its fields.
        standardize: begin with :class:`~anode.Standardize`; implied by ``data``.
        data: samples (N, *S) to take its mean and standard deviation from.

    Raises:
        InputError: for an unknown name, a number out of range, or values that do not go together.

    References:
        Dupont, Doucet, Teh 2019, arXiv 1904.01681 (ANODE); Massaroli, Poli, Park, Yamashita, Asama 2020,
        arXiv 2002.08071 (learned lift, "input-layer augmentation"); Norcliffe et al. 2020, arXiv 2006.07220
        (second order).

    Example:
        >>> anode = classifier((2,), 1, extra=5)
        >>> anode(torch.randn(8, 2)).shape, anode.features(torch.randn(8, 2)).shape
        (torch.Size([8, 1]), torch.Size([8, 7]))
    """
    solver = solver if isinstance(solver, Solver) else Solver(**solver)
    for name, value, known in (("model", model, MODELS), ("lift", lift, LIFTS), ("readout", readout, READOUTS)):
        if value not in known:
            raise InputError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}")
    _check_numbers(shape, outputs, extra, blocks)
    _check_together(shape, outputs, model, extra, lift, readout)

    lifted = (shape[0] + extra, *shape[1:])
    dim = math.prod(lifted)
    body: nn.Module
    if model == "node":
        body = ODEBlock(MLPField(dim, hidden, activation, time), solver)
    elif model == "second-order":
        acceleration = MLPField(dim // 2, hidden, activation, time, context=dim // 2)
        body = ODEBlock(SecondOrderField(acceleration), solver)
    elif model == "resnet":
        body = ResNet(MLPField(dim, hidden, activation, time="none") for _ in range(blocks))
    else:
        body = MLP(dim, hidden, activation)
    width = hidden[-1] if model == "mlp" else dim
    first = _lift(shape, extra, lift)
    if standardize or data is not None:
        first = nn.Sequential(Standardize(shape).fit(data) if data is not None else Standardize(shape), first)
    last = nn.Sequential(nn.Flatten(), nn.Linear(width, outputs)) if readout == "linear" else Leading(outputs)
    network = Classifier(first, body, last)
    network.arguments = {
        "shape": list(shape),
        "outputs": outputs,
        "model": model,
        "extra": extra,
        "lift": lift,
        "hidden": list(hidden),
        "activation": activation,
        "time": time,
        "blocks": blocks,
        "readout": readout,
        "solver": asdict(solver),
        "standardize": standardize or data is not None,
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
