"""``train-flows sample RUN --fill TABLE``: complete the rows of a table by draws from a stored density."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from anode import InputError
from cnf import Density
from cnf.tables import TableDensity, filling
from train_flows.data import frames
from train_flows.data.dataset import abbreviate
from train_flows.data.grids import Grid
from train_flows.evaluation import wording
from train_flows.evaluation.table_rows import Rows, as_table, check_added, read_rows, unknown, write_rows
from train_flows.run import distributed

TOGETHER = 256  # rows that share the draws of the model
ROW = "row"  # the column that is added
FEW = 10  # effective proposals, below which completions are not to be trusted


def fill(run: Path, path: Path, out: Path, n: int, model: Density, data: Mapping[str, Any]) -> None:
    """Write n completions of each row that misses cells, and the other rows once, with their number in the table.

    Args:
        run: folder of the model.
        path: the table.
        out: CSV file to write.
        n: number of completions.
        model: density of the columns of the table, or of some of them.
        data: description of the data of the model.

    Raises:
        InputError: for a table that lacks columns, has cells that the model does not know, or misses none.
    """
    table = as_table(run, model, data)
    rows = read_rows(path, table)
    check_added(path, rows.frame, [ROW])
    if (lost := unknown(rows.c, table.given)).any():
        names, first = abbreviate([column.name for column in table.given]), int(lost.int().argmax()) + 1
        raise InputError(f"{path} misses cells of what {run} is given ({names}; data row {first}): fill them in")
    incomplete = rows.x.isnan().any(1).nonzero().squeeze(1)
    if not len(incomplete):
        raise InputError(f"{path} misses no cell of the columns of {run}: there is nothing to fill")
    found, effective = [], []
    with distributed.progress_bar("filling", len(incomplete)) as bar:
        for chunk in incomplete.split(TOGETHER):
            completed = filling.fill(table, rows.x[chunk], n, None if rows.c is None else rows.c[chunk])
            found.append(completed.rows.cpu())
            effective.append(completed.effective.cpu())
            bar.update(len(chunk))
    full = _completed(rows, torch.cat(found, 1), table, data)
    write_rows(out, full)
    print(*(f"note: {note}\n" for note in rows.notes), sep="", end="")
    print(f"{len(full):,} rows in {out}: {n} completions of each of {len(incomplete):,} rows with missing cells")
    print(wording.effective_samples(torch.cat(effective).tolist(), (incomplete + 1).tolist(), filling.PROPOSALS, FEW))
    if table.kind == "estimate":
        print("note: completions are weighed by estimated densities, and so are not exact")


def _completed(rows: Rows, completions: Tensor, model: TableDensity, data: Mapping[str, Any]) -> pd.DataFrame:
    """Return the table with completions (n, M, D) in the place of its M rows with missing cells."""
    incomplete = rows.x.isnan().any(1).numpy()
    place = np.repeat(np.arange(len(incomplete)), np.where(incomplete, len(completions), 1))
    x, gaps = rows.x[place].numpy(), rows.x[place].isnan().numpy()
    x[incomplete[place]] = completions.transpose(0, 1).flatten(0, 1).numpy()
    for i, column in enumerate(model.columns):
        if column.name in data["grids"]:  # within the bounds of the grid, too
            x[gaps[:, i], i] = Grid(**data["grids"][column.name]).nearest(x[gaps[:, i], i])
    typed = frames.to_frame(x, model.columns, [frames.LeftOut(**values) for values in data.get("left_out", [])])
    full, learned = rows.frame.iloc[place].reset_index(drop=True), {column.name for column in model.columns}
    for name, cells in typed.items():
        if name in full and full[name].isna().any():
            full[name] = cells if name in learned else full[name].where(full[name].notna(), cells)
    full.insert(0, ROW, place + 1)
    return full
