"""The simplest density of a table of several kinds, which a model should beat."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cnf.tables import Column
from cnf.tables.columns import encode
from cnf.tables.masks import WhitenPresent


@torch.no_grad()
def log_prob(
    columns: Sequence[Column], train: Tensor, test: Tensor, samples: int = 1, weights: Tensor | None = None
) -> Tensor:
    """Return log-densities (N,) of test rows by independent states and one Gaussian of the numbers on their scales.

        log p(row) = sum_v log f_v(s_v) + log N(y_present; mean, covariance) + log-determinants of the scales

    with the frequencies f_v of the states of each column among training rows (categories, or on the scale, atoms and
    missing), to which one row, spread evenly over the states, is added; and with the mean and covariance of the numbers
    y on their scales, taken where both of a pair are present, with tails as :class:`cnf.Tails` has them. Numbers do not
    depend on states.

    Args:
        columns: of the rows.
        train: rows (M, D).
        test: rows (N, D).
        samples: draws of the noise of columns recorded in steps, of which the result is a bound as in
            :meth:`cnf.tables.TableDensity.log_prob`.
        weights: relative weights (M,) of the training rows.
    """
    columns = [column.fitted(cells, weights) for column, cells in zip(columns, train.T, strict=True)]
    rows, sizes = encode(columns, train), [column.states for column in columns if column.states > 1]
    of_states = test.new_zeros(len(test))
    for states, seen, size in zip(encode(columns, test).states.T, rows.states.T, sizes, strict=True):
        shares = None if weights is None else weights.double() * len(weights) / weights.sum()
        counts = torch.bincount(seen, shares, minlength=size).double() + 1 / size
        of_states += (counts / counts.sum()).log()[states]
    if rows.y.shape[1] == 0:
        return of_states
    whiten, found = WhitenPresent(rows.y.shape[1]).double().fit(rows.y, rows.present, weights), []
    for _ in range(samples):
        rows = encode(columns, test)
        z, log_det, *_ = whiten(rows.y, rows.present.double())
        of_base = -0.5 * z.square().sum(1) - 0.5 * math.log(2 * math.pi) * rows.present.sum(1)
        found.append(of_base + log_det + rows.log_det)
    return of_states + torch.stack(found).logsumexp(0) - math.log(samples)
