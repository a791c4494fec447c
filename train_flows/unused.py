"""Options that take part only where others ask for them: refused elsewhere, rather than ignored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from anode import InputError
from cnf.augmented_fields import MIXTURES
from train_flows.settings import Augmentation, Model, Objective, Scales

OF_LIKELIHOOD = ("kinetic", "frobenius", "acceleration", "steer")
OF_MATCHING = ("coupling", "interpolation", "sigma")
MATCHING, LIKELIHOOD, BOTH = "flow-matching", "likelihood", "flow-matching+likelihood"


class Sections(NamedTuple):
    """The settings that options are looked for in."""

    model: Model
    scales: Scales
    augmented: Augmentation
    goal: Objective


@dataclasses.dataclass(frozen=True)
class Use:
    """When some options are of use.

    Attributes:
        options: their names.
        where: in words.
        here: whether that is so.
    """

    options: tuple[str, ...]
    where: str
    here: Callable[[Sections], bool]


USES = (
    Use(("hidden",), "--field mlp, stack or unet", lambda s: s.model.field != "conv"),
    Use(("filters",), "--field conv", lambda s: s.model.field == "conv"),
    Use(("activation", "time"), "--field mlp, conv or stack", lambda s: s.model.field != "unet"),
    Use(("components",), "--base mixture", lambda s: s.model.base == "mixture"),
    Use(
        ("correlated",),
        "mixtures",
        lambda s: s.model.base == "mixture" or s.augmented.augmentation in MIXTURES,
    ),
    Use(("probes", "noise"), "--divergence hutchinson", lambda s: s.model.divergence == "hutchinson"),
    Use(
        (*OF_LIKELIHOOD, "samples", "warm_up"),
        f"--objective {LIKELIHOOD} or {BOTH}",
        lambda s: s.goal.objective != MATCHING,
    ),
    Use(
        (*OF_MATCHING, "matching_kl"),
        f"--objective {MATCHING} or {BOTH}",
        lambda s: s.goal.objective != LIKELIHOOD,
    ),
    Use(
        ("warm_up", "matching_kl"),
        "--posterior learned or --dequantization learned",
        lambda s: "learned" in (s.augmented.posterior, s.scales.dequantization),
    ),
    Use(("likelihood_steps",), f"--objective {BOTH}", lambda s: s.goal.objective == BOTH),
)


def check(chosen_in: Sections, recipe: Mapping[str, Any]) -> None:
    """Raise an :class:`~anode.InputError` for an option that was chosen in vain, other than by the recipe."""
    chosen = {
        field.name: value
        for section in chosen_in
        for field in dataclasses.fields(section)
        if (value := getattr(section, field.name)) not in (field.default, recipe.get(field.name, field.default))
    }
    for use in USES:
        for name in use.options:
            if name in chosen and not use.here(chosen_in):
                raise InputError(f"--{name.replace('_', '-')} {chosen[name]} is for {use.where}: drop it")


def check_discrete(scales: Scales, levels: int | None) -> None:
    """Raise an :class:`~anode.InputError` for an option of discrete data that was chosen for real numbers."""
    for name in ("dequantization", "alpha"):
        if levels is None and (value := getattr(scales, name)) != getattr(Scales(), name):
            raise InputError(f"--{name} {value} is for images and other discrete data: drop it")
