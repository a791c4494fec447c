"""``train-flows benchmark tabular DATA ...``: CNF, and MAF and NSF of zuko, trained for the same time on every table.

For each seed and data set the contenders train one after the other in one process, by the same clock, on the same split
with the same standardisation (and dequantisation, and whitening where the recipe of the CNF has it), and their
best weights by the same validation are measured on all of the test part. The CNF is trained as by ``train-flows density
DATA``, with as many steps as fit into the time; MAF and NSF have five transforms of 128 + 128 hidden features and Adam
at 1e-3 with batches of 512.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from anode import InputError, storage
from train_flows import data, density
from train_flows.benchmark import peers, standings
from train_flows.benchmark.contests import PEERS, contest
from train_flows.data import Dataset
from train_flows.provenance import provenance
from train_flows.settings import Flag

Sources = Annotated[
    tyro.conf.Positional[tuple[str, ...]],
    tyro.conf.arg(metavar="DATA ...", help="paths of tables, or digits, moons, ..., power, ..."),
]


@dataclass(frozen=True)
class Settings:
    """Train CNF, MAF and NSF for the same time on every data set, and compare their test likelihoods."""

    sources: Sources = ()
    minutes: float = 5.0  # of training for each contender, after a tenth of it to plan
    seeds: int = 3  # repetitions, with seeds from 0, of split, weights and batches
    threads: int = torch.get_num_threads()
    data_root: str = "data"  # folder of the published tables
    out: Path = Path("benchmark-tabular.json")
    overwrite: Flag = False  # replace existing results
    resume: Flag = False  # keep the contests there are, and run what is missing

    def check(self) -> None:
        """Raise an :class:`~anode.InputError` for what cannot be meant, or would overwrite results."""
        if not self.sources:
            raise InputError("no data set given: pass paths of tables, or names such as digits")
        if not 0 < self.minutes < math.inf:
            raise InputError(f"--minutes {self.minutes} must be a positive number")
        for option in ("seeds", "threads"):
            if getattr(self, option) < 1:
                raise InputError(f"--{option} {getattr(self, option)} must be at least 1")
        if self.resume and self.overwrite:
            raise InputError("--resume keeps what --overwrite replaces: drop one")
        if self.out.is_dir():
            raise InputError(f"--out {self.out} is a folder: pass the name of a file")
        if self.out.exists() and not (self.overwrite or self.resume):
            raise InputError(f"{self.out} exists: pass another --out, or --overwrite, or --resume")
        if not self.out.parent.is_dir():
            raise InputError(f"--out {self.out}: there is no folder {self.out.parent}, make it first")


def main(args: list[str]) -> None:
    """Run the command line ``train-flows benchmark tabular``."""
    settings = tyro.cli(Settings, args=args, prog="train-flows benchmark tabular")
    settings.check()
    peers.zuko()  # fails here, if anywhere
    stored = read(settings.out) if settings.resume else []
    torch.set_num_threads(settings.threads)
    jobs = look(settings)
    earlier = [kept(stored, about, settings.out) for _, _, about in jobs]  # refuses before anything runs
    found = []
    for (source, seed, about), result in zip(jobs, earlier, strict=True):
        if result is None:
            recipe, dataset = load(settings, source, seed)
            where = {"machine": provenance()["machine"]}
            result = {**about, **where, **contest(dataset, recipe, 60 * settings.minutes)}
            stored.append(result)
            write(settings.out, stored)
        found.append(result)
        print(standings.line(result))
    print("", standings.table(found), settings.out, sep="\n")


def look(settings: Settings) -> list[tuple[str, int, dict[str, Any]]]:
    """The contests asked for, a seed of all data sets before the next: source, seed, and what the outcome depends on.

    Raises:
        InputError: when a data set is unknown, unusable, or named twice.
    """
    jobs = {}
    for seed in range(settings.seeds):
        for source in settings.sources:
            recipe, dataset = load(settings, source, seed)
            if (dataset.name, seed) in jobs:
                raise InputError(f"{dataset.name} is named twice: drop one, or rename the file")
            for note in () if seed else dataset.notes:
                print(f"note: {dataset.name}: {note}")
            jobs[dataset.name, seed] = (source, seed, describe(settings, recipe, dataset))
    return list(jobs.values())


def load(settings: Settings, source: str, seed: int) -> tuple[density.Settings, Dataset]:
    """The settings of ``train-flows density`` for a data set, and the data."""
    recipe = density.parse([source, "--seed", str(seed), "--data-root", settings.data_root])
    return recipe, data.load(**dataclasses.asdict(recipe.data), seed=seed)


def describe(settings: Settings, recipe: density.Settings, dataset: Dataset) -> dict[str, Any]:
    """Everything that the outcome of a contest depends on, as plain values."""
    sections = {name: vars(getattr(recipe, name)) for name in density.SECTIONS}
    about = {
        "data": dataset.name,
        "seed": recipe.run.seed,
        "sha256": dataset.digest(),
        "minutes": settings.minutes,
        "threads": settings.threads,
        "recipe": {"CNF": sections, "peers": peers.SIZE | vars(PEERS)},
    }
    return json.loads(json.dumps(about))


def kept(stored: list[dict[str, Any]], about: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """The stored contest of a data set and a seed; None where there is none.

    Raises:
        InputError: when data or settings were others.
    """
    for result in stored:
        if (result["data"], result["seed"]) == (about["data"], about["seed"]):
            others = [name for name, value in about.items() if result.get(name) != value]
            if others:
                what = f"the contest of {about['data']}, seed {about['seed']}"
                raise InputError(f"{path} holds {what}, of other {', '.join(others)}: pass another --out")
            return result
    return None


def read(path: Path) -> list[dict[str, Any]]:
    """The contests in a file of results; none where there is no file.

    Raises:
        InputError: when it is no such file.
    """
    if not path.exists():
        return []
    try:
        contests = json.loads(path.read_bytes())["contests"]
        if not all({"data", "seed", "unit", "rows", "differences"} <= set(each) for each in contests):
            raise KeyError("contests")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no file of results: pass another --out, or --overwrite") from error
    return contests


def write(path: Path, contests: list[dict[str, Any]]) -> None:
    """Replace the file of results."""
    work = (__doc__ or "").split("\n\n")[1].strip().replace("\n", " ")
    content = {**provenance(), "work": work, "contests": contests}
    storage.write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
