"""Classifiers and regressors with one interface: neural ODEs, augmented or not, and the networks to compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import NonNegativeInt
from torch import Tensor, nn
from typing_extensions import override

from anode import storage
from anode.blocks import MLP, Augment, FirstComponents, ODEBlock, ResNet
from anode.errors import InputError, check_choice, config, config_of
from anode.fields import Field, MLPField
from anode.image_fields import ConvField, NormConvField
from anode.inputs import check_batch, check_shape, to_tensor, whole_number
from anode.layers import CONV_TIMES, ActivationName, Blocks, Widths, group_norm, stem
from anode.second_order import SecondOrderField
from anode.solver import Solver, solvers_in, with_solver
from anode.time_series.series_models import KIND as SERIES
from anode.time_series.series_models import SeriesModel, series_model
from anode.units import Denormalize, Normalize, ScalePixels, check_units

KIND = "classifier"


@config
class ClassifierConfig:
    """Description of a classifier: plain values that vary in experiments and are stored with a model.

    | `model` | `extra` | network |
    |---|---|---|
    | `"node"` | 0 | neural ODE (NODE) |
    | `"node"` | p > 0 | augmented neural ODE (ANODE) |
    | `"second-order"` | dimensions of x | position and velocity; the velocity is the augmented part |
    | `"resnet"` | 0 or p | residual blocks with a field each |
    | `"mlp"` | 0 | multilayer perceptron |

    On images, ``field="conv"`` gives the networks of the ANODE paper; ``field="norm-conv", stem="conv",
    readout="pool", hidden=(64,)`` the ODE-Net of Chen et al., with ``model="resnet", blocks=6`` as its counterpart.

    Attributes:
        task: predict a class by a logit for each, or the mean of values
        model: network between the lift and the readout
        extra: augmented dimensions of vectors, or channels of images
        lift: initial values of the augmented dimensions: zeros, or a learned linear layer (3x3 convolution) of x
        field: vector field: a perceptron, 1x1-3x3-1x1 convolutions, or two convolutions with group normalisation
        hidden: widths of the hidden layers; the first is also the number of filters of convolutions
        activation: activation of the hidden layers; norm-conv always uses relu
        time: time conditioning of the field of an ODE
        blocks: number of residual blocks of a ResNet
        stem: layers that reduce an image to a smaller map before it is augmented
        readout: linear layer on the final state, linear layer on its channel means, or its first components
        solver: numerics of the ODE

    References:
        Dupont et al. 2019, arXiv 1904.01681 (ANODE); Chen et al. 2018, arXiv 1806.07366 (ODE-Net); Massaroli et al.
        2020, arXiv 2002.08071 (learned lift, "input-layer augmentation"); Norcliffe et al. 2020, arXiv 2006.07220
        (second order).
    """

    task: Literal["classes", "regression"] = "classes"
    model: Literal["node", "second-order", "resnet", "mlp"] = "node"
    extra: NonNegativeInt = 0
    lift: Literal["zeros", "learned"] = "zeros"
    field: Literal["mlp", "conv", "norm-conv"] = "mlp"
    hidden: Widths = (32, 32)
    activation: ActivationName = "relu"
    time: Literal["none", "concat", "bias", "squash"] = "concat"
    blocks: Blocks = 5
    stem: Literal["none", "conv", "residual"] = "none"
    readout: Literal["linear", "pool", "none"] = "linear"
    solver: Solver = Solver(rtol=1e-3, atol=1e-3)

    def validate(self, shape: Sequence[int], outputs: int) -> None:
        """Raise an :class:`InputError` unless the values suit each other, samples of shape S and K outputs."""
        shape, outputs = check_shape(shape), whole_number("outputs", outputs)
        if self.model == "second-order" and self.extra != shape[0]:
            raise InputError(
                f"extra={self.extra} must be {shape[0]} with model='second-order', one velocity for each position"
            )
        if self.model == "mlp" and (self.extra or self.lift != "zeros" or self.readout != "linear"):
            raise InputError("model='mlp' does not augment its state: leave out extra, lift and readout")
        if self.readout == "none" and (len(shape) != 1 or outputs > shape[0] + self.extra):
            raise InputError(f"readout='none' needs vectors of at least outputs={outputs} components, not {shape}")
        if not self.hidden and (self.model == "mlp" or self.field == "conv" or self.stem != "none"):
            raise InputError("hidden=() needs a first value: a width, or the number of filters")

        convolves = self.field != "mlp" or self.stem != "none"
        if (convolves or self.readout == "pool") and len(shape) != 3:
            raise InputError(
                f"field={self.field!r}, stem={self.stem!r}, readout={self.readout!r}: convolutions, stems and pools "
                f"need images (C, H, W), not shape={shape}"
            )
        if convolves and self.model in ("second-order", "mlp"):
            raise InputError(
                f"model={self.model!r} does not convolve: pass field='mlp' and stem='none', or another model"
            )
        if self.readout == "pool" and not convolves:
            raise InputError("readout='pool' averages over a map: pass a convolutional field or a stem")
        if self.field != "mlp" and self.model == "node":
            check_choice("time", self.time, CONV_TIMES)
        if self.stem != "none" and math.prod(self.map_shape(shape)[1:]) < 2:
            raise InputError(f"shape={shape} is too small for a stem: leave it out")

    def map_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of a sample of shape S after the stem."""
        if self.stem == "none":
            return tuple(shape)
        round_up = 1 if self.stem == "residual" else 0  # a stem takes 2 off a side and halves it twice
        halved = [(max(side - 2, 0) + round_up) // 2 for side in shape[1:]]
        return (self.hidden[0], *((side + round_up) // 2 for side in halved))


class Classifier(nn.Module):
    """A network in three parts, readout(body(lift(x))): x -> state at time 0 -> state at time 1 -> outputs.

    Args:
        lift: from inputs (B, *S) to states, such as :class:`anode.Augment`.
        body: from states at time 0 to states at time 1, such as :class:`anode.ODEBlock`.
        readout: from states to outputs (B, K): logits of classes, or values.

    Attributes:
        shape: shape S of one sample; None for a network composed by hand.
        outputs: number K of outputs; None for a network composed by hand.
        levels: number of values of a pixel; None for inputs that are real numbers.
        classes: names of the classes; empty if they have none.
    """

    shape: tuple[int, ...] | None = None
    outputs: int | None = None
    levels: int | None = None
    classes: tuple[str, ...] = ()
    _config: ClassifierConfig | None = None

    def __init__(self, lift: nn.Module, body: nn.Module, readout: nn.Module) -> None:
        super().__init__()
        self.lift = lift
        self.body = body
        self.readout = readout

    @property
    def config(self) -> ClassifierConfig | None:
        """The description of the network with its present solver; None for a network composed by hand."""
        solvers = solvers_in(self)
        return replace(self._config, solver=solvers[0]) if self._config and solvers else self._config

    @property
    def arguments(self) -> dict[str, Any] | None:
        """The plain values from which :func:`classifier_model` rebuilds the network; None if composed by hand."""
        config, names = self.config, ("shape", "outputs", "levels", "classes")
        return None if config is None else {**{name: getattr(self, name) for name in names}, **asdict(config)}

    @property
    def target(self) -> Denormalize | None:
        """Mean and scale of the values of a regression, (K,); None for classes."""
        return next((layer for layer in self.readout.modules() if isinstance(layer, Denormalize)), None)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.features(x))

    @torch.no_grad()
    def predict(self, x: Any) -> list[str] | Tensor:
        """Predict the class or the values of each sample x (B, *S).

        Returns:
            The names of the classes, or their numbers (B,) if they have none. Of a regression, the values (B, K) in
            the units of the target.
        """
        outputs = self(x)
        if self.target is not None:
            return outputs
        numbers = class_numbers(outputs)
        return [self.classes[k] for k in numbers.tolist()] if self.classes else numbers

    @torch.no_grad()
    def predict_proba(self, x: Any) -> Tensor:
        """Return the probability of each class, softmax of the outputs: (B, K)."""
        if self.target is not None or self.outputs == 1:
            raise InputError("predict_proba needs an output for each class, which this model lacks: use predict")
        return self(x).softmax(1)

    def features(self, x: Tensor) -> Tensor:
        """Return the states at time 1, which the readout sees."""
        return self.body(self.state(x))

    def state(self, x: Tensor) -> Tensor:
        """Return the states at time 0, at least in float32 even under ``torch.autocast``."""
        lifted = self.lift(self.checked(x))
        return lifted.to(torch.promote_types(lifted.dtype, torch.float32))

    def checked(self, x: Any) -> Tensor:
        """Return samples (B, *S) as a tensor of the model's dtype and device.

        On a GPU, values are not checked in training, so that no step waits for the device.

        Args:
            x: a tensor, a NumPy array, a data frame, or numbers in lists.

        Raises:
            InputError: if x has another shape, or holds anything but finite numbers.
        """
        like = next(self.parameters(), None)
        whole = isinstance(x, Tensor) and not x.is_floating_point()
        if self.shape is None and whole:  # composed by hand: its first layer may take integers
            return x
        x = to_tensor("x", x)
        x = x if like is None else x.to(like.device, like.dtype)
        if self.shape is None:
            return x
        check_batch("x", x, self.shape, "classifier")
        if len(x) and not (whole and self.levels) and (x.device.type == "cpu" or not torch.is_grad_enabled()):
            check_units(x.detach(), next(self.lift.children()))
        return x

    def trajectory(self, x: Tensor, times: Sequence[float] | Tensor) -> Tensor:
        """Return the states (T, B, ...) at times from 0 to 1; straight lines between the blocks of a ResNet."""
        if not isinstance(self.body, ODEBlock | ResNet):
            raise InputError(f"model has a body {type(self.body).__name__}, without trajectories: use an ODE")
        if len(times) == 0 or float(times[0]) != 0 or float(max(times)) > 1:
            raise InputError(
                f"times={times} must begin at 0, the time of the lifted inputs, and not pass 1, that of the features"
            )
        return self.body.trajectory(self.state(x), times)

    def with_solver(self, solver: Solver) -> Classifier:
        """Return a copy that shares the weights and solves its ODEs by ``solver``."""
        return with_solver(self, solver)


def class_numbers(outputs: Tensor) -> Tensor:
    """Return the class of each sample (B,), int64: the largest of several outputs (B, K), or the sign of one."""
    return outputs.argmax(1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0).long()


def classifier_model(
    shape: int | Sequence[int],
    outputs: int,
    *,
    data: Any = None,
    target: Any = None,
    levels: int | None = None,
    classes: Sequence[str] = (),
    config: ClassifierConfig | None = None,
    **fields: Any,
) -> Classifier:
    """Build a classifier or regressor from its description.

    Args:
        shape: shape S of one sample, D, ``(D,)`` or ``(C, H, W)``.
        outputs: number K of outputs: classes, or values.
        data: samples (N, *S) whose mean and standard deviation normalise the inputs, stored with the model.
        target: values (N, K) of a regression, or (N,), whose mean and standard deviation give the outputs their units.
        levels: for inputs that are whole numbers below this, which are scaled to [0, 1].
        classes: names of the K classes.
        config: the description.
        fields: fields of :class:`ClassifierConfig`, in place of ``config``.

    Example:
        >>> anode = classifier_model((2,), 1, extra=5)
        >>> anode(torch.randn(8, 2)).shape, anode.features(torch.randn(8, 2)).shape
        (torch.Size([8, 1]), torch.Size([8, 7]))
    """
    config = config_of(ClassifierConfig, config, fields)
    if data is not None and levels is not None:
        raise InputError(f"levels={levels} already scales the inputs: leave out data, or levels")
    shape, outputs = check_shape(shape), whole_number("outputs", outputs)
    config.validate(shape, outputs)
    classes = tuple(map(str, classes))
    if classes and (config.task == "regression" or len(set(classes)) != max(outputs, 2)):
        raise InputError(f"classes={classes} must be as many different names as outputs={outputs}, of task='classes'")
    if target is not None and config.task != "regression":
        raise InputError("target has an effect with task='regression' only: pass that too, or leave it out")

    scaling = Normalize(shape) if data is None else Normalize(shape).fit(to_tensor("data", data))
    first: list[nn.Module] = [scaling if levels is None else ScalePixels(levels)]
    if config.stem != "none":
        first.append(stem(config.stem, shape[0], config.hidden[0]))
    mapped = config.map_shape(shape)
    lifted = (mapped[0] + config.extra, *mapped[1:])
    if config.lift == "zeros":
        first.append(Augment(config.extra))
    elif len(mapped) == 1:
        first.append(nn.Linear(mapped[0], lifted[0]))
    else:
        first.append(nn.Conv2d(mapped[0], lifted[0], 3, padding=1))
    body, readout = _body(config, lifted), _readout(config, lifted, outputs)
    if config.task == "regression":
        units = Denormalize((outputs,))
        readout = nn.Sequential(readout, units)
        if target is not None:
            values = to_tensor("target", target)
            units.fit(values[:, None] if values.ndim == 1 else values)
    network = Classifier(nn.Sequential(*first), body, readout)
    network.shape, network.outputs, network.levels, network.classes = shape, outputs, levels, classes
    network._config = config
    return network


def save(model: Classifier | SeriesModel, folder: str | Path, **notes: Any) -> None:
    """Store a model: ``config.json`` and ``model.safetensors``.

    Args:
        model: a classifier of :func:`classifier_model`, or a model of time series
            (:func:`anode.time_series.series_model`).
        folder: created if missing; files with these names are replaced.
        notes: further plain values for ``config.json``.
    """
    if not isinstance(model, Classifier | SeriesModel):
        remedy = "pass densities to cnf.save"
        raise InputError(f"model of type {type(model).__name__} is not a classifier or model of series: {remedy}")
    kind = KIND if isinstance(model, Classifier) else SERIES
    storage.save_model(folder, kind, model, model.arguments, **notes)


def load(folder: str | Path, device: torch.device | str | None = None) -> Any:
    """Rebuild a stored classifier or model of time series in evaluation mode, without running code from the files.

    Args:
        folder: a run of ``train-flows classify`` or ``forecast``, or a folder written by :func:`save`.
        device: the CPU if omitted.

    Returns:
        A :class:`Classifier`, or a :class:`anode.time_series.SeriesModel`.
    """
    kind = storage.read_config(folder, KIND, SERIES)["kind"]
    build: Callable[..., nn.Module] = classifier_model if kind == KIND else series_model
    return storage.load_model(folder, kind, build, device)


def _body(config: ClassifierConfig, shape: Sequence[int]) -> nn.Module:
    """Build the network between states of a shape."""
    dim = math.prod(shape)

    def make_field(time: str) -> Field:
        if config.field == "mlp":
            return MLPField(dim, config.hidden, config.activation, time)
        if config.field == "conv":
            return ConvField(shape[0], config.hidden[0], config.activation, time)
        return NormConvField(shape[0], time)

    if config.model == "node":
        return ODEBlock(make_field(config.time), config.solver)
    if config.model == "second-order":
        acceleration = MLPField(dim // 2, config.hidden, config.activation, config.time, context=dim // 2)
        return ODEBlock(SecondOrderField(acceleration), config.solver)
    if config.model == "resnet":
        return ResNet(make_field("none") for _ in range(config.blocks))
    return MLP(dim, config.hidden, config.activation)


def _readout(config: ClassifierConfig, shape: Sequence[int], outputs: int) -> nn.Module:
    if config.readout == "linear":
        width = config.hidden[-1] if config.model == "mlp" else math.prod(shape)
        return nn.Sequential(nn.Flatten(), nn.Linear(width, outputs))
    if config.readout == "none":
        return FirstComponents(outputs)
    pooled = (group_norm(shape[0]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*pooled, nn.Linear(shape[0], outputs))
