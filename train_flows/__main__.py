"""``train-flows COMMAND``, the same as ``python -m train_flows COMMAND``."""

from __future__ import annotations

import difflib
import importlib
import os
import sys

from anode import InputError, SolverError
from train_flows.run import TrainingError, distributed

COMMANDS = {
    "density": "train a continuous normalizing flow on samples",
    "classify": "train a classifier: neural ODE, augmented or not, ResNet or perceptron",
    "evaluate": "measure a trained density or classifier",
    "predict": "predict the classes or values of new rows by a trained classifier",
    "sample": "draw samples from a trained density",
    "report": "compare runs in a table and a figure",
    "paper": "reproduce the figures of the papers",
    "benchmark": "measure speed and densities against those of other packages",
}
MODULES = {"paper": "experiments"}
PARALLEL = ("density", "classify", "evaluate")  # commands that several processes run together


def main(args: list[str] | None = None) -> None:
    """Run a command; bad input ends it with one line and exit status 2, a failed solve with status 1."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(
            "usage: train-flows COMMAND ...", *(f"  {name:<10} {about}" for name, about in COMMANDS.items()), sep="\n"
        )
        print("train-flows COMMAND --help lists its options")
        return
    command, *rest = args
    try:
        if command not in COMMANDS:
            nearest = difflib.get_close_matches(command, COMMANDS, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"choose one of {', '.join(COMMANDS)}"
            raise InputError(f"command {command!r} is unknown; {hint}")
        rank, count = distributed.started()
        if count > 1 and command not in PARALLEL:
            raise InputError(f"{command} runs in one process, {count} were started: run it without torchrun")
        if rank:  # the first process prints
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for good
        importlib.import_module(f"train_flows.{MODULES.get(command, command)}").main(rest)
    except InputError as error:
        from train_flows.command_line import name_options

        _fail(name_options(str(error)), status=2)
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename or ''}", status=2)
    except (SolverError, TrainingError) as error:
        _fail(str(error), status=1)
    except KeyboardInterrupt:
        _fail("interrupted", status=130)


def _fail(message: str, status: int) -> None:
    sys.stdout.flush()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
