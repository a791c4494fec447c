"""The functions of the Augmented Neural ODEs paper: points with targets -1 and +1.

Neural ODEs cannot represent ``g1d``, ``intervals`` and ``spheres``: in one dimension the flow of an ODE is increasing,
and in any dimension it cannot carry a ball out of the shell around it. They can represent ``sines``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

import torch

from anode import InputError
from train_flows.data.dataset import SEED_STRIDE, Dataset, Split

Points = tuple[torch.Tensor, torch.Tensor]  # inputs (N, D) and targets (N, 1)
TRAIN, HELD_OUT = 3000, 1000  # points
INNER, OUTER = (0.0, 0.5), (1.0, 1.5)  # radii
SLICES = 10  # of the circle, for generalisation


def flip(n: int, generator: torch.Generator) -> Points:
    """Return the function g1d, +1 -> -1 and -1 -> +1, at n alternating points without noise."""
    x, y = identity(n, generator)
    return x, -y


def identity(n: int, generator: torch.Generator) -> Points:
    """Return the identity on the points -1 and +1, the control of g1d."""
    x = torch.ones(n, 1)
    x[::2] = -1
    return x, x.clone()


def spheres(n: int, generator: torch.Generator, dim: int = 2) -> Points:
    """Draw concentric spheres: a third of n points in the ball of radius 0.5 -> -1, others in the shell 1 to 1.5 -> +1.

    Points are uniform in volume: r = b ((a/b)^d + u (1 - (a/b)^d))^(1/d) between radii a and b, u uniform in [0, 1).
    In one dimension these are the nested intervals, three equal thirds.

    References:
        Dupont, Doucet, Teh 2019, arXiv 1904.01681, section 4; the published 1,000 inner and 2,000 outer points.
    """
    inner = n // 3
    direction = torch.randn(n, dim, generator=generator)
    if dim == 1:
        direction[inner::2], direction[inner + 1 :: 2] = -1, 1
    u = torch.rand(n, 1, generator=generator)
    low, high = torch.full((n, 1), INNER[0]), torch.full((n, 1), INNER[1])
    low[inner:], high[inner:] = OUTER
    hollow = (low / high).double() ** dim  # relative to the outer radius, which no dimension lets overflow
    radius = high * (hollow + u * (1 - hollow)) ** (1 / dim)
    y = torch.ones(n, 1)
    y[:inner] = -1
    return radius.float() * direction / direction.norm(dim=1, keepdim=True), y


def sines(n: int, generator: torch.Generator) -> Points:
    """Draw two sine curves, shifted by 0.7 up -> +1 and down -> -1, with noise 0.1; a homeomorphism separates them."""
    x = 2 * torch.rand(n, generator=generator) - 1
    y = torch.ones(n)
    y[: n // 2] = -1
    height = torch.sin(math.pi * x) + 0.7 * y + 0.1 * torch.randn(n, generator=generator)
    return torch.stack([x, height], 1), y.unsqueeze(1)


FUNCTIONS: dict[str, Callable[[int, torch.Generator], Points]] = {
    "g1d": flip,
    "identity": identity,
    "intervals": lambda n, generator: spheres(n, generator, dim=1),
    "spheres": spheres,
    "sines": sines,
}


def sample(name: str, n: int, seed: int = 0) -> Points:
    """Draw n points of a function by name, such as ``spheres-3`` in 3 dimensions: inputs (n, D) and targets (n, 1)."""
    if not is_function(name):
        raise InputError(
            f"function={name!r} is unknown; choose one of {', '.join(FUNCTIONS)}, spheres-3, spheres-4 ..."
        )
    generator = torch.Generator().manual_seed(seed)
    if name in FUNCTIONS:
        return FUNCTIONS[name](n, generator)
    return spheres(n, generator, int(name.removeprefix("spheres-")))


def load(name: str, seed: int = 0) -> Dataset:
    """Draw training, validation and test points of a function by name, each part by another seed."""
    sizes = (TRAIN, HELD_OUT, HELD_OUT)
    train, validation, test = (Split(*sample(name, n, seed + i * SEED_STRIDE)) for i, n in enumerate(sizes, start=1))
    columns = tuple(f"x{i}" for i in range(train.x.shape[1]))
    notes = ("the test part holds the same two points as the training part",) if name in ("g1d", "identity") else ()
    return Dataset(name, train, validation, test, columns, named=False, notes=notes)


def is_function(name: str) -> bool:
    """Return True if there is a function of that name; spheres have up to 9,999 dimensions."""
    return name in FUNCTIONS or re.fullmatch(r"spheres-[1-9]\d{0,3}", name) is not None


def without_slices(dataset: Dataset, removed: int, seed: int = 0) -> Dataset:
    """Return points in the plane whose training part lacks some of ten slices, which validate instead."""
    if dataset.shape != (2,) or dataset.train.y is None:
        raise InputError(f"--removed-slices {removed} is for points in the plane, not for {dataset.name}: omit it")
    generator = torch.Generator().manual_seed(seed + 2 * SEED_STRIDE)
    outside, inside = split_slices((dataset.train.x, dataset.train.y), removed, generator)
    return replace(dataset, train=Split(*outside), validation=Split(*inside))


def split_slices(points: Points, removed: int, generator: torch.Generator) -> tuple[Points, Points]:
    """Return the points outside and inside ``removed`` of ten slices of the plane by angle, chosen at random.

    Both circles lose the same angles, so that a model has to continue each of them through the gap.

    References:
        Dupont, Doucet, Teh 2019, arXiv 1904.01681, section 5.1.
    """
    if not 0 < removed < SLICES:
        raise InputError(f"removed={removed} must be from 1 to {SLICES - 1} slices")
    x, y = points
    angle = torch.atan2(x[:, 1], x[:, 0]) / (2 * math.pi) % 1
    slices = (angle * SLICES).long().clamp(max=SLICES - 1)
    inside = torch.isin(slices, torch.randperm(SLICES, generator=generator)[:removed])
    return (x[~inside], y[~inside]), (x[inside], y[inside])
