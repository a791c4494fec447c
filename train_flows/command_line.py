"""From a command line to settings: typed options win over the recipe of the data, the recipe over defaults."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, cast

import docstring_parser
import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from anode import InputError, Solver
from anode.solver import FIXED_METHODS
from train_flows.run.folder import Run
from train_flows.settings import ClassifySettings, DensitySettings, RunSettings, from_config

T = TypeVar("T")
S = TypeVar("S", DensitySettings, ClassifySettings)

FIXED_STEP = 0.25  # of a fixed-step solver, if --step-size is omitted
OF_A_SITTING = ("resume", "device", "budget_minutes")  # a resumed run takes all other settings from its folder
GROUPS = {"objective": "training", "epochs": "training", "solver": "training", "run": "output"}  # by section
ON_AND_OFF = ("whiten", "multiscale")  # flags that a recipe may turn on and a typed --no-... off
SOLVER_HELP = {
    "solver": "method of the ODE solver",
    "rtol": "relative tolerance of the ODE solver",
    "atol": "absolute tolerance of the ODE solver",
    "step_size": f"step of a fixed-step solver; {FIXED_STEP} if omitted",
    "max_steps": "largest number of steps of a solve",
    "gradient": "backward pass: checkpoint takes little memory, direct little time; or adjoint",
}


class Option(NamedTuple):
    """One option of a command line."""

    name: str
    group: str
    type: Any
    default: Any
    help: str


@dataclasses.dataclass(frozen=True)
class Program:
    """A training program, as its command line sees it.

    Attributes:
        name: its command.
        about: description at the top of its help.
        kind: kind of its models.
        recipe: from typed options to the name of a recipe and its options.
        known: True for the name of a data set, False for a path.
        common: options that ``--help`` lists, by group; ``--help-all`` lists all.
        api_only: settings that are not options, by group.
    """

    name: str
    about: str
    kind: str
    recipe: Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]
    known: Callable[[str], bool]
    common: Mapping[str, Collection[str]]
    api_only: Mapping[str, Collection[str]]


def parse(program: Program, default: S, args: Sequence[str]) -> tuple[S, str]:
    """Parse the command line of a training program, or take over the settings of the run to resume.

    Args:
        program: the program.
        default: its default settings.
        args: command line without the command.

    Returns:
        The settings, and one line that says where they come from.

    Raises:
        InputError: if an option is unknown, has a wrong value or has no effect, or the data set is missing.
        SystemExit: after printing the help.
    """
    asked = [arg for arg in args if arg in ("-h", "--help", "--help-all")]
    args = [arg for arg in args if arg not in asked]
    hidden = set().union(*program.api_only.values())
    options = [option for option in options_of(default) if option.name not in hidden]
    options.sort(key=lambda option: option.name in SOLVER_HELP)
    typed = _typed(program, options, args)
    name, recipe = program.recipe(typed)
    if asked:
        _print_help(program, options, recipe if "source" in typed else {}, "--help-all" in asked)
    if "resume" in typed:
        return _resumed(program, default, typed), f"settings: those of {typed['resume']}"
    if "source" not in typed:
        raise InputError("no data set given: pass the name of one (see --help), or the path of a table")
    source, data_root = typed["source"], typed.get("data_root", default.data.data_root)
    found = {"data_root": os.path.realpath(data_root)}  # found again from any working directory
    if not program.known(source) and Path(source).exists():
        found["source"] = os.path.realpath(source)
    settings = with_options(default, {**recipe, **typed, **found})
    settings.validate(typed)
    return settings, _origin(name, {k: v for k, v in recipe.items() if k not in typed}, typed)


def read(kind: type[T], args: Sequence[str], command: str, **tyro_options: Any) -> T:
    """Parse a command line by a dataclass of settings, or by a structure of options.

    Raises:
        InputError: with one line, for an unknown option or a wrong value.
        SystemExit: after printing the help.
    """
    printed, call = io.StringIO(), cast(Any, tyro.cli)  # its overloads know no keyword arguments by mapping
    try:
        with contextlib.redirect_stderr(printed):
            found, unknown = call(
                kind,
                args=args,
                prog=f"train-flows {command}",
                return_unknown_args=True,
                registry=_registry,
                **{"config": (tyro.conf.FlagCreatePairsOff,), **tyro_options},
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(f"{_first_paragraph(printed.getvalue())}; see train-flows {command} --help") from None
    if unknown:
        names = [as_typed(name) for name in _names(kind)]
        nearest = difflib.get_close_matches(unknown[0].partition("=")[0], names, n=2)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"see train-flows {command} --help"
        raise InputError(f"{unknown[0]} is not an option of {command}; {hint}")
    return found


def _first_paragraph(box: str) -> str:
    """Return what a box printed by tyro says, in one line: the paragraph between its title and the next rule."""
    _, *lines = (line.strip("│|─- ") for line in box.splitlines())
    paragraphs = "\n".join(lines).strip().split("\n\n")
    return " ".join(paragraphs[0].split()).removeprefix("Error parsing ").rstrip(".")


def as_typed(name: str) -> str:
    """Return the name of an option as one types it."""
    return f"--{name.replace('_', '-')}"


def name_options(message: str) -> str:
    """Return a message about settings as one about options: ``hidden=(8, 0)`` becomes ``--hidden 8 0``."""
    names = {option.name for settings in (DensitySettings(), ClassifySettings()) for option in options_of(settings)}

    def renamed(match: re.Match[str]) -> str:
        name, value = match.group(1).replace("method", "solver"), match.group(2)
        if name not in names:
            return match.group(0)
        if value in ("True", "False"):
            return as_typed(name if value == "True" else f"no_{name}")
        plain = "".join(character for character in value if character not in "(),'")
        return f"{as_typed(name)} {plain}".rstrip()

    return re.sub(r"\b([a-z]+(?:_[a-z]+)*)=('[^']*'|\([^)]*\)|[^\s,:;)]+)", renamed, message)


def options_of(settings: Any, group: str = "") -> list[Option]:
    """Return the options of nested settings in order; the method of a solver is the option ``solver``."""
    hints = typing.get_type_hints(type(settings), include_extras=True)
    parsed = docstring_parser.parse(type(settings).__doc__ or "").params
    helps = {param.arg_name: " ".join((param.description or "").split()) for param in parsed}
    found: list[Option] = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            found += options_of(value, GROUPS.get(field.name, field.name))
        else:
            name = _option_name(settings, field.name)
            text = SOLVER_HELP.get(name) or helps[field.name]
            found.append(Option(name, group, hints[field.name], value, text))
    return found


def with_options(settings: Any, values: Mapping[str, Any]) -> Any:
    """Return nested settings with other values of some options."""
    changes = {}
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), _option_name(settings, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = with_options(value, values)
        elif name in values:
            changes[field.name] = values[name]
    if isinstance(settings, Solver) and {**vars(settings), **changes}["method"] in FIXED_METHODS:
        changes["step_size"] = changes.get("step_size") or settings.step_size or FIXED_STEP
    return dataclasses.replace(settings, **changes)


def _option_name(settings: Any, field: str) -> str:
    return "solver" if isinstance(settings, Solver) and field == "method" else field


def _typed(program: Program, options: Sequence[Option], args: Sequence[str]) -> dict[str, Any]:
    """Return the values of the options that were typed, by name."""
    groups = read(_groups(options), args, program.name, config=(tyro.conf.OmitArgPrefixes,))
    names = {arg.partition("=")[0].removeprefix("--").replace("-", "_") for arg in args if arg.startswith("--")}
    names |= {name.removeprefix("no_") for name in names}
    values = {name: value for group in groups.values() for name, value in group.items()}
    return {name: value for name, value in values.items() if name in names or (name == "source" and value is not None)}


def _print_help(program: Program, options: Sequence[Option], recipe: Mapping[str, Any], everything: bool) -> None:
    """Print the help with the defaults of a recipe, and exit."""
    shown, common = [], set().union(*program.common.values())
    for option in options:
        default = recipe.get(option.name, option.default)
        if everything:
            shown.append(option._replace(default=default))
        elif option.name in common:
            shown.append(option._replace(default=default, help=re.split(r"[:;] ", option.help)[0]))
    about = program.about if everything else f"{program.about} --help-all lists all options."
    read(_groups(shown), ["--help"], program.name, config=(tyro.conf.OmitArgPrefixes,), description=about)


def _resumed(program: Program, default: S, typed: Mapping[str, Any]) -> S:
    """Return the settings a run was started with, except for those of this sitting."""
    folder = typed["resume"]
    others = [typed[name] if name == "source" else as_typed(name) for name in typed if name not in OF_A_SITTING]
    if others:
        raise InputError(
            f"--resume {folder} takes every setting but --device and --budget-minutes from the run: omit "
            f"{', '.join(others)}"
        )
    settings = from_config(type(default), folder, Run.open(folder, program.kind).config)
    return with_options(settings, {"budget_minutes": None, "out": folder, **typed})


def _origin(name: str, recipe: Mapping[str, Any], typed: Mapping[str, Any]) -> str:
    """Say in one line which recipe was chosen, what it set, and what was typed besides where and how to run."""

    def in_words(values: Mapping[str, Any]) -> str:
        skipped = ("source", "data_root", *(field.name for field in dataclasses.fields(RunSettings)))
        words = {k: " ".join(map(str, v)) if isinstance(v, tuple) else v for k, v in values.items() if k not in skipped}
        return ", ".join(f"{option.replace('_', ' ')} {value}" for option, value in words.items())

    line = f"recipe for {name} ({Path(typed['source']).name}): {in_words(recipe) or 'defaults'}"
    return f"{line}; command line: {in_words(typed)}" if in_words(typed) else line


class _Fields:
    """A structure for tyro: a subclass for each list of options or of groups."""

    fields: Sequence[StructFieldSpec] = ()


_registry = ConstructorRegistry()


@_registry.struct_rule
def _structure(info: StructTypeInfo) -> StructConstructorSpec | None:
    if not (isinstance(info.type, type) and issubclass(info.type, _Fields)):
        return None
    return StructConstructorSpec(dict, tuple(info.type.fields))


def _groups(options: Sequence[Option]) -> type[Any]:
    """Return the options as a structure for tyro, which shows each group by itself."""
    groups: dict[str, list[StructFieldSpec]] = {}
    for option in options:
        spec = StructFieldSpec(option.name, _annotated(option), option.default, option.help)
        groups.setdefault(option.group, []).append(spec)
    kinds = {name: type(name, (_Fields,), {"fields": fields}) for name, fields in groups.items()}
    specs = [StructFieldSpec(name, kind, tyro.MISSING, "") for name, kind in kinds.items()]
    return type("settings", (_Fields,), {"fields": specs})


def _annotated(option: Option) -> Any:
    """Return the type of an option for tyro, with the words for its value and its default."""
    hidden = option.default is None or option.default is False or option.default == ()
    words: dict[str, Any] = {"help_behavior_hint": ""} if hidden else {}
    if option.name == "source":
        return tyro.conf.Positional[Annotated[option.type, tyro.conf.arg(metavar="DATA", **words)]]
    if option.name == "solver":
        words["metavar"] = "METHOD"
    elif types.NoneType in typing.get_args(option.type):  # shown as INT, not as {None}|INT
        kind, *more = typing.get_args(typing.get_args(option.type)[0]) or typing.get_args(option.type)
        words["metavar"] = kind.__name__.upper() if isinstance(kind, type) else f"{{{','.join([kind, *more])}}}"
    found = Annotated[option.type, tyro.conf.arg(**words)]
    return tyro.conf.FlagCreatePairsOff[found] if option.type is bool and option.name not in ON_AND_OFF else found


def _names(kind: Any) -> list[str]:
    """Return the names of all options of a dataclass, or of a structure for tyro."""
    if issubclass(kind, _Fields):
        return [spec.name for group in kind.fields for spec in group.type.fields]
    return [field.name for field in dataclasses.fields(kind)]
