"""Plain values, as JSON has them, held against the annotations of what they are handed to."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any


def check_arguments(function: Callable[..., Any], values: Any) -> None:
    """Raise a TypeError unless values, by name, are of the types that a function, or a dataclass, asks for."""
    if not isinstance(values, dict):
        raise TypeError(f"{_short(values)} names no arguments")
    hints = typing.get_type_hints(function)
    for name, value in values.items():
        if name not in hints:
            raise TypeError(f"{_short(name)} is unknown")
        if not fits(value, hints[name]):
            raise TypeError(f"{name}={_short(value)} is of another type")


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of an annotated type, to which lists are sequences and mappings dataclasses."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is typing.Literal:
        return any(type(value) is type(each) and value == each for each in inner)
    if origin in (Sequence, list, tuple):
        return isinstance(value, list) and all(fits(each, inner[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if is_dataclass(hint):
        return isinstance(value, Mapping) and _fit(hint, value)
    return type(value) is hint or (hint is float and type(value) is int)


def _fit(function: Any, values: Any) -> bool:
    try:
        check_arguments(function, values)
    except TypeError:
        return False
    return True


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:80]}..."
