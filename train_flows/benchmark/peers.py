"""Flows of zuko as transforms, so that they share everything else with a continuous normalizing flow."""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from anode import InputError
from cnf import Compose, Density, Flow, LiftedFlow, Normal, PathOptions, Transform, Transport

NAMES = ("MAF", "NSF")
SIZE: dict[str, Any] = {"transforms": 5, "hidden_features": (128, 128)}


class Peer(Transform):
    """The transform of a zuko flow; points of any shape are vectors to it.

    Args:
        lazy: a ``zuko.lazy.LazyTransform`` from data to base, such as the ``transform`` of a ``zuko.flows.MAF``; it may
            depend on the context.

    Example:
        >>> import torch, zuko
        >>> flow = Flow(Peer(zuko.flows.MAF(3).transform), Normal((3,)))
        >>> flow.log_prob(torch.randn(5, 3)).shape, flow.sample(7).shape
        (torch.Size([5]), torch.Size([7, 3]))

    References:
        Rozet et al. 2022, Zuko: Normalizing flows in PyTorch, doi 10.5281/zenodo.7625672.
    """

    def __init__(self, lazy: nn.Module) -> None:
        super().__init__()
        self.lazy = lazy

    def forward(self, x: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Transport:
        """See :meth:`Transform.forward`."""
        z, log_det = self.lazy(c).call_and_ladj(x.flatten(1))
        return Transport(z.reshape(x.shape), log_det)

    def inverse(self, z: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Transport:
        """See :meth:`Transform.inverse`; an autoregressive one takes a pass for every dimension."""
        x, log_det = self.lazy(c).inv.call_and_ladj(z.flatten(1))
        return Transport(x.reshape(z.shape), log_det)

    def encode(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """See :meth:`Transform.encode`."""
        return self.lazy(c)(x.flatten(1)).reshape(x.shape)

    def decode(self, z: Tensor, c: Tensor | None = None, path: PathOptions | None = None) -> Tensor:
        """See :meth:`Transform.decode`; spares the log-determinant."""
        return self.lazy(c).inv(z.flatten(1)).reshape(z.shape)


def build(name: str, beside: Density) -> Density:
    """A peer that sees data as a continuous flow does: the same lift and static transforms, then MAF or NSF, N(0, I).

    Args:
        name: ``"MAF"`` or ``"NSF"``, of five transforms of 128 + 128 hidden features.
        beside: the continuous flow, lifted or not, whose lift and transforms next to the data, which learn nothing, it
            shares.

    Raises:
        InputError: when zuko is not installed.

    References:
        Papamakarios, Pavlakou, Murray 2017, arXiv 1705.07057 (MAF); Durkan, Bekasov, Murray, Papamakarios 2019,
        arXiv 1906.04032 (NSF).
    """
    lifted = isinstance(beside, LiftedFlow)
    flow = beside.flow if lifted else beside
    assert isinstance(flow, Flow)
    static, _ = flow.parts()
    shape = flow.base.shape
    lazy = getattr(zuko().flows, name)(math.prod(shape), **SIZE).transform
    peer = Flow(Compose([static, Peer(lazy)]), Normal(shape))
    return LiftedFlow(beside.lift, peer) if lifted else peer


def zuko() -> ModuleType:
    """The package of the peers.

    Raises:
        InputError: when it is not installed.
    """
    try:
        return importlib.import_module("zuko")
    except ImportError as error:
        raise InputError("MAF and NSF need zuko: python -m pip install 'augmented-flows[bench]'") from error
