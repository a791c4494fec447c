"""``train-flows score RUN``: find the odd rows of a table by their density."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import cnf
from anode import InputError, storage
from anode.errors import config
from cnf import Density
from cnf.models import KIND
from cnf.tables import TableDensity
from train_flows.command_line import read
from train_flows.data import Dataset, Split, frames
from train_flows.data.dataset import description_of
from train_flows.data.grids import Grid
from train_flows.evaluate import load_test_part
from train_flows.evaluation import likelihood, pruning, scores, wording
from train_flows.evaluation.table_rows import Rows, as_table, check_added, read_rows, unknown, write_rows
from train_flows.run import session
from train_flows.sample import check_out
from train_flows.settings import Seed

ODDEST = 10  # rows that are listed
REMEDY = "fill them in by sample --fill, or train with --missing model"
LOG_DENSITY, PERCENTILE = "log_density", "percentile"  # the columns that are added


@config
class Settings:
    """Score the rows of a table: their log-density, its percentile among training rows, and the oddest rows.

    Attributes:
        run: folder of the run
        data: table with the columns of the run, in any order and among others; the run's own test part if omitted
        out: table to write, .csv: the rows with their scores; a picture of the oddest rows has the same name
        samples: draws of noise of each row, for a density that is a bound; 8 to 64 if omitted
        prune: responsibility below which components of a mixture are left out; 0 sums all, 0.01 if omitted
        seed: seed of the noise, and of the cells that stand in for others
        device: cpu, cuda, cuda:1 or mps; auto takes a CUDA GPU if there is one
        overwrite: replace existing files
        json: print one JSON object
    """

    positional: ClassVar = {"run": "RUN", "data": "DATA"}
    run: Path
    data: str | None = None
    out: Path = Path("scored.csv")
    samples: int | None = None
    prune: float | None = None
    seed: Seed = 0
    device: str = "auto"
    overwrite: bool = False
    json: bool = False


def main(args: list[str]) -> None:
    """Run the command line ``train-flows score``."""
    settings = read(Settings, args, "score")
    picture = settings.out.with_suffix(".png")
    for path, suffix in ((settings.out, ".csv"), (picture, ".png")):
        check_out(path, (suffix,), settings.overwrite)
    stored = storage.read_config(settings.run, KIND)
    loaded = cnf.load(settings.run, session.find_device(settings.device))
    assert isinstance(loaded, Density), "of that kind"
    data = description_of(stored)
    model = as_table(settings.run, loaded, data)
    likelihood.check_importance_samples(model, settings.samples)
    prune = pruning.find_prune(model, settings.prune)
    notes, dataset, name = [], None, settings.data and Path(settings.data).name
    try:
        dataset, part = load_test_part(str(settings.run))
        name = name or part
    except InputError as error:
        if settings.data is None:
            raise
        notes = [f"percentiles are among samples of the model, for its training rows are out of reach: {error}"]
    if settings.data is not None:
        rows = read_rows(Path(settings.data), model)
    else:
        assert dataset is not None, "else an error was raised"
        rows = _test_rows(dataset, model, data)
    check_added(name, rows.frame, [LOG_DENSITY, PERCENTILE])
    known = ~(unknown(rows.x, model.columns) | unknown(rows.c, model.given))
    if not known.any():
        raise InputError(f"every row of {name} misses cells that {settings.run} does not know: {REMEDY}")
    torch.manual_seed(settings.seed)
    scored = Split(rows.x, c=rows.c).take(known)
    others = _samples(model, scored) if dataset is None else _recorded(dataset.train.head(scores.COMPARED), data)
    samples = settings.samples or scores.affordable_draws(len(scored) + len(others))
    reference = scores.log_densities(model, others, samples, prune, "scoring rows to compare with")
    values = scores.log_densities(model, scored, samples, prune, "scoring")
    compared = scores.on_scales(model, values, scored.x)
    percentiles = scores.percentiles(compared, scores.on_scales(model, reference, others.x))
    oddest = compared.argsort()[:ODDEST]
    typical = others.x[torch.randperm(len(others))[: scores.TYPICAL]]
    gains = scores.surprises(model, scored.take(oddest), typical, compared[oddest], samples, prune)
    table = rows.frame.assign(
        **{LOG_DENSITY: _spread(values, known).round(6), PERCENTILE: _spread(percentiles, known).round(4)}
    )
    write_rows(settings.out, table)
    places, columns = known.nonzero().squeeze(1)[oddest], gains.argmax(1)
    _draw(picture, rows.frame.iloc[places.numpy()], model, percentiles[oddest], columns, places)
    figures = {
        "rows": len(table),
        "scored": len(scored),
        "compared": {"rows": len(others), "of": "samples" if dataset is None else "training rows"},
        "nll": {"value": -values.mean().item(), **likelihood.kind_of(model, samples, prune)},
        "median_percentile": percentiles.median().item(),
        "below_1_percent": (percentiles < 1).double().mean().item(),
        "oddest": [
            _odd_row(table, int(place), model.columns[column].name, gain[column].item())
            for place, column, gain in zip(places, columns, gains, strict=True)
        ],
    }
    notes += rows.notes
    if left := len(table) - len(scored):
        notes.append(f"{left:,} rows miss cells that {settings.run} does not know, and are not scored: {REMEDY}")
    print(*(f"note: {note}\n" for note in notes), sep="", end="", file=sys.stderr if settings.json else sys.stdout)
    if settings.json:
        print(json.dumps(figures))
        return
    print(f"{name}: {len(table):,} rows with {LOG_DENSITY} and {PERCENTILE} in {settings.out}")
    print(wording.scores_table(figures))
    print(wording.lines([("picture", str(picture))]))


def _test_rows(dataset: Dataset, model: TableDensity, data: Mapping[str, Any]) -> Rows:
    """Return the test part of a run as a table, with the columns that are constant or copies."""
    part = _recorded(dataset.test, data)
    left_out = [frames.LeftOut(**values) for values in data.get("left_out", [])]
    frame = frames.to_frame(part.x.numpy(), model.columns, left_out)
    if part.c is not None:
        frame = pd.concat([frames.to_frame(part.c.numpy(), model.given), frame], axis=1)
    if not dataset.kinds:
        frame = frame.astype(dataset.test.x.numpy().dtype)  # as many digits as there are
    return Rows(frame, part.x, part.c)


@torch.no_grad()
def _samples(model: TableDensity, scored: Split) -> Split:
    """Draw rows to compare with, given what the scored rows are given."""
    c = None if scored.c is None else scored.c[torch.randint(len(scored), (scores.COMPARED,))]
    return Split(model.sample(scores.COMPARED, c).cpu(), c=c)


def _recorded(part: Split, data: Mapping[str, Any]) -> Split:
    """Return rows in double precision, without the noise in columns on a grid."""
    x = part.x.to(torch.float64, copy=True)
    for i, name in enumerate(data["columns"]):
        if name in data["grids"]:
            x[:, i] = torch.from_numpy(Grid(**data["grids"][name]).nearest(x[:, i].numpy()))
    return Split(x, c=None if part.c is None else part.c.double())


def _spread(values: Tensor, known: Tensor) -> np.ndarray:
    """Return the values of the known rows, and NaN for the others."""
    found = np.full(len(known), np.nan)
    found[known.numpy()] = values.numpy()
    return found


def _odd_row(table: pd.DataFrame, place: int, column: str, gain: float) -> dict[str, Any]:
    """Return the scores of a row, and its most surprising column."""
    row = table.iloc[place]
    found = {name: float(row[name]) for name in (PERCENTILE, LOG_DENSITY)}
    return {"row": place + 1, **found, "column": column, "cell": frames.text_of(row[column]), "gain": gain}


def _draw(
    path: Path, frame: pd.DataFrame, model: TableDensity, percentiles: Tensor, surprising: Tensor, places: Tensor
) -> None:
    from train_flows.figures import mixed_plots  # matplotlib takes a second, which --help need not wait for

    names = [column.name for column in model.columns]
    cells = [[frames.text_of(cell) for cell in line] for line in frame[names].itertuples(index=False)]
    numbers = [str(int(place) + 1) for place in places]
    figure = mixed_plots.oddest(cells, names, numbers, percentiles.tolist(), surprising.tolist())
    with storage.written_atomically(path) as file:
        figure.savefig(file, format="png", dpi=150)
