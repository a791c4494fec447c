"""The density of a table as a scikit-learn estimator, trained as by ``train-flows density``."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor
from typing_extensions import override

import cnf
from anode import InputError
from anode.inputs import whole_number
from cnf import Density
from cnf.models import KIND
from cnf.tables import Column, TableDensity
from train_flows import density
from train_flows.command_line import settle
from train_flows.data import Split, frames, tables, tabular
from train_flows.data.dataset import abbreviate
from train_flows.data.grids import Grid
from train_flows.data.scales import Bounds
from train_flows.evaluation import chunk_size, in_chunks, likelihood, to_model
from train_flows.parameters import NAME, from_settings, in_python, name_parameters, to_options
from train_flows.run import distributed, session
from train_flows.run.folder import Run
from train_flows.settings import DensitySettings, to_sections

if TYPE_CHECKING:
    from sklearn.utils import Tags

CHECKS, CHECKED = 20, 0.25  # validations within a number of minutes, and share of the time for them, at most
DRAWS = 16  # of the noise within the steps of recorded values, for a score


class TableDensityEstimator(DensityMixin, BaseEstimator):
    """The density of a table by a continuous normalizing flow.

    A table is a data frame whose columns are of any kinds, or an array. :meth:`fit` finds the kinds and trains as
    ``train-flows density`` does, with the recipe for the size of the table. A random tenth of the rows chooses the best
    weights, the others train; none are kept for a test. A table of numbers without gaps has a density; with other
    columns, it has probabilities of categories, and densities of numbers given these.

    Args:
        given: columns that are given; the density is of the others given these.
        minutes: time for training; the steps of the recipe are shortened to fit into it, which makes the result depend
            on the machine. All steps if None.
        kinds: kinds of columns that are found wrongly, such as ``{"rating": "ordinal", "id": "drop"}``: continuous,
            positive, bounded, ordinal, category, date, or drop.
        bounds: lower and upper bound of columns, None for no bound, such as ``{"price": (0, None)}``.
        missing: rows with missing cells: ``"drop"`` them, ``"model"`` what is missing, or ``"auto"``, which drops up to
            a twentieth of the rows.
        random_state: seed of the split, weights, batches and noise; a random one if None.
        verbose: show kinds, notes, a progress bar and the course of the validation NLL.
        options: other options of ``train-flows density`` by name, such as ``{"steps": 500, "hidden": (64, 64)}``.

    Attributes:
        n_features_in_: number of columns of the table.
        feature_names_in_: their names, if they are text.
        columns_: the learned columns with their kinds, see :class:`cnf.tables.Column`.
        flow: the density, a torch module: ``log_prob``, ``sample``, and a distribution ``flow(c)``.

    References:
        Pedregosa et al. 2011, Scikit-learn: machine learning in Python, JMLR 12.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(200, 2))
        >>> model = TableDensityEstimator(verbose=False, options={"steps": 2, "hidden": (8,)}).fit(x)
        >>> model.score_samples(x[:3]).shape, list(model.sample(5))
        ((3,), ['x0', 'x1'])
    """

    n_features_in_: int
    feature_names_in_: np.ndarray
    columns_: tuple[Column, ...]

    def __init__(
        self,
        given: Sequence[str] = (),
        minutes: float | None = None,
        kinds: Mapping[str, str] | None = None,
        bounds: Mapping[str, Bounds] | None = None,
        missing: Literal["auto", "drop", "model"] = "auto",
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.given = given
        self.minutes = minutes
        self.kinds = kinds
        self.bounds = bounds
        self.missing = missing
        self.random_state = random_state
        self.verbose = verbose
        self.options = options

    @property
    def flow(self) -> Density:
        """The trained density."""
        check_is_fitted(self)
        return self._flow

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Train on the rows of a table.

        Args:
            X: table (N, D), at least 20 rows.
            y: ignored.
            sample_weight: numbers (N,) from 0 on, how often each row counts; equal if None.

        Raises:
            InputError: if columns, parameters or weights cannot be used.
        """
        started, seed = time.monotonic(), _seed(self.random_state)
        with in_python(), distributed.silent(not self.verbose), torch.random.fork_rng():
            typed = to_options(self, seed)
            settings, _ = settle(density.PROGRAM, DensitySettings(), typed)
            device, dtype = session.find_device(settings.run.device), getattr(torch, settings.run.dtype)
            table = tables.Table({"all": self._frame(X, reset=True)}, named=isinstance(X, pd.DataFrame))
            if sample_weight is not None:
                table = tables.weigh(NAME, table, {"all": _weights(sample_weight, len(table.parts["all"]))})
            data = {name: getattr(settings.data, name) for name in ("jitter", "given", "kind", "bounds", "missing")}
            dataset = tabular.load(NAME, seed, dtype=dtype, table=table, **data).without_test()
            notes, overview = tuple(map(name_parameters, dataset.notes)), name_parameters(dataset.overview)
            dataset = dataclasses.replace(dataset, notes=notes, overview=overview)
            settings, origin = settle(density.PROGRAM, DensitySettings(), typed, *density.size(dataset))
            session.tell(origin)
            torch.manual_seed(seed)
            task, run = density.prepare(settings, dataset, device), Run.temporary()
            if self.minutes is not None and "steps" not in typed:
                task = _paced(task, settings.run.deadline(started) - time.monotonic())
            notes += tuple(density.train(task, run, started))
        about = {**dataset.describe(), "notes": list(notes)}
        return self._take(task.validated.eval(), to_sections(task.settings), about, run.records())

    def score_samples(self, X: Any) -> np.ndarray:
        """Return the log-density of each row in nats, (N,), in the units of the table.

        Categories and whole numbers have probabilities, other numbers densities. Values that were recorded in steps
        have the mean density within a step, by 16 draws of noise, which are the same in each call: a lower bound, as
        are log-densities of flows with augmented variables. Rows with missing cells have NaN, with a warning, unless
        the model knows such cells.

        Args:
            X: table (N, D) with the columns of :meth:`fit`, those given among them.

        Raises:
            InputError: for cells that a column cannot hold.
        """
        check_is_fitted(self)
        frame = self._frame(X, reset=False)
        scores, complete = np.full(len(frame), np.nan), self._without_gaps(frame)
        if not complete.all():
            what = f"{(~complete).sum():,} of {len(frame):,} rows miss a cell and are not scored"
            warnings.warn(f'{what}: fit with missing="model" to learn such cells', stacklevel=2)
            frame = frame[complete]
        if not complete.any():
            return scores
        with in_python():
            c = self._cells(frame, "context") if self._about["context"] else None
            data = Split(self._cells(frame, "columns"), c=c)
        grids = self._about["grids"]
        widths = torch.tensor([grids[name]["step"] if name in grids else 0.0 for name in self._about["columns"]])

        def score(x: Tensor, c: Tensor | None) -> Tensor:
            if not widths.any():
                return likelihood.log_prob(self._flow, x, DRAWS, c).cpu().double()
            noise = (widths.to(x) * (torch.rand_like(x) - 0.5) for _ in range(DRAWS))
            draws = torch.stack([likelihood.log_prob(self._flow, x + each, 1, c) for each in noise])
            return (draws.logsumexp(0) - np.log(DRAWS)).cpu().double()

        with torch.no_grad(), torch.random.fork_rng(), distributed.silent(not self.verbose):
            torch.manual_seed(0)
            scores[complete] = torch.cat(in_chunks(self._flow, data, score, "scoring", delay=2.0)).numpy()
        return scores

    @override
    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the mean log-density of the rows in nats, by their weights; see :meth:`score_samples`.

        It is a mean as of scikit-learn's ``GaussianMixture``, not a sum as of ``KernelDensity``, of the rows that have
        scores.
        """
        scores = self.score_samples(X)
        scored = ~np.isnan(scores)
        weights = None if sample_weight is None else _weights(sample_weight, len(scores)).to_numpy()[scored]
        return float(np.average(scores[scored], weights=weights)) if scored.any() else math.nan

    def sample(
        self,
        n_samples: int = 1,
        given: Mapping[str, Any] | pd.DataFrame | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> pd.DataFrame:
        """Draw rows as they are recorded, with the columns of the table in order.

        Columns that were left out come back if they are constant or follow from others.

        Args:
            n_samples: number of rows.
            given: for each given column a value, or one for each row.
            random_state: seed of the rows; a random one if None.
        """
        check_is_fitted(self)
        seed, size = _seed(random_state), chunk_size(self._flow.event_shape)
        n_samples = whole_number("n_samples", n_samples)
        with in_python():
            c = self._contexts({} if given is None else given, n_samples)
        parts = []
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            for first in range(0, n_samples, size):
                n = min(size, n_samples - first)
                parts.append(self._flow.sample(n, to_model(self._flow, c if c is None else c[first : first + n])).cpu())
        frame = self._as_recorded(torch.cat(parts), c)
        return frame[[name for name in self._about["features"] if name in frame]]

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write a run folder that the programs ``train-flows`` read, and :meth:`load`.

        Args:
            folder: missing or empty.
            overwrite: replace an existing run.
        """
        check_is_fitted(self)
        if not overwrite and Path(folder).exists():
            raise InputError(f"{folder} exists: pass another folder, or overwrite=True to replace a run")
        run = Run.create(folder, KIND, self._sections, self._flow.arguments, self._about, overwrite)
        run.keep_best(self._flow)
        for record in self._records:
            run.log(record)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Return the estimator of a run on a table, by :meth:`save` or ``train-flows density``.

        Parameters are those of the run, without ``options``: another :meth:`fit` follows the recipe.
        """
        run, flow = Run.open(folder, KIND), cnf.load(folder)
        about = run.config["data"]
        if not isinstance(flow, Density) or not about.get("features"):
            raise InputError(f"{folder} is not a density of a table, or of an earlier version: use cnf.load")
        model = cls(**from_settings(run.settings))
        model.n_features_in_ = len(about["features"])
        if about["named"]:
            model.feature_names_in_ = np.array(about["features"], dtype=object)
        return model._take(flow, run.settings, about, run.records())

    @override
    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.string = True
        return tags

    def _frame(self, X: Any, reset: bool) -> pd.DataFrame:
        """Return a table as a frame with names, checked by scikit-learn against the table of :meth:`fit`."""
        if isinstance(X, pd.DataFrame):
            validate_data(self, X, skip_check_array=True, reset=reset)
            return X.set_axis([*map(str, X)], axis=1).reset_index(drop=True)
        X = validate_data(self, X, dtype=None, ensure_all_finite=False, ensure_min_samples=1 + reset, reset=reset)
        names = [f"x{i}" for i in range(X.shape[1])] if reset else self._about["features"]
        return pd.DataFrame(X, columns=names).infer_objects()

    def _cells(self, frame: pd.DataFrame, of: Literal["columns", "context"]) -> Tensor:
        """Return the cells (N, D) of the learned or of the given columns."""
        if isinstance(self._flow, TableDensity):
            columns = self._flow.columns if of == "columns" else self._flow.given
            return torch.from_numpy(frames.to_rows(NAME, frame, columns))
        return torch.from_numpy(tables.numbers(NAME, frame[self._about[of]], 1))

    def _without_gaps(self, frame: pd.DataFrame) -> np.ndarray:
        """Return True for rows without missing cells, (N,), but for columns whose missing cells are learned."""
        known = set()
        if isinstance(self._flow, TableDensity):
            known = {column.name for column in (*self._flow.columns, *self._flow.given) if column.gaps}
        names = [name for name in (*self._about["columns"], *self._about["context"]) if name not in known]
        return frame[names].notna().all(axis=1).to_numpy()

    def _contexts(self, given: Mapping[str, Any] | pd.DataFrame, n: int) -> Tensor | None:
        """Return the cells (n, K) of given columns, each of one value or of n."""
        names = self._about["context"]
        if sorted(map(str, given)) != sorted(names):
            wanted = ", ".join(f"{name!r}: ..." for name in names)
            remedy = f"pass given={{{wanted}}}" if names else "omit given"
            raise InputError(f"this is a density given {abbreviate(names) or 'nothing'}: {remedy}")
        values = {str(name): np.asarray(value) for name, value in given.items()}
        if wrong := [name for name, value in values.items() if value.shape not in ((), (n,))]:
            raise InputError(f"given[{wrong[0]!r}] of shape {values[wrong[0]].shape}: pass one value, or {n}")
        frame = pd.DataFrame({name: np.broadcast_to(value, n) for name, value in values.items()}, index=range(n))
        return self._cells(frame, "context") if names else None

    def _as_recorded(self, x: Tensor, c: Tensor | None) -> pd.DataFrame:
        """Return cells x (N, D) and c (N, K) as a table, with the columns left out."""
        rows = torch.cat([part.double() for part in (x, c) if part is not None], 1).numpy()
        if isinstance(self._flow, TableDensity):
            left_out = [frames.LeftOut(**each) for each in self._about["left_out"]]
            return frames.to_frame(rows, [*self._flow.columns, *self._flow.given], left_out)
        frame = pd.DataFrame(rows, columns=[*self._about["columns"], *self._about["context"]])
        for name in frame.columns.intersection([*self._about["grids"]]):
            grid = Grid(**self._about["grids"][name])
            values = grid.nearest(frame[name].to_numpy())
            frame[name] = values.astype(np.int64) if grid.step % 1 == grid.origin % 1 == 0 else values
        return frame

    def _take(self, flow: Density, sections: dict[str, Any], about: dict[str, Any], records: list[Any]) -> Self:
        """Keep a trained density, its settings by section, the description of its data, and its records."""
        self._flow, self._sections, self._about, self._records = flow, sections, about, records
        grids = {name: Grid(**grid) for name, grid in about["grids"].items()}
        plain = (Column(name, step=grids[name].step if name in grids else 0.0) for name in about["columns"])
        self.columns_ = flow.columns if isinstance(flow, TableDensity) else tuple(plain)
        return self


def _paced(task: density.DensityTask, seconds: float) -> density.DensityTask:
    """Return a task with a share of the steps in each stage, so that it takes some seconds, from a trial of each."""
    training, begin = task.training, task.training.likelihood_from
    if not any(parameter.requires_grad for parameter in task.model.parameters()):
        return task  # it is fitted already

    def timed(work: Callable[[], Any]) -> float:
        started = time.monotonic()
        work()
        return time.monotonic() - started

    def step(n: int) -> None:
        task.objective(task.batch(n), n).backward()
        task.model.zero_grad()

    with torch.random.fork_rng():
        of_validation = timed(task.validate)
        first, last = (min(timed(lambda n=n: step(n)) for _ in range(2)) for n in (0, training.steps - 1))
    total = first * (begin or 0) + last * (training.steps - (begin or 0))
    checks = min(CHECKS, max(2, int(CHECKED * seconds / of_validation)))
    share = max(0.0, seconds - checks * of_validation) / total
    if share >= 1:
        return task
    steps = max(checks, round(share * training.steps))
    begin = None if begin is None else min(steps - 1, round(share * begin)) or None
    training = dataclasses.replace(
        training, steps=steps, likelihood_from=begin, validate_every=math.ceil(steps / checks)
    )
    session.tell(f"{steps} steps are what the time allows for")
    return density.DensityTask(dataclasses.replace(task.settings, training=training), task.dataset, task.model)


def _seed(random_state: int | np.random.RandomState | None) -> int:
    """Return a seed: a whole number itself, or one that a generator draws."""
    if isinstance(random_state, Integral):
        return int(random_state)
    return int(check_random_state(random_state).randint(2**31 - 1))


def _weights(sample_weight: Any, n: int) -> pd.Series:
    weights = np.asarray(sample_weight)
    if weights.shape != (n,):
        raise InputError(f"sample_weight of shape {weights.shape} does not fit {n} rows: pass one weight for each")
    return pd.Series(weights, name="sample_weight")
