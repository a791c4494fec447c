"""``train-flows COMMAND``, the same as ``python -m train_flows COMMAND``."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import io
import os
import sys

COMMANDS = {
    "density": "train a continuous normalizing flow on samples",
    "classify": "train a classifier: neural ODE, augmented or not, ResNet or perceptron",
    "forecast": "train a continuous-time model of series, and forecast their ends",
    "distill": "put a few residual steps in the place of the ODE of a trained density",
    "evaluate": "measure a trained density or classifier",
    "score": "find the odd rows of a table by a trained density",
    "predict": "predict the classes or values of new rows by a trained classifier",
    "sample": "draw samples from a trained density",
    "report": "compare runs in a table and a figure",
    "paper": "reproduce the figures of the papers",
    "benchmark": "measure speed and densities against those of other packages",
}
MODULES = {"paper": "experiments", "forecast": "forecasting.forecast"}
PARALLEL = ("density", "classify", "evaluate")  # commands that several processes run together


def main(args: list[str] | None = None) -> None:
    """Run a command; bad input ends it with one line and exit status 2, a failed solve with status 1.

    Without a reader of the output, as after ``train-flows ... | head``, it ends quietly with status 141, as by SIGPIPE.
    """
    args = sys.argv[1:] if args is None else args
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a pipe shows each line at once, too
    try:
        _main(args)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        sys.exit(141)
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        sys.exit(130)


def _main(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(
            "usage: train-flows COMMAND ...", *(f"  {name:<10} {about}" for name, about in COMMANDS.items()), sep="\n"
        )
        print("train-flows COMMAND --help lists its options, train-flows --version the version")
        return
    if args[0] == "--version":
        print(f"train-flows {importlib.metadata.version('augmented-flows')}")
        return
    command, *rest = args
    if command not in COMMANDS:
        nearest = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"choose one of {', '.join(COMMANDS)}"
        _fail(f"command {command!r} is unknown; {hint}", status=2)
    _run(command, rest)


def _run(command: str, args: list[str]) -> None:
    _show("loading torch ...")
    from anode import InputError, SolverError  # torch takes seconds, which --help need not wait for
    from train_flows.command_line import name_advice, name_options, options_of
    from train_flows.run import TrainingError, distributed

    program = importlib.import_module(f"train_flows.{MODULES.get(command, command)}")
    _show("")
    options = options_of(program.Settings) if hasattr(program, "Settings") else ()
    try:
        rank, count = distributed.started()
        if count > 1 and command not in PARALLEL:
            raise InputError(f"{command} runs in one process, {count} were started: run it without torchrun")
        if rank:  # the first process prints
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for good
        program.main(args)
    except BrokenPipeError:
        raise
    except InputError as error:
        _fail(name_options(str(error), options), status=2)
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename or ''}", status=2)
    except (SolverError, TrainingError) as error:
        _fail(name_advice(str(error), options), status=1)


def _show(words: str) -> None:
    """Show words in the last line of a terminal; they replace the words shown before."""
    if sys.stderr.isatty():
        print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)


def _fail(message: str, status: int) -> None:
    sys.stdout.flush()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
