"""Programs that train, evaluate and sample: ``train-flows COMMAND``; and the density of a table as an estimator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train_flows.estimator import TableDensityEstimator as TableDensityEstimator


def __getattr__(name: str) -> Any:
    """Import the estimator when it is first used: torch takes seconds, which ``--help`` need not wait for."""
    if name != "TableDensityEstimator":
        raise AttributeError(f"module {__name__!r} does not have {name!r}")
    from train_flows import estimator

    return getattr(estimator, name)
