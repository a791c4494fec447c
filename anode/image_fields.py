"""Vector fields of images (B, C, H, W), which keep the size of the image."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from anode.errors import InputError
from anode.fields import Field, check_context, zero_
from anode.inputs import whole_number
from anode.layers import TimedConv, activation_named, group_norm, trace_matrix, widths_of

TIME_STEPS = 1000  # diffusion models embed times from 0 to 1000; here time runs from 0 to 1


class ConvStackField(Field):
    """A stack of 3x3 convolutions as a vector field of images: the network of published image flows.

    It sees further than :class:`ConvField`, whose one 3x3 convolution reaches direct neighbours only. Its divergence
    has no closed form: use Hutchinson's estimator for larger images.

    Args:
        channels: number C of channels of the state, augmented ones included.
        filters: numbers of channels between the convolutions.
        activation: ``"relu"``, ``"softplus"``, ``"tanh"`` or ``"silu"``, after all convolutions but the last.
        time: how the field depends on time: ``"none"``; ``"concat"``, an input channel of the constant t in every
            convolution, zero beyond the border as the others; or ``"bias"``, which adds a learned multiple of t after
            every convolution at no cost.
        context: number of context features c; U c is added to all pixels after every convolution.
        zero_init: start from the zero field.
        sizes: odd side lengths of the kernels, one more than filters; 3 when omitted.

    References:
        Grathwohl et al. 2019, arXiv 1810.01367, appendix B.1 (64, 64, 64, softplus).

    Example:
        >>> field = ConvStackField(1, filters=(16, 16))
        >>> field(torch.tensor(0.5), torch.randn(10, 1, 28, 28)).shape
        torch.Size([10, 1, 28, 28])
    """

    def __init__(
        self,
        channels: int,
        filters: int | Sequence[int] = (64, 64, 64),
        activation: str = "softplus",
        time: str = "concat",
        context: int = 0,
        zero_init: bool = False,
        sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        filters = widths_of("filters", filters)
        channels, context = whole_number("channels", channels), whole_number("context", context, 0)
        self.channels = channels
        self.context = context
        self.activation = activation_named(activation)
        widths = pairwise([channels, *filters, channels])
        sizes = [3] * (len(filters) + 1) if sizes is None else sizes
        layers = (TimedConv(*pair, size, time, context) for pair, size in zip(widths, sizes, strict=True))
        self.layers: Sequence[TimedConv] = nn.ModuleList(layers)  # ty: ignore[invalid-assignment]
        if zero_init:
            zero_(self.layers[-1])

    @override
    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        _check_images(x, self.channels, c, self.context)
        *first, last = self.layers
        h, t = x, t.to(x.dtype)
        for layer in first:
            h = self.activation.value(layer(t, h, c))
        return last(t, h, c)


class ConvField(ConvStackField):
    """Three convolutions as a vector field of images: 1x1 to the filters, 3x3, 1x1 back to the channels.

    A pixel acts on itself only through the centre M of the 3x3 kernel. With the matrices W1 and W3 of the others and
    activation slopes d1, d2 at the hidden channels of a pixel, the divergence is the sum over pixels of the divergence
    of a perceptron,

        tr(df/dx) = sum over pixels of d2' [M * (W1 W3)'] d1        (* elementwise),

    which adds a third to an evaluation of the field, for images of any size.

    Args:
        channels: number C of channels of the state, augmented ones included.
        filters: number k of channels between the convolutions.
        activation: see :class:`ConvStackField`.
        time: see :class:`ConvStackField`.
        context: see :class:`ConvStackField`.
        zero_init: start from the zero field.

    References:
        Dupont et al. 2019, arXiv 1904.01681, appendix E.
    """

    def __init__(
        self,
        channels: int,
        filters: int = 64,
        activation: str = "relu",
        time: str = "bias",
        context: int = 0,
        zero_init: bool = False,
    ) -> None:
        filters = whole_number("filters", filters)
        super().__init__(channels, (filters, filters), activation, time, context, zero_init, sizes=(1, 3, 1))

    @override
    def velocity_and_divergence(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _check_images(x, self.channels, c, self.context)
        first, second, last = self.layers
        t = t.to(x.dtype)
        h, slope1 = self.activation.with_slope(first(t, x, c))
        h, slope2 = self.activation.with_slope(second(t, h, c))
        matrix = trace_matrix(first.centre_tap, second.centre_tap, last.centre_tap)
        divergence = (F.conv2d(slope1, matrix[..., None, None]) * slope2).flatten(1).sum(1)
        return last(t, h, c), divergence


class NormConvField(Field):
    """The field of an ODE-Net: two 3x3 convolutions between group normalisations.

        f = norm(conv(relu(norm(conv(relu(norm(x)))))))

    Args:
        channels: number C of channels of the state.
        time: how each convolution depends on time; see :class:`ConvStackField`.

    References:
        Chen et al. 2018, arXiv 1806.07366, section 3.
    """

    def __init__(self, channels: int, time: str = "concat") -> None:
        super().__init__()
        self.channels = channels = whole_number("channels", channels)
        self.norms = nn.ModuleList(group_norm(channels) for _ in range(3))
        self.convs = nn.ModuleList(TimedConv(channels, channels, 3, time) for _ in range(2))

    @override
    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        _check_images(x, self.channels, c, 0)
        h, t = x, t.to(x.dtype)
        *first, last = self.norms
        for norm, conv in zip(first, self.convs, strict=True):
            h = conv(t, torch.relu(norm(h)))
        return last(h)


class UNetField(Field):
    """A small U-Net as a vector field of images, which sees them at several scales; for flow matching.

    The network is the ``UNet2DModel`` of ``diffusers``, without attention and with one residual block a level. Time
    enters every block by its sinusoidal embedding. The divergence has no closed form: use Hutchinson's estimator.

    Args:
        channels: number C of channels of the state, augmented ones included.
        filters: numbers of channels of the levels, from the full image on; each level halves the size.
        context: number of context features, which a linear layer adds to the embedding of time.
        zero_init: start from the zero field.

    References:
        Ronneberger et al. 2015, arXiv 1505.04597; Ho et al. 2020, arXiv 2006.11239, appendix B.
    """

    def __init__(
        self, channels: int, filters: int | Sequence[int] = (32, 64), context: int = 0, zero_init: bool = False
    ) -> None:
        super().__init__()
        filters = widths_of("filters", filters)
        if not filters:
            raise InputError(f"filters={filters} is empty: pass the number of channels of each level, such as (32, 64)")
        channels, context = whole_number("channels", channels), whole_number("context", context, 0)
        self.channels = channels
        self.context = context
        self.halvings = len(filters) - 1
        self.network: nn.Module = _import_unet()(
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(filters),
            down_block_types=("DownBlock2D",) * len(filters),
            up_block_types=("UpBlock2D",) * len(filters),
            layers_per_block=1,
            norm_num_groups=_n_groups(filters),
            add_attention=False,
            class_embed_type="identity" if context else None,
        )
        self.embedding = nn.Linear(context, 4 * filters[0]) if context else None
        if zero_init:
            zero_(self.network.get_submodule("conv_out"))

    @override
    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        _check_images(x, self.channels, c, self.context)
        if any(side % 2**self.halvings for side in x.shape[2:]):
            raise InputError(
                f"images of {x.shape[2]}x{x.shape[3]} do not halve {self.halvings} times: pad them, or pass fewer "
                "filters"
            )
        embedded = {} if self.embedding is None else {"class_labels": self.embedding(c)}
        return self.network(x, TIME_STEPS * t.to(x.dtype).expand(len(x)), return_dict=False, **embedded)[0]


def _check_images(x: Tensor, channels: int, c: Tensor | None, context: int) -> None:
    if x.ndim != 4 or x.shape[1] != channels:
        raise InputError(f"x of shape {tuple(x.shape)} does not fit a field of channels={channels}: pass (B, C, H, W)")
    check_context(c, context, len(x))


def _n_groups(filters: Sequence[int]) -> int:
    """Return up to 8 groups of two channels or more.

    Normalising a channel alone would remove its mean, and with it the embedding of time and context.
    """
    groups = math.gcd(8, *filters)
    return max(1, groups // 2) if groups == min(filters) else groups


def _import_unet() -> Any:
    """Import the class of the network on first use, since that takes seconds."""
    try:
        return importlib.import_module("diffusers").UNet2DModel
    except ImportError as error:
        raise InputError(f"a U-Net needs diffusers ({error}): pip install 'augmented-flows[unet]'") from error
