"""``train-flows benchmark reliability``: what runs survive, refuse and cost, each part measured by doing it."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from anode import InputError, storage
from train_flows.benchmark import endurance, kills, large_tables, scaling
from train_flows.benchmark.mutated_runs import mutate_runs
from train_flows.benchmark.mutated_tables import mutate_tables
from train_flows.provenance import provenance
from train_flows.settings import Flag, check_out
from train_flows.text import lines_of

Part = Literal["kills", "full-disk", "mutated-runs", "mutated-tables", "saving", "processes", "large-table", "soak"]


@dataclass(frozen=True)
class Settings:
    """Kill, damage, fill, share out and prolong runs, and see what becomes of them.

    kills: runs killed at random moments and continued come to the same, bit for bit. full-disk: a file that cannot grow
    costs no checkpoint. mutated-runs, mutated-tables: damaged and crafted files are refused or read as they were.
    saving: the share of training spent on records and states. processes: throughput of two processes and of one.
    large-table: memory of training on gigabytes of rows. soak: memory after many steps.
    """

    parts: tuple[Part, ...] = (
        "kills",
        "full-disk",
        "mutated-runs",
        "mutated-tables",
        "saving",
        "processes",
        "large-table",
        "soak",
    )
    kills: int = 30
    mutations: int = 2000  # of run folders, and as many of tables
    gigabytes: float = 5.0  # of the large table
    soak_steps: int = 100_000
    steps: int = 300  # of the training whose saving is timed, and of that on the large table
    seed: int = 0  # of kills and mutations
    out: Path = Path("reliability.json")
    resume: Flag = False  # keep the parts that a file of results has
    overwrite: Flag = False  # replace existing results

    def check(self) -> None:
        """Raise an :class:`~anode.InputError` for a number out of range."""
        check_out(self.out, (".json",), self.overwrite or self.resume)
        for name in ("kills", "mutations", "gigabytes", "soak_steps", "steps"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)} must be above 0")


def main(args: list[str]) -> None:
    """Run the command line ``train-flows benchmark reliability``; the file is written anew after every part."""
    settings = tyro.cli(Settings, args=args, prog="train-flows benchmark reliability")
    settings.check()
    found = _before(settings.out) if settings.resume else {}
    for name in (part for part in settings.parts if part not in found):
        print(f"{name} ...", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            figures = PARTS[name](settings, Path(folder))
        found[name] = figures
        result = {**provenance(), "threads": torch.get_num_threads(), "seed": settings.seed, "parts": found}
        storage.write_atomically(settings.out, (json.dumps(result, indent=2) + "\n").encode())
    print("\n" + lines_of([(name, _said(figures)) for name, figures in found.items()]))
    print(f"\n{settings.out}")


def _before(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())["parts"] if path.exists() else {}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no file of these results: pass another --out, or --overwrite") from error


def _processes(settings: Settings, folder: Path) -> dict[str, Any]:
    return {"rows": scaling.throughputs(scaling.Settings())}


PARTS: Mapping[str, Callable[[Settings, Path], dict[str, Any]]] = {
    "kills": lambda settings, folder: kills.survive(settings.kills, settings.seed, folder),
    "full-disk": lambda settings, folder: kills.refuse(folder),
    "mutated-runs": lambda settings, folder: dataclasses.asdict(mutate_runs(settings.mutations, settings.seed)),
    "mutated-tables": lambda settings, folder: dataclasses.asdict(mutate_tables(settings.mutations, settings.seed)),
    "saving": lambda settings, folder: endurance.saving(settings.steps, folder / "run"),
    "processes": _processes,
    "large-table": lambda settings, folder: large_tables.measure(settings.gigabytes, settings.steps, folder),
    "soak": lambda settings, folder: endurance.soak(settings.soak_steps),
}


def _said(figures: Mapping[str, Any]) -> str:
    """The figures of a part in a line; what is of several rows is left to the file."""
    plain = {name: value for name, value in figures.items() if isinstance(value, (int, float, str))}
    plain |= figures.get("outcomes", {})
    plain |= {"failures": len(figures["failures"])} if "failures" in figures else {}
    plain |= {f"by {row['processes']}": row["times_faster"] for row in figures.get("rows", [])}
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in plain.items()
    )
