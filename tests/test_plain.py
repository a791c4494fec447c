"""Plain values held against annotations: what settings and models store passes, what others write does not."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Literal

import pytest

from anode import Solver
from anode.classifiers import classifier
from anode.plain import check_arguments, fits
from cnf import density_model
from train_flows import classify, density

FITTING = [
    (1, int),
    (1, float),
    (1.5, float),
    (True, bool),
    ("x", str),
    (None, int | None),
    ([1, 2], Sequence[int]),
    ([1, 2], tuple[int, ...]),
    ([], list[str]),
    ("a", Literal["a", "b"]),
    ("tanh", str | Sequence[str]),
    (["tanh"], str | Sequence[str]),
    ({"method": "rk4", "step_size": 0.5}, Solver),
    ({}, Solver),
    ({"a": 1.5, "b": 2}, dict[str, float]),
]
OTHERS = [
    (True, int),
    (True, float),
    (1, bool),
    (1.0, int),
    ("1", int),
    (None, int),
    ("ab", Sequence[str]),
    ([1, True], Sequence[int]),
    ([1, None], tuple[int, ...]),
    ("c", Literal["a", "b"]),
    (1, Literal[True]),
    ({"methods": "rk4"}, Solver),
    ({"max_steps": 1.5}, Solver),
    ([], Solver),
    ({}, str),
    ({"a": "b"}, dict[str, float]),
    ({1: 2.0}, dict[str, float]),
]


@pytest.mark.parametrize(("value", "hint"), FITTING)
def test_fits(value, hint):
    assert fits(value, hint)


@pytest.mark.parametrize(("value", "hint"), OTHERS)
def test_does_not_fit(value, hint):
    assert not fits(value, hint)


@pytest.mark.parametrize(
    ("values", "names"),
    [([], "names no arguments"), ({"width": 1}, "'width' is unknown"), ({"extra": "1"}, "extra='1'")],
)
def test_the_argument_is_named(values, names):
    for build in (density_model, classifier):
        with pytest.raises(TypeError, match=names):
            check_arguments(build, values)


@pytest.mark.parametrize(
    ("program", "source"),
    [(density, name) for name in ("moons", "digits", "power", "table.csv")]
    + [(classify, name) for name in ("spheres", "mnist", "wine", "table.csv")],
)
def test_what_the_programs_store_fits(program, source):
    settings = program.parse([source])
    stored = json.loads(json.dumps(dataclasses.asdict(settings)))
    for section in dataclasses.fields(settings):
        check_arguments(type(getattr(settings, section.name)), stored[section.name])
