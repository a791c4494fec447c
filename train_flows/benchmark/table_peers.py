"""Other models of mixed tables, to compare with: a Gaussian copula, an isolation forest, a boosted regression.

They learn DataFrames in the units of the table. A column is a category unless its dtype is a number; cells may be
missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri
from sklearn.ensemble import HistGradientBoostingRegressor, IsolationForest

Array = np.ndarray
SWEEPS, WARM_UP = 40, 20  # of the sampler that fits a copula; those that its correlations are not averaged over
EDGE = 1e-12  # probability by which a latent value keeps away from 0 and 1


@dataclass(frozen=True)
class GaussianCopula:
    """Correlated normal variables behind the columns of a table, whose marginals are those of the training rows.

    A cell x of a column with the empirical distribution function F has the latent value

        F(x-) < Phi(z) <= F(x),    z ~ N(0, R)

    Categories are ordered by their mean place along the first principal component of the numbers, and a missing cell
    comes after all values. The correlations R are the mean of a Gibbs sampler that draws z within its intervals.

    Attributes:
        states: columns to their different cells, in order.
        ends: columns to F at these cells.
        correlation: R, (D, D).

    References:
        Hoff 2007, Extending the rank likelihood for semiparametric copula estimation, arXiv math/0610413.
    """

    states: dict[str, pd.Series]
    ends: dict[str, Array]
    correlation: Array

    @classmethod
    def fit(cls, frame: pd.DataFrame, seed: int) -> GaussianCopula:
        """Return the copula of the rows of a frame."""
        rng = np.random.default_rng(seed)
        place = _first_component(frame)
        states, ends, lower, upper = {}, {}, [], []
        for name, cells in frame.items():
            codes, different = _ordered(cells, place)
            end = np.bincount(codes, minlength=len(different)).cumsum() / len(frame)
            states[name], ends[name] = different, end
            lower.append(np.concatenate([[0], end])[codes])
            upper.append(end[codes])
        correlation = _correlation(np.stack(lower, axis=1), np.stack(upper, axis=1), rng)
        return cls(states, ends, correlation)

    def sample(self, n: int, seed: int) -> pd.DataFrame:
        """Return n rows, whose cells all occur in the training rows."""
        normal = np.random.default_rng(seed).normal(size=(n, len(self.states)))
        u = ndtr(normal @ np.linalg.cholesky(self.correlation).T)
        found = {}
        for j, (name, different) in enumerate(self.states.items()):
            at = np.searchsorted(self.ends[name], u[:, j]).clip(max=len(different) - 1)
            found[name] = different.take(at).reset_index(drop=True)
        return pd.DataFrame(found)


def _first_component(frame: pd.DataFrame) -> Array:
    """Return the place (N,) of rows along the first principal component of the ranks of numbers."""
    ranks = frame.select_dtypes("number").rank(pct=True)
    x = (ranks - ranks.mean()).fillna(0).to_numpy(float)
    if not x.shape[1]:
        return np.zeros(len(frame))
    return x @ np.linalg.svd(x, full_matrices=False)[2][0]


def _ordered(cells: pd.Series, place: Array) -> tuple[Array, pd.Series]:
    """Return codes (N,) of cells, and the different cells in the order of the codes."""
    codes, different = pd.factorize(cells, use_na_sentinel=False)
    values = pd.Series(different, dtype=cells.dtype)
    if pd.api.types.is_numeric_dtype(cells) and not pd.api.types.is_bool_dtype(cells):
        order = values.argsort().to_numpy() if not values.isna().any() else values.sort_values().index.to_numpy()
    else:
        mean = np.bincount(codes, place) / np.bincount(codes)
        order = np.lexsort([mean, values.isna()])
    rank = np.empty(len(order), dtype=int)
    rank[order] = np.arange(len(order))
    return rank[codes], values.take(order).reset_index(drop=True)


def _correlation(lower: Array, upper: Array, rng: np.random.Generator) -> Array:
    """Return the posterior mean of the correlations of normal variables within intervals of probability (N, D)."""
    count, d = lower.shape
    low, high = ndtri(lower), ndtri(upper)
    z = ndtri(np.clip((lower + upper) / 2, EDGE, 1 - EDGE))
    correlation, total = np.corrcoef(z, rowvar=False).reshape(d, d), np.zeros((d, d))
    for sweep in range(SWEEPS):
        ridge = correlation + 1e-6 * np.eye(d)
        precision = np.linalg.inv(ridge)
        for j in range(d):
            spread = precision[j, j] ** -0.5
            mean = z[:, j] - z @ precision[:, j] * spread**2
            a, b = ndtr((low[:, j] - mean) / spread), ndtr((high[:, j] - mean) / spread)
            drawn = mean + spread * ndtri(np.clip(a + (b - a) * rng.random(count), EDGE, 1 - EDGE))
            z[:, j] = np.clip(drawn, low[:, j], high[:, j])
        correlation = np.corrcoef(z, rowvar=False).reshape(d, d)
        total += correlation * (sweep >= WARM_UP)
    return total / (SWEEPS - WARM_UP) * (1 - 1e-6) + 1e-6 * np.eye(d)


def plant_anomalies(
    rows: pd.DataFrame, seed: int, columns: tuple[str, str] | None = None, share: float = 0.01
) -> tuple[pd.DataFrame, Array]:
    """Permute two columns of a share of the rows, so that the marginals stay and the dependence breaks.

    Every planted row has its own random pair of columns, if none is given. The cells of a column are permuted
    cyclically, in random order, among the planted rows that have it in their pair.

    Returns:
        The frame with planted rows, and True for these rows, (N,).
    """
    rng = np.random.default_rng(seed)
    planted = rng.permutation(len(rows))[: max(2, round(share * len(rows)))]
    pairs = [columns or rng.choice(rows.columns, 2, replace=False) for _ in planted]
    found = rows.reset_index(drop=True)
    for name in rows:
        own = rng.permutation([row for row, pair in zip(planted, pairs, strict=True) if name in pair]).astype(int)
        found.loc[own, name] = rows[name].to_numpy()[np.roll(own, 1)]
    return found, np.isin(np.arange(len(rows)), planted)


def isolation_scores(train: pd.DataFrame, rows: pd.DataFrame, seed: int) -> Array:
    """Return how odd rows (N,) are to an isolation forest of training rows: larger is odder.

    Categories are one-hot, missing numbers are the median of the training rows.

    References:
        Liu, Ting, Zhou 2008, Isolation forest, ICDM.
    """
    x = pd.get_dummies(pd.concat([train, rows], ignore_index=True), dtype=float)
    x = x.fillna(x.iloc[: len(train)].median()).to_numpy(float)
    forest = IsolationForest(n_estimators=200, max_samples=min(len(train), 1024), random_state=seed)
    return -forest.fit(x[: len(train)]).score_samples(x[len(train) :])


def boosted_nll(
    train: pd.DataFrame, validation: pd.DataFrame, test: pd.DataFrame, target: str, seed: int
) -> tuple[float, float]:
    """Return the NLL of a positive column given the others, and its standard error over test rows, in nats per row.

    Boosted trees predict m(x), the mean of log y, and stop at the best round on the validation rows, whose residuals
    have the standard deviation s:

        -log p(y | x) = log y + log s + 1/2 log 2 pi + (log y - m(x))^2 / 2 s^2
    """
    parts = [_features(part, target, train) for part in (train, validation, test)]
    y, y_val, y_test = (np.log(part[target].to_numpy(float)) for part in (train, validation, test))
    trees = HistGradientBoostingRegressor(
        categorical_features="from_dtype", max_iter=2000, early_stopping=True, n_iter_no_change=20, random_state=seed
    )
    trees.fit(parts[0], y, X_val=parts[1], y_val=y_val)
    spread = np.sqrt(np.mean((y_val - trees.predict(parts[1])) ** 2))
    nll = y_test + np.log(spread) + 0.5 * np.log(2 * np.pi) + 0.5 * ((y_test - trees.predict(parts[2])) / spread) ** 2
    return float(nll.mean()), float(nll.std(ddof=1) / np.sqrt(len(nll)))


def _features(frame: pd.DataFrame, target: str, train: pd.DataFrame) -> pd.DataFrame:
    """Return the other columns, with categories as those of the training rows."""
    found = frame.drop(columns=target)
    for name in found.columns.difference(found.select_dtypes("number").columns):
        found[name] = pd.Categorical(found[name], train[name].dropna().unique())
    return found
