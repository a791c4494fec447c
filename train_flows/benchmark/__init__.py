"""``train-flows benchmark WORK``: the same work by this package and by others, measured side by side."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from anode import storage
from anode.errors import check_choice
from train_flows.run.folder import provenance
from train_flows.sample import check_out

WORKS = {  # with the module of each
    "speed": ("speed", "seconds of a continuous flow by this package and by others, at equal weights and tolerances"),
    "image-block": ("image_block", "an image block's training step, timed against plain torchdiffeq"),
    "series": (
        "irregular_series",
        "irregular time series as one batch, one by one, and at the union of their times",
    ),
    "scaling": ("scaling", "throughput of a training by one process and by several"),
    "tabular": (
        "density_contest",
        "likelihoods of CNF, residual steps, MAF and NSF on tables, in equal time",
    ),
    "mixed": (
        "mixed_tables",
        "samples, scores and likelihoods of the default density of tables of several kinds",
    ),
    "small-tables": ("small_tables", "likelihoods of the default density of small tables, next to their Gaussian"),
}


def main(args: list[str]) -> None:
    """Run the command line ``train-flows benchmark``; without a work, list them."""
    if not args or args[0] in ("-h", "--help"):
        print("\n".join(f"{name:<12} {text}" for name, (_, text) in WORKS.items()))
        return
    work, *rest = args
    check_choice("work", work, WORKS)
    importlib.import_module(f"train_flows.benchmark.{WORKS[work][0]}").main(rest)


def prepare(out: Path, overwrite: bool) -> None:
    """Check the JSON file of the results before the work starts, and make its folder.

    Raises:
        InputError: for a file that cannot be written, or that would be lost.
    """
    check_out(out, (".json",), overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)


def write(out: Path, doc: str | None, **results: Any) -> None:
    """Write results with command, machine, versions, and the description in the second paragraph of a docstring."""
    work = " ".join((doc or "").split("\n\n")[1].split())
    storage.write_json(out, {**provenance(), "work": work, **results})
