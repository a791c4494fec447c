"""``train-flows benchmark WORK``: the same work by this package and by others, measured side by side."""

from __future__ import annotations

import importlib

from anode import InputError

WORKS = {
    "speed": "seconds of a continuous flow by this package and by others, at equal weights and tolerances",
    "image-block": "an image block's training step, timed against plain torchdiffeq",
    "scaling": "throughput of a training by one process and by several",
    "tabular": "likelihoods of CNF, MAF and NSF on tables, each trained for the same time",
}


def main(args: list[str]) -> None:
    """Run the command line ``train-flows benchmark``; without a work, list them."""
    if not args or args[0] in ("-h", "--help"):
        print("\n".join(f"{name:<12} {what}" for name, what in WORKS.items()))
        return
    work, *rest = args
    if work not in WORKS:
        raise InputError(f"work {work!r} is unknown: choose one of {', '.join(WORKS)}")
    importlib.import_module(f"train_flows.benchmark.{work.replace('-', '_')}").main(rest)
