"""What two trainings cost where they are equally good."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from train_flows.paper.outcomes import Outcome

LEVELS = 9  # at which two trainings are compared


def compared(pairs: Sequence[tuple[Outcome, Outcome]], metric: str) -> dict[str, float]:
    """A cost of some trainings over that of others at equal test NLL, mean over levels of it and over pairs.

    The first record, of models that have learnt nothing, takes no part. A pair is compared at levels from the lowest
    that both reach half the way up to the highest that both come down to; at the lowest alone, where one is better from
    its first record on than the other ever is. Its ratio is the geometric mean over them.

    Args:
        pairs: with ``nll_test`` and the metric in their records.
        metric: such as ``"nfe_sample_1e-07"``.

    Returns:
        ``ratio``, the geometric mean over the pairs; ``low`` and ``high``, its 95% interval by Student's t of the
        logarithms (NaN for a single pair); ``pairs``, how many, and ``apart``, how many of them with a single level;
        ``cost`` and ``cost_below``, mean over pairs at the lowest level, and ``nll``, that level.
    """
    ratios, costs, lowest, apart = [], [], [], 0
    for pair in pairs:
        records = [outcome.records[1:] for outcome in pair]
        levels = _levels(records)
        found = np.array([[cost_at(each, level, metric) for each in records] for level in levels])
        ratios.append(np.log(found[:, 0] / found[:, 1]).mean())
        costs.append(found[0])
        lowest.append(levels[0])
        apart += len(levels) == 1
    n, mean = len(ratios), float(np.mean(ratios))
    half = float(stats.t.ppf(0.975, n - 1) * np.std(ratios, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    above, below = np.mean(costs, axis=0)
    interval = {"ratio": math.exp(mean), "low": math.exp(mean - half), "high": math.exp(mean + half)}
    counts = {"pairs": n, "apart": apart}
    return interval | counts | {"cost": float(above), "cost_below": float(below), "nll": float(np.mean(lowest))}


def _levels(both: Sequence[Sequence[Mapping[str, float]]]) -> np.ndarray:
    """Where two trainings are compared, the lowest first."""
    lowest = max(min(record["nll_test"] for record in records) for records in both)
    highest = min(records[0]["nll_test"] for records in both)
    return np.linspace(lowest, (lowest + highest) / 2, LEVELS) if highest > lowest else np.array([lowest])


def cost_at(records: Sequence[Mapping[str, float]], level: float, metric: str) -> float:
    """A cost where the test NLL first comes down to a level, interpolated linearly between records.

    Raises:
        ValueError: when it never does.
    """
    reached = next((i for i, record in enumerate(records) if record["nll_test"] <= level), None)
    if reached is None:
        raise ValueError(f"no record has an NLL of {level} or less")
    if reached == 0:
        return records[0][metric]
    before, after = records[reached - 1 : reached + 1]
    return float(np.interp(-level, [-before["nll_test"], -after["nll_test"]], [before[metric], after[metric]]))
