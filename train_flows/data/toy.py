"""Two-dimensional densities: the classics of the field, with the settings of FFJORD's code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from anode.errors import check_choice
from train_flows.data.dataset import Dataset, Split, class_contexts

Array = np.ndarray
TRAIN, VALIDATION, TEST = 50_000, 5_000, 10_000
HALVES = ("lower", "upper")  # halves of the plane: y <= 0, y > 0


def sample(name: str, n: int, seed: int = 0) -> Array:
    """Draw n points (n, 2), float32, from a density by name.

    References:
        Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud 2019, arXiv 1810.01367, and its published code.
    """
    check_choice("density", name, DENSITIES)
    return DENSITIES[name](np.random.default_rng(seed), n).astype(np.float32)


def load(name: str, seed: int = 0, conditional: bool = False) -> Dataset:
    """Draw training, validation and test samples from a density by name, all three by one seed.

    A conditional density is given the half of the plane, as two indicators: y <= 0, y > 0.
    """
    x = torch.from_numpy(sample(name, TRAIN + VALIDATION + TEST, seed))
    half = (x[:, 1] > 0).long()
    whole = Split(x, half, class_contexts(half, len(HALVES))) if conditional else Split(x)
    train, validation, test = (whole.take(rows) for rows in torch.arange(len(x)).split((TRAIN, VALIDATION, TEST)))
    given = HALVES if conditional else ()
    return Dataset(name, train, validation, test, ("x", "y"), classes=given, context=given)


def _gaussians(rng: np.random.Generator, n: int, std: float, scale: float) -> Array:
    """Eight Gaussians on a circle of radius 4."""
    angle = rng.integers(8, size=n) * np.pi / 4
    return (4 * _on_circle(angle) + std * rng.normal(size=(n, 2))) * scale


def _checkerboard(rng: np.random.Generator, n: int) -> Array:
    """The dark squares of a 4x4 board on [-4, 4]^2; entropy log 32."""
    column = rng.integers(4, size=n)
    row = 2 * rng.integers(2, size=n) + column % 2
    return 2 * (np.stack([column, row], 1) + rng.uniform(size=(n, 2))) - 4


def _circles(rng: np.random.Generator, n: int) -> Array:
    from sklearn.datasets import make_circles  # seconds, which other data need not wait for

    return 3 * make_circles(n, factor=0.5, noise=0.08, random_state=_seed(rng))[0]


def _moons(rng: np.random.Generator, n: int) -> Array:
    from sklearn.datasets import make_moons

    return 2 * make_moons(n, noise=0.1, random_state=_seed(rng))[0] + np.array([-1, -0.2])


def _pinwheel(rng: np.random.Generator, n: int) -> Array:
    """Five arms that bend with the radius."""
    arm = rng.integers(5, size=n)
    radial, tangential = 1 + 0.3 * rng.normal(size=n), 0.1 * rng.normal(size=n)
    angle = 2 * np.pi * arm / 5 + 0.25 * np.exp(radial)
    across = np.stack([-np.sin(angle), np.cos(angle)], 1)
    return 2 * (radial[:, None] * _on_circle(angle) + tangential[:, None] * across)


def _rings(rng: np.random.Generator, n: int) -> Array:
    """Four concentric circles, equally likely, with noise."""
    radius = rng.choice([0.25, 0.5, 0.75, 1.0], size=n)
    return 3 * radius[:, None] * _on_circle(_angle(rng, n)) + 0.08 * rng.normal(size=(n, 2))


def _spirals(rng: np.random.Generator, n: int) -> Array:
    """Two arms of 540 degrees."""
    angle = np.sqrt(rng.uniform(size=n)) * 3 * np.pi
    arm = np.stack([-np.cos(angle), np.sin(angle)], 1) * angle[:, None] + 0.5 * rng.uniform(size=(n, 2))
    side = rng.choice([-1, 1], size=n)[:, None]
    return side * arm / 3 + 0.1 * rng.normal(size=(n, 2))


def _swissroll(rng: np.random.Generator, n: int) -> Array:
    from sklearn.datasets import make_swiss_roll

    return make_swiss_roll(n, noise=1.0, random_state=_seed(rng))[0][:, [0, 2]] / 5


def _annuli(rng: np.random.Generator, n: int, radii: tuple[float, ...], std: float) -> Array:
    """Rings, equally likely, whose radius is Gaussian."""
    radius = rng.choice(radii, size=n) + std * rng.normal(size=n)
    return radius[:, None] * _on_circle(_angle(rng, n))


def _on_circle(angle: Array) -> Array:
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def _angle(rng: np.random.Generator, n: int) -> Array:
    return rng.uniform(0, 2 * np.pi, size=n)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


DENSITIES: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "8gaussians": lambda rng, n: _gaussians(rng, n, std=0.5, scale=1 / 1.414),
    "separated-8gaussians": lambda rng, n: _gaussians(rng, n, std=0.2, scale=1.0),
    "checkerboard": _checkerboard,
    "circles": _circles,
    "moons": _moons,
    "pinwheel": _pinwheel,
    "rings": _rings,
    "2spirals": _spirals,
    "swissroll": _swissroll,
    "annulus": lambda rng, n: _annuli(rng, n, radii=(2.0,), std=0.3),
    "nested-annuli": lambda rng, n: _annuli(rng, n, radii=(1.0, 3.0), std=0.2),
}
