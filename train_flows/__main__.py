"""``train-flows COMMAND``, the same as ``python -m train_flows COMMAND``."""

from __future__ import annotations

import importlib
import os
import sys

from anode import InputError, SolverError
from train_flows.run import TrainingError, distributed

COMMANDS = {
    "density": "train a continuous normalizing flow on samples",
    "classify": "train a classifier: neural ODE, augmented or not, ResNet or perceptron",
    "evaluate": "measure a trained density or classifier",
    "sample": "draw samples from a trained density",
    "report": "compare runs in a table and a figure",
    "paper": "reproduce the figures of the papers",
    "benchmark": "measure image blocks and densities against those of other packages",
    "unpack": "unpack an archive of images",
}
SHARED = ("density", "classify", "evaluate")  # commands that several processes can run together


def main(args: list[str] | None = None) -> None:
    """Run a command; bad input is one line on standard error and exit status 2, a failed solve exit status 1."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return
    command, *rest = args
    try:
        if command not in COMMANDS:
            raise InputError(f"command {command!r} is unknown: choose one of {', '.join(COMMANDS)}")
        _join(command)
        importlib.import_module(f"train_flows.{command}").main(rest)
    except InputError as error:
        _fail(str(error), status=2)
    except OSError as error:
        _fail(f"{error.strerror or error}: {error.filename or ''}", status=2)
    except (SolverError, TrainingError) as error:
        _fail(str(error), status=1)
    except KeyboardInterrupt:
        _fail("interrupted", status=130)


def _join(command: str) -> None:
    """Take part as one of several processes, of which the first prints."""
    rank, count = distributed.started()
    if count > 1 and command not in SHARED:
        raise InputError(f"{command} runs in one process, {count} were started: run it without torchrun or accelerate")
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for good


def _fail(message: str, status: int) -> None:
    sys.stdout.flush()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def _help() -> str:
    lines = [f"  {name:<10} {what}" for name, what in COMMANDS.items()]
    return "\n".join(["usage: train-flows COMMAND ...", "", *lines, "", "train-flows COMMAND --help lists its options"])


if __name__ == "__main__":
    main()
