"""A convolutional vector field of images, whose size it keeps, with its divergence in closed form."""

from __future__ import annotations

from typing import cast

from torch import Tensor
from torch.nn import functional as F

from anode.conv_layers import TimedConv
from anode.conv_stack import ConvStack
from anode.fields import mixing_of


class ConvField(ConvStack):
    """Three convolutions as a vector field of images (B, C, H, W): 1x1 to the filters, 3x3, 1x1 back to the channels.

    A pixel acts on itself only through the centre M of the 3x3 kernel. With the matrices W1 and W3 of the others and
    activation slopes d1, d2 at the hidden channels of a pixel, the divergence is that of a perceptron summed over
    pixels,

        tr(df/dx) = sum over pixels of d2' [M * (W1 W3)'] d1        (* elementwise),

    a third of what an evaluation of the field takes, whatever the size of the images.

    Args:
        channels: number C of channels of the state, augmented ones included.
        filters: number k of channels between the convolutions.
        activation: ``"relu"``, ``"softplus"``, ``"tanh"`` or ``"silu"``, after the first two.
        time: how the field depends on time: ``"none"``, ``"concat"`` (a further channel of the constant t in every
            convolution, zero beyond the border as the others are) or ``"bias"`` (a learned multiple of t is added
            after every convolution, which costs nothing).
        context: number of context features c; a learned multiple U c is added to all pixels after every convolution, or
            to each pixel its own where c is an image of as many channels.
        zero_init: start from the zero field.

    Raises:
        InputError: for an unknown activation or time conditioning, or numbers that are not positive.

    References:
        Dupont, Doucet, Teh 2019, arXiv 1904.01681, appendix E.

    Example:
        >>> import torch
        >>> field = ConvField(6, filters=16)
        >>> field(torch.tensor(0.5), torch.randn(10, 6, 28, 28)).shape
        torch.Size([10, 6, 28, 28])
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
        super().__init__(channels, (filters, filters), activation, time, context, zero_init, sizes=(1, 3, 1))

    def velocity_and_divergence(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :meth:`Field.velocity_and_divergence`."""
        self.check(x, c)
        *first, last = layers = cast("list[TimedConv]", list(self.layers))
        h, t = x, t.to(x.dtype)
        slopes = []
        for layer in first:
            h, slope = self.activation.with_slope(layer(t, h, c))
            slopes.append(slope)
        mixing = mixing_of([layer.centre for layer in layers])
        divergence = (F.conv2d(slopes[0], mixing[..., None, None]) * slopes[1]).flatten(1).sum(1)
        return last(t, h, c), divergence
