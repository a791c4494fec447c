"""Errors that say what to do, and configurations that check their values."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.dataclasses import rebuild_dataclass
from typing_extensions import dataclass_transform

T = TypeVar("T")

MAX_MESSAGE_LENGTH = 2000  # characters


class InputError(ValueError):
    """A value that cannot be used; the message names the argument, the value and the remedy in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(_one_line(message))


class CheckpointError(InputError):
    """A stored model or run that cannot be used: damaged, truncated, altered, or a different kind of file."""


_REMEDIES = {
    "step underflow": "the dynamics are too stiff there; loosen rtol and atol, use float64, or regularise",
    "non-finite state": "the dynamics blow up; lower the learning rate, clip gradients, or check the input",
    "too many steps": "loosen rtol and atol, raise max_steps, or regularise",
    "inverse not found": "train with certify (--certify), or with more residual steps",
}


class SolverError(RuntimeError):
    """An ODE solve that could not reach its end time.

    Attributes:
        cause: ``"step underflow"``, ``"non-finite state"``, ``"too many steps"`` or ``"inverse not found"``.
        time: the time reached.
        evaluations: evaluations of the right-hand side until then.
        solver: the numerics.
        remedy: what to change, the last part of the message.
    """

    def __init__(self, cause: str, time: float, evaluations: int, solver: object) -> None:
        self.cause = cause
        self.time = time
        self.evaluations = evaluations
        self.solver = solver
        self.remedy = _REMEDIES[cause]
        super().__init__(f"{cause} at t = {time:.6g} after {evaluations} evaluations with {solver}: {self.remedy}")

    def __reduce__(self) -> tuple[type[SolverError], tuple[Any, ...]]:
        """Rebuild the error in another process."""
        return SolverError, (self.cause, self.time, self.evaluations, self.solver)


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Raise an :class:`InputError` unless ``value`` is one of the choices."""
    choices = tuple(choices)
    if value not in choices:
        raise InputError(f"{name}={value!r} {_unknown(choices, value)}")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def config(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass that checks its values against its annotations.

    ``Literal`` states choices, ``Annotated[int, Field(ge=1)]`` a range, a tuple a sequence, a nested configuration a
    section. Values are converted as pydantic does: lists, as JSON has them, become tuples and mappings nested
    configurations. ``dataclasses.replace`` checks again. The constructor raises :class:`InputError`.

    Example:
        >>> @config
        ... class Net:
        ...     hidden: tuple[int, ...] = (64, 64)
        >>> Net([8]).hidden
        (8,)
        >>> Net(hidden=("wide",))
        Traceback (most recent call last):
        anode.errors.InputError: hidden=('wide',): 'wide' must be a whole number
    """
    settings = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
    made: Any = pydantic_dataclass(frozen=True, config=settings)(cls)
    rebuild_dataclass(made)  # now, since a later rebuild would replace the constructor below
    validate = made.__init__

    def __init__(self: Any, *args: Any, **values: Any) -> None:
        try:
            validate(self, *args, **values)
        except ValidationError as error:
            raise InputError(_explain(error, made, args, values)) from None

    constructor: Any = __init__
    constructor.__module__, constructor.__qualname__ = cls.__module__, f"{cls.__qualname__}.__init__"
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    constructor.__signature__ = inspect.Signature([own, *inspect.signature(made).parameters.values()])  # for help()
    made.__init__ = constructor
    return made


def config_of(kind: type[T], config: T | None, fields: Mapping[str, Any]) -> T:
    """Return a configuration that is given as a whole, or made of its fields."""
    if config is None:
        return kind(**fields)
    if fields:
        raise InputError(f"config and {', '.join(fields)} exclude each other: use dataclasses.replace(config, ...)")
    if not isinstance(config, kind):
        raise InputError(f"config of type {type(config).__name__} is not a {kind.__name__}: pass one, or its fields")
    return config


def _explain(error: ValidationError, cls: Any, args: tuple[Any, ...], values: Mapping[str, Any]) -> str:
    """Explain the first invalid argument of a configuration; if it is a union, the branch that got furthest."""
    errors = error.errors(include_url=False)
    of_first = [each for each in errors if each["loc"][:1] == errors[0]["loc"][:1]]
    details = max(of_first, key=lambda each: len(each["loc"]))
    kind, reasons, loc = details["type"], details.get("ctx", {}), details["loc"]
    fields: dict[str, Any] = cls.__pydantic_fields__
    if loc and loc[0] in range(len(args)):
        loc = (list(fields)[loc[0]], *loc[1:])
    value: Any = {**dict(zip(fields, args, strict=False)), **values}
    path, names, in_sequence = [], [], False
    for key in loc:  # names, indices, and labels of the branches of unions
        if isinstance(key, str) and isinstance(value, Mapping):
            path, value, names = [*path, key], value.get(key), list(fields)
            fields = getattr(fields[key].annotation, "__pydantic_fields__", {}) if key in fields else {}
        in_sequence |= isinstance(key, int)
    name = ".".join(path)

    if kind == "value_error":  # raised by __post_init__, in full
        return f"{name}: {reasons['error']}" if name else str(reasons["error"])
    if kind in ("missing", "missing_argument"):
        return f"{name} is missing: pass it"
    if kind == "unexpected_keyword_argument":
        nearest = get_close_matches(path[-1], names)
        remedy = f"is unknown; did you mean {' or '.join(nearest)}?" if nearest else _unknown(names, path[-1])
        return f"{name}={value!r} {remedy}"
    shown = f"{name}={value!r}: {details['input']!r}" if in_sequence else f"{name}={value!r}"
    if kind == "literal_error":
        choices = reasons["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return f"{shown} {_unknown(choices, details['input'])}"
    return f"{shown} {_fault(kind, details['msg'], reasons)}"


def _fault(kind: str, message: str, reasons: Mapping[str, Any]) -> str:
    if kind == "greater_than_equal":
        return f"must be at least {reasons['ge']}"
    if kind == "less_than_equal":
        return f"must be at most {reasons['le']}"
    message = message.replace("Input should be", "must be").replace("a valid integer", "a whole number")
    return message.partition(", unable to parse")[0]


def _unknown(choices: Sequence[str], value: object) -> str:
    nearest = get_close_matches(str(value), choices, n=1)
    return f"is unknown; choose one of {', '.join(choices)}" + (f" (did you mean {nearest[0]}?)" if nearest else "")


def _one_line(message: str) -> str:
    line = "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))
    if len(line) <= MAX_MESSAGE_LENGTH:
        return line
    return f"{line[: MAX_MESSAGE_LENGTH // 2]} ... {line[-MAX_MESSAGE_LENGTH // 4 :]}"
