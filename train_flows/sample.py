"""``train-flows sample RUN``: draw samples from a stored density, or paths of a forecast."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

import cnf
from anode import InputError, storage
from anode.errors import config
from anode.time_series.series_models import KIND as SERIES
from cnf import Density
from cnf.models import KIND
from cnf.tables import Column, TableDensity, context_row
from train_flows.command_line import read
from train_flows.data import class_contexts
from train_flows.data.dataset import abbreviate, description_of
from train_flows.data.grids import Grid
from train_flows.evaluation import chunk_size, likelihood, to_model
from train_flows.run import session
from train_flows.settings import Count, Seed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MAX_POINTS, MAX_IMAGES = 100_000, 10_000  # samples in a picture
SAMPLES, COMPLETIONS, PATHS = 1000, 5, 100  # unless -n is typed
LABEL = "label"  # the column of the class
SUFFIXES = (".csv", ".npy", ".png")


@config
class Settings:
    """Draw samples from a stored density, or paths of a forecast, in the units of its data.

    Attributes:
        run: folder of the run
        n: number of samples or paths; 1000 if omitted, 100 of a forecast, or with --fill 5 completions of each row
        out: file to write: .csv, or for numbers and images .npy (samples x columns, a class by its number) or .png
        label: class of the samples, for a density given the class; all classes in turn if omitted
        given: value of each column that a density is given, such as species=Adelie flipper_length_mm=200
        complete: draw rows without missing cells, as pictures do, for a table whose missing cells are modelled
        fill: table whose missing cells to draw, given the other cells of each row
        at: times of a forecast: all, or with --every the first and the last
        every: time between those of a forecast, such as 1d
        log_prob: add the log-density, in nats, as last column
        samples: importance samples of the log-density, if it is a bound; 64 if omitted
        temperature: factor of the noise of the base: below 1, samples are less varied and more typical
        seed: seed of the samples
        device: cpu, cuda, cuda:1 or mps; auto takes a CUDA GPU if there is one
        overwrite: replace an existing file
    """

    positional: ClassVar = {"run": "RUN"}
    run: Path
    n: Count | None = None
    out: Path = Path("samples.csv")
    label: str | None = None
    given: tuple[str, ...] = ()
    complete: bool = False
    fill: Path | None = None
    at: tuple[str, ...] = ()
    every: str | None = None
    log_prob: bool = False
    samples: int | None = None
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    seed: Seed = 0
    device: str = "auto"
    overwrite: bool = False

    @property
    def count(self) -> int:
        """Number of samples, or of completions of each row."""
        return self.n or (SAMPLES if self.fill is None else COMPLETIONS)


def main(args: list[str]) -> None:
    """Run the command line ``train-flows sample``."""
    settings = read(Settings, args, "sample")
    _check(settings)
    stored = storage.read_config(settings.run, KIND, SERIES)
    if stored["kind"] == SERIES:
        _sample_paths(settings)
        return
    if settings.at or settings.every:
        raise InputError(f"--at and --every are for forecasts, {settings.run} is a density: omit them")
    model = cnf.load(settings.run, session.find_device(settings.device))
    assert isinstance(model, Density), "of that kind"
    likelihood.check_importance_samples(model, settings.samples)
    data = description_of(stored)
    if settings.fill is not None:
        from train_flows.fill import fill  # pandas takes half a second, which --help need not wait for

        torch.manual_seed(settings.seed)
        fill(settings.run, settings.fill, settings.out, settings.count, model, data)
        return
    most = MAX_IMAGES if len(model.event_shape) == 3 else MAX_POINTS
    if settings.out.suffix == ".png" and settings.count > most:
        raise InputError(f"-n {settings.count} is too many for a picture: pass at most {most}, or another --out")
    if isinstance(model, TableDensity):
        _sample_rows(settings, model, data)
        return
    if settings.complete:
        raise InputError("--complete is for tables whose missing cells are modelled: omit it")
    classes = data["classes"] if model.context and data["context"] == data["classes"] else []
    labels = _labels(settings, classes)
    names = [] if classes else data["context"] or [f"c{i}" for i in range(model.context or 0)]
    given = _given(settings, [Column(name) for name in names])
    columns = [*(data["columns"] or [f"x{i}" for i in range(model.event_shape.numel())]), *([LABEL] if classes else [])]
    if settings.log_prob:
        columns.append(_name_of_density(model, columns))
    torch.manual_seed(settings.seed)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    below: Counter[str] = Counter()
    parts = _as_recorded(_parts(model, settings, labels, len(classes), given), data, below)
    with storage.written_atomically(settings.out) as file:
        if settings.out.suffix == ".png":
            dpi = 150 if len(model.event_shape) == 1 else "figure"
            _picture(np.concatenate(list(parts)), model, columns, classes).savefig(file, dpi=dpi)
        elif settings.out.suffix == ".npy":
            _write_npy(file, parts, settings.count)
        else:
            _write_csv(file, parts, columns, classes)
    print(f"{settings.count} samples of {abbreviate(columns)} in {settings.out}")
    if data["grids"]:
        of = ", log_prob is of the values before" if settings.log_prob else ""
        print(f"note: {abbreviate([*data['grids']])} are rounded to the grid of the data{of}")
    if below:
        counts = abbreviate([f"{column} ({count} of {settings.count})" for column, count in below.items()])
        print(f"note: values below zero, where the data have none: {counts}")


def _sample_paths(settings: Settings) -> None:
    """Write paths of a forecast."""
    from train_flows.forecasting.sample_paths import write_paths  # pandas takes half a second

    if settings.out.suffix != ".csv" or not settings.at:
        raise InputError(
            f"{settings.run} is a model of series: pass its times by --at, such as --at START END --every 1d, and "
            "--out NAME.csv"
        )
    plain = {"fill": None, "label": None, "given": (), "complete": False, "log_prob": False, "temperature": 1.0}
    if typed := [name.replace("_", "-") for name, value in plain.items() if getattr(settings, name) != value]:
        raise InputError(f"--{typed[0]} is for densities, {settings.run} is a model of series: omit it")
    device, n = session.find_device(settings.device), settings.n or PATHS
    print(write_paths(settings.run, settings.at, settings.every, n, settings.out, device, settings.seed))


@torch.no_grad()
def _sample_rows(settings: Settings, model: TableDensity, data: Mapping[str, Any]) -> None:
    """Write rows of a table with columns of several kinds, as they are recorded, with the columns left out."""
    from train_flows.data import frames  # pandas takes half a second, which --help need not wait for

    if settings.label is not None:
        raise InputError(f"--label is for densities given the class, {settings.run} is of a table: pass --given")
    c, columns = _given(settings, model.given), [*model.given, *model.columns]
    is_picture = settings.out.suffix == ".png"
    left_out = [] if is_picture else [frames.LeftOut(**values) for values in data.get("left_out", [])]
    kinds = frames.to_frame(np.empty((0, len(columns))), columns, left_out).dtypes
    words = [str(name) for name, kind in kinds.items() if kind.kind not in "bif"]
    if words and settings.out.suffix != ".csv":
        raise InputError(f"--out {settings.out} is for numbers, {abbreviate(words)} holds others: pass --out NAME.csv")
    names = [*map(str, kinds.index)]
    if settings.log_prob:
        names.append(_name_of_density(model, names))
    size, complete = chunk_size(model.event_shape), settings.complete or is_picture

    def tables() -> Iterator[pd.DataFrame]:
        for start in range(0, settings.count, size):
            n = min(size, settings.count - start)
            contexts = None if c is None else c.expand(n, -1)
            x = model.sample(n, contexts, settings.temperature, complete)
            rows = x.cpu() if contexts is None else torch.cat([contexts, x.cpu()], 1)
            table = frames.to_frame(rows.numpy(), columns, left_out)
            if settings.log_prob:
                table[names[-1]] = model.log_prob(x, contexts, settings.samples).cpu()
            yield table

    torch.manual_seed(settings.seed)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    arrays = (table.to_numpy(np.float64, na_value=np.nan) for table in tables())
    with storage.written_atomically(settings.out) as file:
        if is_picture:
            from train_flows.figures import table_plots

            table_plots.samples(np.concatenate([*arrays]), names).savefig(file, dpi=150)
        elif settings.out.suffix == ".npy":
            _write_npy(file, arrays, settings.count)
        else:
            for i, table in enumerate(tables()):
                table.to_csv(file, index=False, header=i == 0)
    print(f"{settings.count} rows of {abbreviate(names)} in {settings.out}")


def _name_of_density(model: Density, columns: Sequence[str]) -> str:
    """Return the name of the column of log-densities, another one than the columns of the data have."""
    name = "log_prob" if model.kind == "exact" else f"log_prob_{model.kind}"
    while name in columns:  # such as the draws of a sampler
        print(f"note: the data have a column {name}, so the log-density of the model is model_{name}")
        name = f"model_{name}"
    return name


def check_out(out: Path, suffixes: Sequence[str], overwrite: bool) -> None:
    """Raise an :class:`anode.InputError` for a file of unknown format, or one that would be lost."""
    if out.suffix not in suffixes or out.is_dir():
        raise InputError(f"--out {out} must end in {', '.join(suffixes)}")
    if out.exists() and not overwrite:
        raise InputError(f"--out {out} exists: pass another name, or --overwrite")


def _check(settings: Settings) -> None:
    check_out(settings.out, SUFFIXES if settings.fill is None else (".csv",), settings.overwrite)
    if settings.fill is not None:
        plain = {"given": (), "label": None, "complete": False, "log_prob": False, "temperature": 1.0}
        if typed := [name.replace("_", "-") for name, value in plain.items() if getattr(settings, name) != value]:
            raise InputError(
                f"--{typed[0]} has no effect with --fill, which draws what {settings.fill} misses given its other "
                "columns: omit one"
            )
    if settings.samples is not None and not settings.log_prob:
        raise InputError(f"--samples {settings.samples} has an effect with --log-prob only: pass that too, or omit it")
    if settings.log_prob and settings.temperature != 1:
        raise InputError(
            f"--log-prob is the density at --temperature 1, not of samples at {settings.temperature}: omit one"
        )
    if settings.log_prob and settings.out.suffix == ".png":
        raise InputError(f"--log-prob needs a column, which pictures lack: pass an --out other than {settings.out}")


def _labels(settings: Settings, classes: Sequence[str]) -> Tensor | None:
    """Return the class of every sample, (n,); None for a density that is not given the class."""
    if settings.label is None:
        return torch.arange(settings.count) % len(classes) if classes else None
    if settings.label not in classes:
        known = f"is not a class of {settings.run}: choose one of {abbreviate(classes)}"
        without = f"is for densities given the class, {settings.run} is not: omit it"
        raise InputError(f"--label {settings.label} {known if classes else without}")
    return torch.full((settings.count,), classes.index(settings.label))


def _given(settings: Settings, columns: Sequence[Column]) -> Tensor | None:
    """Return the context of all samples, (K,), for the given columns; None if there are none."""
    typed = [text.partition("=") for text in settings.given]
    values: dict[str, Any] = {name: text for name, _, text in typed}
    if not columns and typed:
        raise InputError(
            f"--given {' '.join(settings.given)} is for densities given columns, {settings.run} is not: omit it"
        )
    if wrong := [name for name, mark, _ in typed if not mark]:
        raise InputError(f"--given {wrong[0]} must be NAME=VALUE, such as species=Adelie")
    if len(values) < len(typed):
        raise InputError(f"--given {' '.join(settings.given)} names a column more than once: pass one value")
    for column in columns:
        if column.kind == "date" and column.name in values:
            values[column.name] = _days(column, values[column.name])
    return context_row(columns, values) if columns else None


def _days(column: Column, text: str) -> float:
    """Return a date as a cell of its column."""
    import pandas as pd  # half a second, which --help need not wait for

    from train_flows.data import frames

    cell = frames.days_since(frames.parse_dates(pd.Series([text]), column.day_first)[0], np.datetime64(column.first))
    if np.isnan(cell[0]) and text:
        raise InputError(f"--given {column.name}={text} must be a date, such as {column.first}")
    return float(cell[0])


@torch.no_grad()
def _parts(
    model: Density, settings: Settings, labels: Tensor | None, classes: int, given: Tensor | None
) -> Iterator[np.ndarray]:
    """Yield the rows of the file chunk by chunk; a class is its number."""
    size = chunk_size(model.event_shape)
    samples = likelihood.IMPORTANCE_SAMPLES if settings.samples is None else settings.samples
    for start in range(0, settings.count, size):
        n = min(size, settings.count - start)
        y = None if labels is None else labels[start : start + n]
        repeated = None if given is None else given.expand(n, -1)
        c = to_model(model, repeated if y is None else class_contexts(y, classes))
        if settings.log_prob and model.has_rsample:  # one solve gives both
            x, log_p = model.rsample_and_log_prob(n, c)
        else:
            x = model.sample(n, c, settings.temperature)
            log_p = likelihood.log_prob(model, x, samples, c) if settings.log_prob else x.new_empty(n, 0)
        rows = x.cpu().numpy().reshape(n, -1)
        label = [] if y is None else [y.numpy()[:, None].astype(rows.dtype)]
        yield np.concatenate([rows, *label, log_p.view(n, -1).cpu().numpy()], axis=1)


def _as_recorded(parts: Iterable[np.ndarray], data: Mapping[str, Any], below: Counter[str]) -> Iterator[np.ndarray]:
    """Put columns of a grid back on it, and count the values below zero of columns that had none."""
    grids = {list(data["columns"]).index(column): Grid(**values) for column, values in data["grids"].items()}
    for rows in parts:
        for i, grid in grids.items():
            rows[:, i] = grid.nearest(rows[:, i])
        for i, column in enumerate(data["columns"]):
            if column in data["from_zero"] and (count := int((rows[:, i] < 0).sum())):
                below[column] += count
        yield rows


def _write_npy(file: BinaryIO, parts: Iterable[np.ndarray], n: int) -> None:
    """Write n rows chunk by chunk, so that memory does not grow with n."""
    for i, rows in enumerate(parts):
        if i == 0:
            about = {"descr": np.lib.format.dtype_to_descr(rows.dtype), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, {**about, "shape": (n, rows.shape[1])})
        file.write(rows.tobytes())


def _write_csv(file: BinaryIO, parts: Iterable[np.ndarray], columns: Sequence[str], classes: Sequence[str]) -> None:
    import pandas as pd  # half a second, which --help need not wait for

    for i, rows in enumerate(parts):
        frame = pd.DataFrame(rows, columns=list(columns))
        if classes:
            frame[LABEL] = [classes[int(label)] for label in frame[LABEL]]
        frame.to_csv(file, index=False, header=i == 0)


def _picture(rows: np.ndarray, model: Density, columns: Sequence[str], classes: Sequence[str]) -> Figure:
    """Draw the rows of the file; images of several classes have a row for each class."""
    from train_flows.figures import image_plots, table_plots

    size = model.event_shape.numel()
    x = rows[:, :size].reshape(-1, *model.event_shape)
    if x.ndim == 2:
        return table_plots.samples(x, columns)
    max_value = x.max() if model.levels is None else model.levels - 1
    labels = rows[:, size].astype(int) if classes else np.zeros(len(x), dtype=int)
    if len(np.unique(labels)) > 1:
        return image_plots.images_by_class({"samples": (x, labels)}, classes, max_value)
    return image_plots.image_panels({"samples": x}, max_value)
