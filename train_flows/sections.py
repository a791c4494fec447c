"""The settings that a run stores, section by section: which a run of a kind of model has, and what is asked of them."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from anode import InputError
from anode.classifiers import KIND as CLASSIFIER
from anode.plain import check_arguments
from cnf.models import KIND as DENSITY
from train_flows.growth import Growth
from train_flows.guards import Guards
from train_flows.settings import (
    Augmentation,
    DensityNumerics,
    Labels,
    Model,
    Network,
    Numerics,
    Objective,
    RunSettings,
    Scales,
    Source,
)
from train_flows.training import Epochs, Training

SECTIONS: dict[str, dict[str, type]] = {
    DENSITY: {
        "data": Source,
        "model": Model,
        "scales": Scales,
        "augmentation": Augmentation,
        "objective": Objective,
        "numerics": DensityNumerics,
        "training": Training,
        "growth": Growth,
        "guards": Guards,
        "run": RunSettings,
    },
    CLASSIFIER: {
        "data": Labels,
        "network": Network,
        "numerics": Numerics,
        "training": Epochs,
        "guards": Guards,
        "run": RunSettings,
    },
}


def checked(kind: str, settings: Any) -> dict[str, dict[str, Any]]:
    """The stored settings of a run by section; those that are missing have their defaults.

    Args:
        kind: of the model.
        settings: plain values.

    Raises:
        ValueError: when a section is missing or unknown, or holds what the programs do not store.
    """
    if not isinstance(settings, dict):
        raise ValueError("its settings are no sections")
    sections = SECTIONS[kind]
    unknown = [name for name in settings if name not in sections]
    if unknown:
        raise ValueError(f"the section {unknown[0][:80]!r} of its settings is unknown")
    return {name: _section(name, sections[name], settings) for name in sections}


def made(section: type, values: dict[str, Any]) -> Any:
    """A section of settings from its plain values, whose lists are tuples there."""
    return section(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _section(name: str, section: type, settings: dict[str, Any]) -> dict[str, Any]:
    values: Any = settings.get(name)
    try:
        check_arguments(section, values)
        value = made(section, values)
        if hasattr(value, "check"):
            value.check()
    except (TypeError, InputError) as error:
        raise ValueError(f"its settings of {name} do not serve ({error})") from error
    if name == "data" and not _place(value.source):
        raise ValueError("its settings of data do not say where they lie")
    return {key: list(x) if isinstance(x, tuple) else x for key, x in dataclasses.asdict(value).items()}


def _place(source: Any) -> bool:
    """Whether it could name data: a text that the system takes for a path."""
    try:
        return b"\0" not in os.fsencode(source)
    except (TypeError, ValueError):
        return False
