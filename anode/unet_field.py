"""A U-Net as a vector field of images: what it looks like at several scales at once, for flow matching."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from anode.conv_layers import check_images
from anode.errors import InputError
from anode.fields import Field, check_context

TIME_STEPS = 1000  # that the embedding of time in diffusion models spans; time here spans 1


class UNetField(Field):
    """A small U-Net as a vector field of images (B, C, H, W), whose size it keeps.

    A convolutional network down to smaller images with more channels and up again, by ``diffusers`` (its
    ``UNet2DModel``, without attention, one residual block a level). Time goes into every block by its sinusoidal
    embedding. Its divergence has no closed form: that of larger images is for an estimate.

    Args:
        channels: number C of channels of the state, augmented ones included.
        filters: numbers of channels of the levels, from the image on; each level halves the size of the one before.
        context: number of context features, added to the embedding of time by a linear layer.
        zero_init: start from the zero field.

    Raises:
        InputError: for numbers that are not positive, and without ``diffusers`` (the extra ``unet``).

    References:
        Ronneberger, Fischer, Brox 2015, arXiv 1505.04597; Ho, Jain, Abbeel 2020, arXiv 2006.11239, appendix B.

    Example:
        >>> import torch
        >>> field = UNetField(1, filters=(8, 16))
        >>> field(torch.tensor(0.5), torch.randn(10, 1, 28, 28)).shape
        torch.Size([10, 1, 28, 28])
    """

    def __init__(
        self, channels: int, filters: Sequence[int] = (32, 64), context: int = 0, zero_init: bool = False
    ) -> None:
        super().__init__()
        if min(channels, *filters, len(filters)) < 1 or context < 0:
            named = ", ".join(map(str, filters))
            raise InputError(f"channels={channels}, filters={named} and context={context} must be positive numbers")
        self.channels = channels
        self.context = context
        self.halvings = len(filters) - 1
        self.network: nn.Module = _unet()(
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(filters),
            down_block_types=("DownBlock2D",) * len(filters),
            up_block_types=("UpBlock2D",) * len(filters),
            layers_per_block=1,
            norm_num_groups=_groups(filters),
            add_attention=False,
            class_embed_type="identity" if context else None,
        )
        self.embedding = nn.Linear(context, 4 * filters[0]) if context else None
        if zero_init:
            for parameter in self.network.get_submodule("conv_out").parameters():
                nn.init.zeros_(parameter)

    def forward(self, t: Tensor, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Evaluate the field; see :meth:`Field.forward`.

        Raises:
            InputError: for images or contexts that do not fit, and images whose size does not halve so often.
        """
        check_images(x, self.channels)
        check_context(c, self.context, len(x))
        if any(side % 2**self.halvings for side in x.shape[2:]):
            raise InputError(
                f"images of {x.shape[2]}x{x.shape[3]} do not halve {self.halvings} times: pad them, or pass fewer "
                "filters"
            )
        embedded = {} if self.embedding is None else {"class_labels": self.embedding(c)}
        return self.network(x, TIME_STEPS * t.to(x.dtype).expand(len(x)), return_dict=False, **embedded)[0]


def _groups(filters: Sequence[int]) -> int:
    """In how many groups channels are normalised: up to 8, of two channels at least.

    Of one alone, its mean would be taken out, and with it what the embedding of time and context has added.
    """
    groups = math.gcd(8, *filters)
    return max(1, groups // 2) if groups == min(filters) else groups


def _unet() -> Any:
    """The network's class; imported where it is needed, for that takes seconds."""
    try:
        return importlib.import_module("diffusers").UNet2DModel
    except ImportError as error:
        raise InputError(f"a U-Net needs diffusers ({error}): pip install 'augmented-flows[unet]'") from error
