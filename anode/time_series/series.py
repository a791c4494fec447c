"""Batches of time series with different times, lengths and missing values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from anode.errors import InputError
from anode.inputs import to_tensor


class Series(NamedTuple):
    """A batch of B series with at most T times and D features.

    Attributes:
        times: times (B, T), float64, increasing within a series; a shorter series repeats its last time at the end.
        values: observed values (B, T, D); 0 where nothing is observed.
        mask: 1 where a value is observed, 0 where it is missing or padded, (B, T, D).
    """

    times: Tensor
    values: Tensor
    mask: Tensor

    @property
    def observed(self) -> Tensor:
        """True for times with an observed feature, (B, T)."""
        return (self.mask > 0).any(-1)


def pad(series: Sequence[tuple[Any, Any]]) -> Series:
    """Join series of different lengths in a batch.

    Args:
        series: times (T,) and values (T, D) of each series, tensors or arrays; NaN for a missing value. Times are
            plain numbers of any unit.

    Returns:
        The batch; times in float64, so that those far from zero keep their differences.

    Example:
        >>> batch = pad([([0.0, 1.0], [[1.0], [2.0]]), ([0.5], [[3.0]])])
        >>> batch.times.tolist(), batch.mask[..., 0].tolist()
        ([[0.0, 1.0], [0.5, 0.5]], [[1.0, 1.0], [1.0, 0.0]])
    """
    if not series:
        raise InputError("series is empty: pass one or more pairs (times, values)")
    all_times, all_values = [], []
    for i, (times, values) in enumerate(series):
        times = to_tensor(f"times of series {i}", times).double()
        values = to_tensor(f"values of series {i}", values)
        values = values if isinstance(values, Tensor) and values.is_floating_point() else values.double()
        _check_one(i, times, values)
        all_times.append(times)
        all_values.append(values)
    features = {values.shape[1] for values in all_values}
    if len(features) > 1:
        raise InputError(f"the series have different numbers of features, {sorted(features)}: pass (T, D) of one D")
    longest = max(map(len, all_times))
    times = torch.stack([torch.cat([t, t[-1:].expand(longest - len(t))]) for t in all_times])
    values = pad_sequence(all_values, batch_first=True, padding_value=torch.nan).to(torch.get_default_dtype())
    mask = ~values.isnan()
    return Series(times, values.where(mask, 0.0), mask.to(values.dtype))


def _check_one(i: int, times: Tensor, values: Tensor) -> None:
    """Raise an :class:`InputError` unless times (T,), increasing, and values (T, D) of series i fit together."""
    if times.ndim != 1 or values.ndim != 2 or len(times) != len(values) or len(times) == 0:
        raise InputError(
            f"series {i} has times of shape {tuple(times.shape)} and values of shape {tuple(values.shape)}: pass (T,) "
            "and (T, D), with at least one time"
        )
    if not times.isfinite().all():
        raise InputError(f"series {i} has a time that is not finite: remove it")
    late = (times.diff() <= 0).nonzero().flatten()
    if len(late):
        k = int(late[0])
        raise InputError(
            f"series {i} has the time {times[k + 1]:.15g} after {times[k]:.15g}: sort its times, without repetitions"
        )
    if values.isinf().any():
        raise InputError(f"series {i} has an infinite value: pass NaN for a missing one")


class History(NamedTuple):
    """A batch of series in the units of a model, without the times at which nothing is observed.

    Attributes:
        start: first time of each series with an observed feature, in the units of the data, (B,), float64.
        times: times since the start, (B, T); a shorter series repeats its last time.
        values: standardised values, (B, T, D); 0, the mean of the feature, where nothing is observed.
        mask: 1 where a value is observed, (B, T, D).
        lengths: number of times of each series, (B,).
    """

    start: Tensor
    times: Tensor
    values: Tensor
    mask: Tensor
    lengths: Tensor


def without_gaps(series: Series) -> tuple[Series, Tensor]:
    """Move the times with an observed feature to the front and cut the rest; also return their number (B,).

    Raises:
        InputError: if a series has none.
    """
    observed, lengths = series.observed, series.observed.sum(1)
    if (lengths == 0).any():
        empty = int((lengths == 0).nonzero()[0])
        raise InputError(f"history lacks an observed value in series {empty}: leave that series out")
    order = observed.int().argsort(dim=1, descending=True, stable=True)[:, : int(lengths.max())]
    place = torch.arange(order.shape[1], device=order.device)
    order = order.gather(1, torch.minimum(place, lengths[:, None] - 1))
    kept = place < lengths[:, None]
    pick = order[..., None].expand(-1, -1, series.values.shape[-1])
    mask = series.mask.gather(1, pick) * kept[..., None]
    return Series(series.times.gather(1, order), series.values.gather(1, pick), mask), lengths
