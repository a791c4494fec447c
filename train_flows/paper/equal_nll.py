"""What two trainings cost where they are equally good."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from train_flows.paper.outcomes import Outcome


def compared(pairs: Sequence[tuple[Outcome, Outcome]], metric: str) -> dict[str, float]:
    """A cost of some trainings over that of others, for each pair at the lowest test NLL that both reach.

    Args:
        pairs: with ``nll_test`` and the metric in their records.
        metric: such as ``"nfe_sample_1e-07"``.

    Returns:
        ``ratio``, its mean over the pairs, with ``interval``, half the width of its 95% interval by Student's t (NaN
        for a single pair); and the means ``cost``, ``cost_below`` and ``nll`` behind it.
    """
    levels = [max(_lowest(one), _lowest(other)) for one, other in pairs]
    found = [[cost_at(each.records, level, metric) for each in pair] for pair, level in zip(pairs, levels, strict=True)]
    costs, costs_below = np.array(found).T
    ratios, n = costs / costs_below, len(found)
    half = stats.t.ppf(0.975, n - 1) * ratios.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
    means = {"ratio": ratios, "interval": half, "cost": costs, "cost_below": costs_below, "nll": levels}
    return {name: float(np.mean(values)) for name, values in means.items()}


def _lowest(outcome: Outcome) -> float:
    return min(record["nll_test"] for record in outcome.records)


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
