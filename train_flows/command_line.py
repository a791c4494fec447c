"""From a command line to settings: typed options win over the recipe of the data, the recipe over defaults."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from typing_extensions import override

from anode import InputError, Solver
from anode.solver import STEP_SIZE
from train_flows.forecasting.forecast_settings import ForecastSettings
from train_flows.run.folder import Run
from train_flows.settings import ClassifySettings, Data, DensitySettings, RunSettings, Training, from_config

T = TypeVar("T")
S = TypeVar("S", DensitySettings, ClassifySettings, ForecastSettings)

OF_A_SITTING = ("resume", "device", "budget_minutes")  # a resumed run takes other settings from its folder
OF_WEIGHTS = ("dtype", "given", "kind", "bounds", "missing", "conditional")  # tied to weights, besides the model's
GROUPS = {"objective": "training", "epochs": "training", "solver": "training", "run": "output"}  # by section
ON_AND_OFF = ("whiten", "multiscale")  # flags that a recipe may turn on and a typed --no-... off
ATTRIBUTE = re.compile(r"^ {8}(\w+): (.+(?:\n {12}.+)*)", re.MULTILINE)  # of a Google docstring
SOLVER_HELP = {
    "solver": "method of the ODE solver",
    "rtol": "relative tolerance of the ODE solver",
    "atol": "absolute tolerance of the ODE solver",
    "step_size": f"step of a fixed-step solver; {STEP_SIZE} if omitted",
    "max_steps": "largest number of steps of a solve",
    "gradient": "backward pass: checkpoint takes little memory, direct little time; or adjoint",
}


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a command line."""

    name: str
    group: str
    type: Any
    default: Any
    help: str


@dataclasses.dataclass(frozen=True)
class Program:
    """A training program, as its command line sees it."""

    name: str  # its command
    about: str  # description at the top of its help
    kind: str  # of its models
    recipe: Callable[..., tuple[str, dict[str, Any]]]  # from typed options, and the data's size, to name and options
    length: str  # the option that says how long to train
    known: Callable[[str], bool]  # True for the name of a data set, False for a path
    common: Sequence[str]  # options that --help lists; --help-all lists all
    api_only: Sequence[str]  # settings that are not options


def parse(program: Program, default: S, args: Sequence[str], *size: int) -> tuple[S, str]:
    """Parse the command line of a training program, or take over the settings of the run to resume.

    Args:
        program: the program.
        default: its default settings.
        args: command line without the command.
        size: rows and columns of the training part for the recipe, once the data are read.

    Returns:
        The settings, and one line that says where they come from.

    Raises:
        InputError: if an option is unknown, has a wrong value or has no effect, or the data set is missing.
        SystemExit: after printing the help.
    """
    asked = [arg for arg in args if arg in ("-h", "--help", "--help-all")]
    options = [option for option in options_of(default) if option.name not in program.api_only]
    parser = Parser(program.name, program.about, options, {"source": "DATA"})
    typed = parser.typed([arg for arg in args if arg not in asked])
    if asked:
        everything = "--help-all" in asked
        about = program.about if everything else f"{program.about} --help-all lists all options."
        of_data = program.recipe(typed, *size)[1] if "source" in typed else {}
        shown = [dataclasses.replace(option, default=of_data.get(option.name, option.default)) for option in options]
        if not everything:
            shown = [
                dataclasses.replace(o, help=re.split(r"[:;] ", o.help)[0]) for o in shown if o.name in program.common
            ]
        Parser(program.name, about, shown, {"source": "DATA"}).typed(["--help"])
    if "resume" in typed:
        return _resumed(program, default, typed)
    if "source" not in typed:
        raise InputError("no data set given: pass the name of one (see --help), or the path of a table")
    return settle(program, default, typed, *size)


def settle(program: Program, default: S, typed: Mapping[str, Any], *size: int) -> tuple[S, str]:
    """Return the settings of a training program and their origin, as :func:`parse` does, from typed options by name.

    Without the option ``source``, the data are a table in memory.
    """
    name, recipe = program.recipe(typed, *size)
    source, found = typed.get("source"), {}
    if isinstance(default.data, Data):
        found["data_root"] = os.path.realpath(typed.get("data_root", default.data.data_root))  # from any working folder
    if source is not None and not program.known(source) and Path(source).exists():
        found["source"] = os.path.realpath(source)
    if "init" in typed:
        found["init"] = os.path.realpath(typed["init"])
        initial = _initial(program, default, typed)
        of_steps = {option: initial[option] for option in ("residual_steps",) if option in initial}
        name, recipe = program.recipe({**typed, **of_steps}, *size)
        recipe = {option: value for option, value in recipe.items() if option not in initial}
        found |= initial
    settings = with_options(default, {**recipe, **typed, **found})
    settings.validate(typed)
    return settings, _origin(name, {k: v for k, v in recipe.items() if k not in typed}, typed)


def read(kind: type[T], args: Sequence[str], command: str) -> T:
    """Parse a command line by a dataclass of settings.

    Its class variable ``positional`` names those that are typed without their names, with a word for each.

    Raises:
        InputError: for an unknown option or a wrong value.
        SystemExit: after printing the help.
    """
    about = (kind.__doc__ or "").partition("\n\n")[0]
    options = options_of(kind)
    typed = Parser(command, about, options, getattr(kind, "positional", {})).typed(args)
    try:
        return kind(**typed)
    except InputError as error:
        raise InputError(name_options(str(error), options)) from error


class Parser(argparse.ArgumentParser):
    """A parser of options, of which some, with a word for each, are typed without names; mistakes are input errors."""

    def __init__(self, command: str, about: str, options: Sequence[Option], positional: Mapping[str, str]) -> None:
        optional = {option.name for option in options if option.default is not dataclasses.MISSING}
        words = [f"[{word}]" if name in optional else word for name, word in positional.items()]
        usage = " ".join(["train-flows", command, *words, "[OPTION ...]"])
        super().__init__(usage=usage, description=about, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        self.formatter_class = lambda prog: argparse.HelpFormatter(prog, max_help_position=30)
        self.command, self.names = command, [option.name for option in options]
        groups = {group: self.add_argument_group(group) for group in dict.fromkeys(o.group for o in options) if group}
        for option in options:
            names = [option.name] if option.name in positional else [_as_typed(option.name)]
            groups.get(option.group, self).add_argument(*names, **_how_to_parse(option, positional.get(option.name)))

    def typed(self, args: Sequence[str]) -> dict[str, Any]:
        """Return the values of the options that are typed, by name."""
        found, unknown = self.parse_known_args(args)
        if unknown:
            nearest = difflib.get_close_matches(unknown[0].partition("=")[0], map(_as_typed, self.names), n=2)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"see train-flows {self.command} --help"
            raise InputError(f"{unknown[0]} is not an option of {self.command}; {hint}")
        return {name: tuple(value) if isinstance(value, list) else value for name, value in vars(found).items()}

    @override
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')}; see train-flows {self.command} --help")


def _how_to_parse(option: Option, positional: str | None) -> dict[str, Any]:
    """Return the arguments by which argparse reads and explains an option."""
    kind, found = option.type, {"help": option.help.replace("%", "%%")}
    if not any(option.default is nothing for nothing in (None, False, (), dataclasses.MISSING)):
        found["help"] += f" (default: {_in_words(option.default)})"
    if kind is bool:
        both = option.default or option.name in ON_AND_OFF
        return found | {"action": argparse.BooleanOptionalAction if both else "store_true"}
    if types.NoneType in typing.get_args(kind):
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is tuple:
        kind = typing.get_args(kind)[0]
        found["nargs"] = "*"
    elif positional and option.default is not dataclasses.MISSING:
        found["nargs"] = "?"
    if typing.get_origin(kind) is typing.Literal:  # checked by the settings
        return found | {"metavar": "METHOD" if option.name == "solver" else f"{{{','.join(typing.get_args(kind))}}}"}
    return found | {"type": kind, "metavar": positional or {str: "TEXT"}.get(kind, kind.__name__.upper())}


def _in_words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _as_typed(name: str) -> str:
    return f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"


def name_options(message: str, options: Sequence[Option] = ()) -> str:
    """Return a message about settings as one about options: ``hidden=(8, 0)`` becomes ``--hidden 8 0``.

    Args:
        message: from a library; it names arguments of functions.
        options: options of the program; those of the training programs if omitted.
    """
    names = _names(options)

    def renamed(match: re.Match[str]) -> str:
        name, value = match.group(1).replace("method", "solver"), match.group(2)
        if name not in names:
            return match.group(0)
        if value in ("True", "False"):
            return _as_typed(name if value == "True" else f"no_{name}")
        plain = re.sub("[(),'\"]", "", value)
        return f"{_as_typed(name)} {plain}".rstrip()

    values = r"'[^']*'|\"[^\"]*\"|\([^)]*\)|[^\s,:;)]+"
    return name_advice(re.sub(rf"(?<!-)\b([a-z]+(?:_[a-z]+)*)=({values})", renamed, message), options)


def name_advice(message: str, options: Sequence[Option] = ()) -> str:
    """Return advice without values as advice about options: ``raise max_steps`` becomes ``raise --max-steps``."""
    name = rf"(?:{'|'.join(sorted(_names(options), key=len, reverse=True))})\b"
    advice = rf"\b(leave out|loosen|raise|lower) ({name}(?:(?:, | and | or ){name})*)"
    return re.sub(advice, lambda m: f"{m[1]} {re.sub(name, lambda n: _as_typed(n[0]), m[2])}", message)


def _names(options: Sequence[Option]) -> set[str]:
    if not options:
        options = [
            option for kind in (DensitySettings, ClassifySettings, ForecastSettings) for option in options_of(kind())
        ]
    return {option.name for option in options}


def options_of(settings: Any, group: str = "") -> list[Option]:
    """Return the options of nested settings, or of their class; the method of a solver is the option ``solver``."""
    kind = settings if isinstance(settings, type) else type(settings)
    hints = typing.get_type_hints(kind)
    helps = {
        name: " ".join(text.split()) for base in kind.__mro__ for name, text in ATTRIBUTE.findall(base.__doc__ or "")
    }
    found: list[Option] = []
    for field in dataclasses.fields(kind):
        value = getattr(settings, field.name, dataclasses.MISSING)
        if dataclasses.is_dataclass(value):
            found += options_of(value, GROUPS.get(field.name, field.name))
        else:
            name = _option_name(kind, field.name)
            text = SOLVER_HELP.get(name) if kind is Solver else None
            found.append(Option(name, group, hints[field.name], value, text or helps.get(name, "")))
    return sorted(found, key=lambda option: option.name in SOLVER_HELP)


def with_options(settings: Any, values: Mapping[str, Any]) -> Any:
    """Return nested settings with other values of some options."""
    changes = {}
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), _option_name(type(settings), field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = with_options(value, values)
        elif name in values:
            changes[field.name] = values[name]
    return dataclasses.replace(settings, **changes)


def _option_name(kind: type, field: str) -> str:
    return "solver" if kind is Solver and field == "method" else field


def _resumed(program: Program, default: S, typed: Mapping[str, Any]) -> tuple[S, str]:
    """Return the settings a run was started with, except for its length and those of this sitting, and a line."""
    folder, length = typed["resume"], program.length
    others = [name for name in typed if name not in (*OF_A_SITTING, length)]
    if others:
        raise InputError(
            f"--resume {folder} takes every setting but {_as_typed(length)}, --device and --budget-minutes from the "
            f"run: omit {', '.join(typed[name] if name == 'source' else _as_typed(name) for name in others)}"
        )
    run = Run.open(folder, program.kind)
    settings = from_config(type(default), folder, run.config)
    values, line = {"budget_minutes": None, "out": folder, **typed}, f"settings: those of {folder}"
    if length in typed:
        values |= _longer(run, settings.training, length, typed[length])
        line += f", but {_as_typed(length)} {typed[length]}, from step {run.step} on"
        if settings.training.schedule == "cosine":
            line += "; the cosine of the learning rate is stretched to the new end"
    settings = with_options(settings, values)
    settings.validate()
    return settings, line


def _longer(run: Run, training: Training, length: str, value: int) -> dict[str, Any]:
    """Return the options that train a run to another length; a stage that has begun keeps its first step."""
    taken = run.step // training.validate_every if length == "epochs" else run.step
    if value <= taken:
        raise InputError(f"{_as_typed(length)} {value} must be more than the {taken} {length} of {run.folder} so far")
    stage = training.likelihood_from
    return {} if stage is None or run.step < stage else {"likelihood_steps": value - stage}


def _initial(program: Program, default: S, typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a run on other data takes from the run whose weights it starts from.

    Raises:
        InputError: if a typed option contradicts these weights.
    """
    folder = typed["init"]
    initial = from_config(type(default), folder, Run.open(folder, program.kind).config)
    values = {option.name: option.default for option in options_of(initial)}
    numerics = [option.name for option in options_of(initial.model.solver)]
    tied = [option.name for option in options_of(initial.model) if option.name not in numerics]
    tied += [name for name in OF_WEIGHTS if name in values]
    for name in tied:
        if typed.get(name, values[name]) != values[name]:
            raise InputError(
                f"{_as_typed(name)} {_in_words(typed[name])} contradicts --init {folder}, whose weights are of "
                f"{_as_typed(name)} {_in_words(values[name])}: omit it"
            )
    free = ("target" if Path(typed["source"]).is_file() else "image_size", *(() if "solver" in typed else numerics))
    return {name: values[name] for name in (*tied, *free) if name in values and name not in typed}


def _origin(name: str, recipe: Mapping[str, Any], typed: Mapping[str, Any]) -> str:
    """Say in one line which recipe was chosen, what it set, and what was typed besides where and how to run."""

    def in_words(values: Mapping[str, Any]) -> str:
        skipped = ("source", "data_root", *(field.name for field in dataclasses.fields(RunSettings)))
        return ", ".join(f"{k.replace('_', ' ')} {_in_words(v)}" for k, v in values.items() if k not in skipped)

    data = Path(typed["source"]).name if "source" in typed else "in memory"
    line = f"recipe for {name} ({data}): {in_words(recipe) or 'defaults'}"
    line += f"; model and weights: those of {typed['init']}" if "init" in typed else ""
    where = "command line" if "source" in typed else "parameters"
    return f"{line}; {where}: {in_words(typed)}" if in_words(typed) else line
