"""Densities from one description of plain values, which also rebuilds a stored model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, NonNegativeInt, PositiveInt
from pydantic import Field as Range
from torch import Tensor

from anode import ConvField, ConvStackField, Field, MLPField, SecondOrderField, Solver, UNetField, classifiers, storage
from anode.classifiers import Classifier
from anode.errors import InputError, config, config_of
from anode.inputs import check_shape, to_tensor, whole_number
from anode.layers import CONV_TIMES, ActivationName, Blocks, Widths
from anode.units import Normalize, samples_to_fit
from cnf.bases import Mixture, Normal
from cnf.continuous import Continuous
from cnf.flow import Density, Flow
from cnf.lifted_flow import LiftedFlow
from cnf.lifts import ComposeLifts, Dequantize, Lift, TransformLift, VariationalAugment
from cnf.mixture_flow import MixtureFlow
from cnf.multiscale import Multiscale
from cnf.residual_steps import ResidualSteps, check_dim
from cnf.transforms import Compose, Logit, Standardize, Transform, Whiten

KIND = "density"
FIELDS_OF_ANY_SIZE = ("conv", "stack")  # the others know the size of their images


@config
class DensityConfig:
    """Description of a density: plain values that vary in experiments and are stored with a model.

    Attributes:
        field: vector field: a perceptron; or for images 1x1-3x3-1x1 convolutions, a stack of 3x3 convolutions, a U-Net
        hidden: widths of the hidden layers: of a perceptron, filters of a stack or of the levels of a U-Net; the first
            value is the number of filters of conv
        activation: activations of the hidden layers in turn; the last one serves all further layers
        time: time conditioning of the field
        blocks: number of ODEs in a row; with multiscale, before and after every squeeze
        multiscale: halve the size of images in steps, and send half of the channels to the base at each
        residual_steps: number of invertible residual steps in place of the ODE, with exact determinants; 0 for an ODE
        certify: bound the residual steps so that they are certain to be invertible
        whiten: remove the linear correlations of the data before the ODE
        base: base distribution: the standard normal, or a learned mixture of Gaussians fitted to the data
        components: number of components of the mixture base
        extra: number of augmented dimensions (channels of images), or of components with categorical augmentation
        augmentation: role of the extra dimensions: part of the state of the flow, velocities of a second-order ODE, or
            components of a mixture of flows that share a field
        posterior: distribution of augmented variables given the data: normal, or a learned Gaussian; fitted draws one
            component in training from the mixture fitted to the data, in place of the sum over all
        correlated: give the components of a mixture full instead of diagonal covariances
        divergence: divergence of the field: exact, or estimated by random probes
        probes: number of Hutchinson probes to average
        noise: distribution of Hutchinson probes
        dequantization: noise that fills the gaps between discrete values: uniform, or learned
        alpha: distance of discrete data from the infinite ends of the logit, usually 1e-6 to 0.05
        solver: numerics of the ODEs
    """

    field: Literal["mlp", "conv", "stack", "unet"] = "mlp"
    hidden: Widths = (128, 128)
    activation: Annotated[
        tuple[ActivationName, ...], BeforeValidator(lambda names: (names,) if isinstance(names, str) else names)
    ] = ("tanh",)
    time: Literal["none", "concat", "bias", "squash"] = "bias"
    blocks: Blocks = 1
    multiscale: bool = False
    residual_steps: NonNegativeInt = 0
    certify: bool = False
    whiten: bool = False
    base: Literal["normal", "mixture"] = "normal"
    components: PositiveInt = 8
    extra: NonNegativeInt = 0
    augmentation: Literal["joint", "momentum", "categorical"] = "joint"
    posterior: Literal["normal", "learned", "fitted"] = "normal"
    correlated: bool = False
    divergence: Literal["exact", "hutchinson"] = "exact"
    probes: PositiveInt = 1
    noise: Literal["rademacher", "gaussian"] = "rademacher"
    dequantization: Literal["uniform", "learned"] = "uniform"
    alpha: Annotated[float, Range(ge=0, lt=0.5)] = 0.05
    solver: Solver = Solver()

    @property
    def mixes_flows(self) -> bool:
        """True for a mixture of ``extra`` flows."""
        return self.extra > 0 and self.augmentation == "categorical"

    @property
    def augmented(self) -> int:
        """The number of augmented dimensions or channels of the state of the ODE."""
        return 0 if self.mixes_flows else self.extra

    def validate(self, shape: Sequence[int], context: int = 0, levels: int | None = None) -> None:
        """Check that the values suit each other and the data.

        Args:
            shape: shape S of one sample.
            context: number of context features.
            levels: number of values of each element of discrete data; None for real numbers.
        """
        shape = check_shape(shape)
        context = whole_number("context", context, 0)
        levels = None if levels is None else whole_number("levels", levels, 2)
        self._validate_field(shape)
        if self.residual_steps:
            self._validate_residual_steps(shape)
        self._validate_augmentation(shape, context)
        if levels is not None and self.alpha == 0:
            raise InputError("alpha=0 makes the logits of the first and last level infinite: pass 1e-6 or more")
        mixes = self.base == "mixture" or self.mixes_flows
        effects = [
            (self.residual_steps > 0, "residual_steps of at least 1", ("certify",)),
            (self.field != "unet", "a field other than 'unet'", ("activation", "time")),
            (self.extra > 0, "extra of at least 1", ("posterior",)),
            (self.base == "mixture", "base='mixture'", ("components",)),
            (mixes, "base='mixture' or augmentation='categorical'", ("correlated",)),
            (self.divergence == "hutchinson", "divergence='hutchinson'", ("probes", "noise")),
            (levels is not None, "discrete data (levels)", ("dequantization", "alpha")),
        ]
        for name, condition in [(name, text) for holds, text, names in effects if not holds for name in names]:
            if getattr(self, name) != getattr(DensityConfig(), name):
                raise InputError(f"{name}={getattr(self, name)!r} has an effect only with {condition}: leave it out")

    def _validate_field(self, shape: Sequence[int]) -> None:
        if self.field != "mlp" and len(shape) != 3:
            raise InputError(f"field={self.field!r} is for images (C, H, W), not for shape={shape}: pass field='mlp'")
        if self.field != "mlp" and not self.hidden:
            raise InputError(f"hidden=() needs a number of filters for field={self.field!r}, such as 32")
        if self.field in FIELDS_OF_ANY_SIZE and self.time not in CONV_TIMES:
            raise InputError(f"time={self.time!r} is for field='mlp'; choose one of {', '.join(CONV_TIMES)}")
        if self.multiscale and self.field not in FIELDS_OF_ANY_SIZE:
            raise InputError(
                f"multiscale=True needs a field for images of any size, {' or '.join(FIELDS_OF_ANY_SIZE)}, not "
                f"field={self.field!r}: pass another field, or multiscale=False"
            )

    def _validate_residual_steps(self, shape: Sequence[int]) -> None:
        check_dim(math.prod(shape) + self.augmented * math.prod(shape[1:]))
        steps = f"residual_steps={self.residual_steps}"
        if self.field != "mlp" or self.multiscale or self.blocks > 1:
            raise InputError(f"{steps} is for one field='mlp': leave out multiscale and blocks")
        if self.divergence != "exact" or self.augmentation == "momentum":
            raise InputError(f"{steps} has determinants, not a divergence or momentum: leave them out")
        if self.hidden and self.activation[0] != "tanh" and not self.certify:
            raise InputError(f"{steps} needs a bounded field: pass activation=('tanh', 'silu'), or certify=True")

    def _validate_augmentation(self, shape: Sequence[int], context: int) -> None:
        if self.augmentation != "joint":
            if not self.extra:
                raise InputError(f"extra=0 must be at least 1 with augmentation={self.augmentation!r}")
            if self.multiscale or self.blocks > 1:
                raise InputError(f"augmentation={self.augmentation!r} needs one ODE: leave out multiscale and blocks")
        if self.posterior == "learned" and self.mixes_flows:
            raise InputError("posterior='learned' is for continuous augmentation: pass 'normal' or 'fitted'")
        if self.posterior == "fitted" and self.augmented:
            raise InputError("posterior='fitted' is for augmentation='categorical': pass 'normal' or 'learned'")
        if self.mixes_flows and self.base == "mixture":
            raise InputError("augmentation='categorical' has its own mixture, of extra components: leave out base")
        if self.mixes_flows and self.divergence != "exact":
            raise InputError("augmentation='categorical' needs divergence='exact': a sum of estimates would be biased")
        if self.augmentation == "momentum" and self.extra != shape[0]:
            raise InputError(f"extra={self.extra} must be {shape[0]} with augmentation='momentum', as in the data")
        if self.augmentation == "momentum" and (self.field != "mlp" or context):
            raise InputError("augmentation='momentum' is for field='mlp' without context: leave them out")


def density_model(
    shape: Sequence[int] | int,
    data: Any = None,
    *,
    context_data: Any = None,
    weights: Any = None,
    config: DensityConfig | None = None,
    context: int | None = None,
    levels: int | None = None,
    **values: Any,
) -> Flow | MixtureFlow | LiftedFlow:
    """Build a continuous normalizing flow from its description: standardisation, then ODEs, then the base.

    The field starts at zero, so that the untrained flow on the normal base is the Gaussian of the data, with diagonal
    covariance, or full covariance with ``whiten``. Discrete data (``levels``) are dequantised and mapped through a
    logit first, and the likelihood is a bound.

    Args:
        shape: shape S of one sample, such as ``(2,)``, 2 or ``(1, 8, 8)``.
        data: samples (N, *S) whose moments standardise the data; without them, pass standardised data to the model.
        context_data: contexts (N, C) whose moments standardise the contexts; without them, pass contexts of unit scale,
            such as indicators of classes.
        weights: relative weights (N,) of the samples in these moments; equal if omitted.
        config: the description.
        context: number C of context features c of a conditional density p(x given c); if omitted, the number in
            ``context_data``, or 0.
        levels: number of values of each element of discrete data, 256 for 8-bit images; None for real numbers.
        values: fields of :class:`DensityConfig`, in place of ``config``.

    Returns:
        A :class:`cnf.Flow`; a :class:`cnf.MixtureFlow` with categorical augmentation; a :class:`cnf.LiftedFlow` with
        ``levels`` or augmented dimensions.

    Example:
        >>> x, c = torch.randn(100, 3), 1000 + torch.randn(100, 2)
        >>> flow = density_model((3,), x, context_data=c, hidden=(64, 64))
        >>> flow.log_prob(x, c).shape
        torch.Size([100])
        >>> density_model((3,), extra=2).log_prob(torch.randn(5, 3), samples=8).shape  # a bound
        torch.Size([5])
    """
    config = config_of(DensityConfig, config, values)
    shape = check_shape(shape)
    if context_data is not None:
        context_data = to_tensor("context_data", context_data).to(torch.empty(0).device)
        if context is None:
            context = context_data.shape[1] if context_data.ndim == 2 else 1
    context = 0 if context is None else whole_number("context", context, 0)
    levels = None if levels is None else whole_number("levels", levels, 2)
    config.validate(shape, context, levels)

    state = (shape[0] + config.augmented, *shape[1:])
    scaling = [Standardize(shape), *([Whiten(shape)] if config.whiten else [])]
    static: list[Transform] = [*([] if levels is None else [Logit(config.alpha)]), *scaling]
    base: Normal | Mixture = Normal(state)
    if config.mixes_flows or config.base == "mixture":
        base = Mixture(state, config.extra if config.mixes_flows else config.components, config.correlated)
    augment = VariationalAugment(config.augmented, config.posterior, shape) if config.augmented else None
    if data is not None:
        data = _to_real_numbers(data, shape, levels, config.alpha)
        for part in scaling:
            data = part.fit(data, weights).encode(data).to(base.like)
        if isinstance(base, Mixture):
            base.fit(data if augment is None else augment(data).point, weights)
    features = context + (config.extra if config.mixes_flows else 0)

    def ode(channels: int) -> Continuous | ResidualSteps:
        field = _build_field(config, channels, math.prod(shape[1:]), features)
        if config.residual_steps:
            return ResidualSteps(field, config.residual_steps, config.certify)
        extra = 0 if config.multiscale else config.augmented  # scales mix augmented channels with the others
        return Continuous(field, config.solver, config.divergence, config.probes, config.noise, extra)

    model: Flow | MixtureFlow | LiftedFlow
    if config.mixes_flows and isinstance(base, Mixture):
        model = MixtureFlow(Compose(static), base, ode(state[0]), sample_component=config.posterior == "fitted")
    else:
        scales = [Multiscale.of_blocks(state, ode, config.blocks)] if config.multiscale else []
        odes = scales or [ode(state[0]) for _ in range(config.blocks)]
        model = Flow(Compose([*(static if augment is None else []), *odes]), base)
    lifts: list[Lift] = [] if levels is None else [Dequantize(levels, config.dequantization, shape)]
    if augment is not None:
        lifts += [TransformLift(Compose(static)), augment]
    if lifts:
        model = LiftedFlow(lifts[0] if len(lifts) == 1 else ComposeLifts(lifts), model)
    if context or context_data is not None:
        scale = Normalize((context,))
        model.context_scale = scale if context_data is None else scale.fit(context_data, weights)
    model.description, model.context, model.levels = config, context, levels
    return model


def save(model: Density | Classifier, folder: str | Path, **notes: Any) -> None:
    """Store a model: ``config.json`` and ``model.safetensors``.

    Args:
        model: a density built by :func:`density_model`, or a classifier, as by :func:`anode.save`.
        folder: created if missing; files with those names are replaced.
        notes: further plain values for ``config.json``.
    """
    if not isinstance(model, Density | Classifier):
        raise InputError(f"model of type {type(model).__name__} is not a density or classifier: keep its state_dict()")
    kind = KIND if isinstance(model, Density) else classifiers.KIND
    storage.save_model(folder, kind, model, model.arguments, **notes)


def load(folder: str | Path, device: torch.device | str | None = None) -> Density | Classifier:
    """Rebuild a stored density or classifier in evaluation mode, without running code from the files.

    Args:
        folder: a run of ``train-flows``, or a folder written by :func:`save` or :func:`anode.save`.
        device: the CPU if omitted.
    """
    if storage.read_config(folder, KIND, classifiers.KIND)["kind"] == classifiers.KIND:
        return classifiers.load(folder, device)
    from cnf.tables import table_model  # which builds on this module

    of_table = "columns" in storage.read_config(folder, KIND)["model"]
    build: Callable[..., Density] = table_model if of_table else density_model
    return storage.load_model(folder, KIND, build, device)


def _build_field(config: DensityConfig, channels: int, pixels: int, context: int) -> Field:
    """Build the field of a state with a number of channels (dimensions of a vector) and pixels (1 for a vector)."""
    hidden, activation = config.hidden, config.activation
    if config.augmentation == "momentum":
        positions = channels // 2 * pixels
        return SecondOrderField(MLPField(positions, hidden, activation, config.time, positions, zero_init=True))
    if config.field == "mlp":
        return MLPField(channels * pixels, hidden, activation, config.time, context, zero_init=True)
    if config.field == "conv":
        return ConvField(channels, hidden[0], activation[0], config.time, context, zero_init=True)
    if config.field == "stack":
        return ConvStackField(channels, hidden, activation[0], config.time, context, zero_init=True)
    return UNetField(channels, hidden, context, zero_init=True)


def _to_real_numbers(data: Any, shape: Sequence[int], levels: int | None, alpha: float) -> Tensor:
    """Convert and check the data; dequantise them and apply the logit if they are discrete."""
    data = samples_to_fit("data", data, shape).to(torch.empty(0).device)
    if levels is not None:
        lift = Dequantize(levels)
        lift.check_values(data)
        return Logit(alpha).encode(lift(data).point)
    rounded = data.to(torch.get_default_dtype())
    constant = (rounded == rounded[0]).all(0).flatten()
    if constant.any():
        places = ", ".join(map(str, constant.nonzero().flatten()[:8].tolist()))
        raise InputError(
            f"data is constant in {int(constant.sum())} of {len(constant)} dimensions (first {places}) in "
            f"{rounded.dtype}, where a density is infinite: drop those dimensions, or if they vary, subtract an offset "
            "and rescale them"
        )
    return data
