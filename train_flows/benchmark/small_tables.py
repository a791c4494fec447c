"""``train-flows benchmark small-tables``: the default density of small tables against their Gaussian.

Each table is learnt by ``train-flows density TABLE --seed SEED`` without further options. The stored model and the
Gaussian of maximum likelihood with full covariance see the same training rows, and their log-densities of the same test
rows are compared in pairs. Minutes are those of the processor for the whole program, without imports.
"""

from __future__ import annotations

import itertools
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sklearn import datasets

import cnf
from anode.errors import config
from train_flows import benchmark, density
from train_flows.benchmark.density_contest import CNF, GAUSSIAN, figure
from train_flows.benchmark.density_contest import table as table_of
from train_flows.command_line import parse, read
from train_flows.evaluation import likelihood
from train_flows.run.folder import Run
from train_flows.settings import Count, DensitySettings, Positive

OF_SKLEARN = {
    "wine": datasets.load_wine,
    "iris": datasets.load_iris,
    "breast-cancer": datasets.load_breast_cancer,
    "diabetes": datasets.load_diabetes,
}
FILES = {
    "penguins": ("penguins.csv", 344),
    "protein": ("protein.csv.gz", 200),
    "parkinsons": ("parkinsons.csv.gz", 300),
}


@config
class Settings:
    """Learn the density of seven small tables, and compare its test likelihood with the Gaussian.

    Attributes:
        data_root: folder with penguins.csv, protein.csv.gz and parkinsons.csv.gz, or with folders that hold them
        seeds: number of seeds, from 0, of split, weights and batches
        budget_minutes: start no further run after this time; the same command continues
        out: JSON file of results, to which missing runs are added
        overwrite: replace existing results
    """

    data_root: Path = Path("data")
    seeds: Count = 5
    budget_minutes: Positive | None = None
    out: Path = Path("small-tables.json")
    overwrite: bool = False


def main(args: list[str]) -> None:
    """Run the command line ``train-flows benchmark small-tables``."""
    settings = read(Settings, args, "benchmark small-tables")
    deadline = time.monotonic() + 60 * (settings.budget_minutes or math.inf)
    earlier = settings.out.is_file() and not settings.overwrite
    benchmark.prepare(settings.out, overwrite=True)
    contests: list[dict[str, Any]] = json.loads(settings.out.read_text("utf-8"))["contests"] if earlier else []
    done = {(contest["data"], contest["seed"]) for contest in contests}
    for seed, name in itertools.product(range(settings.seeds), (*OF_SKLEARN, *FILES)):
        if (name, seed) not in done and time.monotonic() <= deadline:
            with tempfile.TemporaryDirectory() as folder:
                table = Path(folder, f"{name}.csv")
                read_table(name, settings.data_root).to_csv(table, index=False)
                contests.append({"data": name, "seed": seed, **contest(table, seed)})
            benchmark.write(settings.out, __doc__, contests=contests)
    print(table_of(contests), settings.out, sep="\n")


def read_table(name: str, root: Path) -> pd.DataFrame:
    """Return the numbers of a table, without rows that have gaps."""
    if name in OF_SKLEARN:
        return OF_SKLEARN[name](as_frame=True).data
    file, rows = FILES[name]
    found = next(iter([*root.glob(file), *root.glob(f"*/{file}")]), root / file)
    return pd.read_csv(found, header=None if file.endswith(".gz") else 0, nrows=rows).select_dtypes("number").dropna()


def contest(table: Path, seed: int) -> dict[str, Any]:
    """Learn a table by the program, and return the test NLL in nats of flow and Gaussian with their difference."""
    args = [str(table), "--seed", str(seed), "--device", "cpu", "--out", str(table.with_suffix(""))]
    started = time.process_time()
    density.main(args)
    minutes = (time.process_time() - started) / 60
    dataset = density.load(parse(density.PROGRAM, DensitySettings(), args)[0])
    run = Run.open(table.with_suffix(""), density.KIND)
    model, by_gaussian = cnf.load(run.folder), likelihood.gaussian_log_prob(dataset)
    assert isinstance(model, cnf.Density)
    assert by_gaussian is not None
    gaussian = torch.from_numpy(by_gaussian)
    with torch.no_grad():
        flow = model.log_prob(dataset.test.x).double()
    return {
        "sha256": dataset.digest(),
        "unit": "nats",
        "minutes": minutes,
        "steps": run.records()[-1]["step"],
        "best_step": min(run.records(), key=lambda record: record["nll"])["step"],
        "samples": {part: len(getattr(dataset, part)) for part in ("train", "validation", "test")},
        "shape": list(dataset.shape),
        "rows": [{"contender": CNF, **figure(-flow)}, {"contender": GAUSSIAN, **figure(-gaussian)}],
        "differences": [{"of": f"{CNF} - {GAUSSIAN}", **figure(gaussian - flow)}],
    }
