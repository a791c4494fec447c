"""A plain stack of 3x3 convolutions as a vector field of images: the network of published image flows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from anode.activations import activation as find_activation
from anode.conv_layers import TimedConv, check_images
from anode.errors import InputError
from anode.fields import Field, check_context


class ConvStack(Field):
    """3x3 convolutions in a row as a vector field of images (B, C, H, W), whose size they keep.

    It sees further than :class:`~anode.ConvField`, whose one 3x3 convolution looks at direct neighbours alone, and its
    divergence has no closed form: that of larger images is for an estimate.

    Args:
        channels: number C of channels of the state, augmented ones included.
        filters: numbers of channels between the convolutions.
        activation: ``"relu"``, ``"softplus"``, ``"tanh"`` or ``"silu"``, after all but the last.
        time: ``"none"``, ``"concat"`` or ``"bias"``; see :class:`~anode.ConvField`.
        context: number of context features; see :class:`~anode.ConvField`.
        zero_init: start from the zero field.
        sizes: odd lengths of the sides of the kernels, one more than filters; 3 when omitted.

    Raises:
        InputError: for an unknown activation or time conditioning, or numbers that are not positive.

    References:
        Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud 2019, arXiv 1810.01367, appendix B.1 (64, 64, 64, softplus).

    Example:
        >>> import torch
        >>> field = ConvStack(1, filters=(16, 16))
        >>> field(torch.tensor(0.5), torch.randn(10, 1, 28, 28)).shape
        torch.Size([10, 1, 28, 28])
    """

    def __init__(
        self,
        channels: int,
        filters: Sequence[int] = (64, 64, 64),
        activation: str = "softplus",
        time: str = "concat",
        context: int = 0,
        zero_init: bool = False,
        sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if min(channels, *filters) < 1 or context < 0:
            named = ", ".join(map(str, dict.fromkeys(filters)))
            raise InputError(f"channels={channels}, filters={named} and context={context} must be positive numbers")
        self.channels = channels
        self.context = context
        self.activation = find_activation(activation)
        widths = pairwise([channels, *filters, channels])
        sides = [3] * (len(filters) + 1) if sizes is None else sizes
        self.layers = nn.ModuleList(
            [TimedConv(n_in, n_out, side, time, context) for (n_in, n_out), side in zip(widths, sides, strict=True)]
        )
        if zero_init:
            for parameter in self.layers[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Evaluate the field; see :meth:`Field.forward`."""
        self.check(x, c)
        *first, last = self.layers
        h, t = x, t.to(x.dtype)
        for layer in first:
            h = self.activation.value(layer(t, h, c))
        return last(t, h, c)

    def check(self, x: Tensor, c: Tensor | None) -> None:
        """Raise an :class:`InputError` for images or contexts that do not fit the field."""
        check_images(x, self.channels)
        of_images = c is not None and c.ndim == 4 and c.shape[2:] == x.shape[2:]
        check_context(c[..., 0, 0] if of_images and c is not None else c, self.context, len(x))
