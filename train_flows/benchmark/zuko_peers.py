"""MAF and NSF of zuko as densities of this package, with the data seen as a continuous flow sees them."""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from anode import InputError
from cnf import Compose, Density, Flow, LiftedFlow, Normal, Transform
from cnf.transforms import Transport

PEERS = ("MAF", "NSF")
PEER_SIZE: dict[str, Any] = {"transforms": 5, "hidden_features": (128, 128)}


class Peer(Transform):
    """The transform of a zuko flow; it flattens points to vectors.

    Args:
        lazy: a ``zuko.lazy.LazyTransform`` from data to base, such as the ``transform`` of a ``zuko.flows.MAF``; it may
            depend on the context.

    References:
        Rozet et al. 2022, Zuko: Normalizing flows in PyTorch, doi 10.5281/zenodo.7625672.
    """

    def __init__(self, lazy: nn.Module) -> None:
        super().__init__()
        self.lazy = lazy

    @override
    def forward(self, x: Tensor, c: Tensor | None = None) -> Transport:
        z, log_det = self.lazy(c).call_and_ladj(x.flatten(1))
        return Transport(z.reshape(x.shape), log_det)

    @override
    def inverse(self, z: Tensor, c: Tensor | None = None) -> Transport:
        x, log_det = self.lazy(c).inv.call_and_ladj(z.flatten(1))
        return Transport(x.reshape(z.shape), log_det)

    @override
    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        return self.lazy(c).inv(z.flatten(1)).reshape(z.shape)  # spares the log-determinant


def peer(name: str, cnf: Density) -> Density:
    """Return MAF or NSF on N(0, I) with the lift and the static transforms of a CNF, which do not learn.

    References:
        Papamakarios, Pavlakou, Murray 2017, arXiv 1705.07057 (MAF); Durkan, Bekasov, Murray, Papamakarios 2019,
        arXiv 1906.04032 (NSF).
    """
    flow = cnf.flow if isinstance(cnf, LiftedFlow) else cnf
    static, _ = flow.split()
    lazy = getattr(zuko().flows, name)(math.prod(flow.event_shape), **PEER_SIZE).transform
    found = Flow(Compose([static, Peer(lazy)]), Normal(flow.event_shape))
    return LiftedFlow(cnf.lift, found) if isinstance(cnf, LiftedFlow) else found


def zuko() -> ModuleType:
    """Return the package of the peers; raise an InputError if it is not installed."""
    try:
        return importlib.import_module("zuko")
    except ImportError as error:
        raise InputError("MAF and NSF need zuko: python -m pip install 'augmented-flows[bench]'") from error
