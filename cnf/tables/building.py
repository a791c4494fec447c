"""Build a density of a table from the kinds of its columns, which also rebuilds a stored one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from anode import MLPField
from anode.errors import InputError, config_of
from anode.inputs import to_tensor
from anode.units import to_shares
from cnf.bases import Normal
from cnf.continuous import Continuous
from cnf.flow import Density, Flow
from cnf.models import DensityConfig, density_model
from cnf.tables.categories import Categories
from cnf.tables.columns import Column, Encoded, encode, flow_features, given_features
from cnf.tables.masks import MaskedField, Trend, WhitenPresent
from cnf.tables.table_density import TableDensity
from cnf.transforms import Compose


def table_model(
    columns: Sequence[Column | Mapping[str, Any]],
    rows: Any = None,
    *,
    given: Sequence[Column | Mapping[str, Any]] = (),
    given_rows: Any = None,
    weights: Any = None,
    config: DensityConfig | None = None,
    **values: Any,
) -> TableDensity:
    """Build a density of a table: scales and categories fitted to rows, then a flow of the numbers, yet untrained.

    Args:
        columns: of the table, in order, or their plain values.
        rows: training rows (N, D), see :class:`TableDensity`; without them, a density to load weights into.
        given: columns of the contexts of a conditional density.
        given_rows: contexts (N, K) of the rows.
        weights: relative weights (N,) of the rows in all moments and for categories; equal if omitted.
        config: the description of the flow.
        values: fields of :class:`DensityConfig`, in place of ``config``.

    Raises:
        InputError: for a flow that cannot leave numbers out, if columns have atoms or gaps.

    Example:
        >>> import torch
        >>> columns = [Column("size"), Column("colour", "category", ("blue", "red"))]
        >>> rows = torch.stack([torch.randn(100), torch.randint(2, (100,))], 1)
        >>> model = table_model(columns, rows, hidden=(16, 16))
        >>> model.log_prob(rows).shape, model.sample(3).shape
        (torch.Size([100]), torch.Size([3, 2]))
    """
    config = config_of(DensityConfig, config, values)
    columns, given = ([each if isinstance(each, Column) else Column(**each) for each in of] for of in (columns, given))
    if rows is not None:
        rows = to_tensor("rows", rows).double()
        weights = None if weights is None else to_shares(weights, len(rows))
        columns = [column.fitted(cells, weights) for column, cells in zip(columns, rows.T, strict=True)]
    if given and given_rows is not None:
        given_rows = to_tensor("given_rows", given_rows).double()
        given = [column.fitted(cells, weights) for column, cells in zip(given, given_rows.T, strict=True)]
    discrete, numbers = [c.states for c in columns if c.states > 1], [c for c in columns if not c.is_category]
    features = sum(column.num_features + (not column.is_category) for column in given)
    categories = Categories(discrete, features) if discrete else None
    encoded = seen = None
    if rows is not None:
        encoded = encode(columns, rows)
        given_c = given_features(given, given_rows) if given else None
        seen = flow_features(columns, encoded.states, given_c, encoded.y)
        if categories is not None:
            categories.fit(encoded.states, given_c, weights)
    masked = any(column.states > 1 for column in numbers)
    context = sum(column.num_features for column in columns) + features + masked * len(numbers)
    flow = _flow(len(numbers), context, masked, config, encoded, seen, weights) if numbers else None
    model = TableDensity(columns, given, categories, flow)
    model.description = config
    return model


def _flow(
    dim: int,
    context: int,
    masked: bool,
    config: DensityConfig,
    encoded: Encoded | None,
    features: Tensor | None,
    weights: Tensor | None,
) -> Density:
    """Build the flow of numbers, fitted to rows and the features of their contexts."""
    for name in ("residual_steps", "extra"):
        if masked and getattr(config, name):
            raise InputError(
                f"{name}={getattr(config, name)} is not for tables with atoms or missing cells, whose flow leaves "
                "numbers out: omit it"
            )
    if masked and (config.base != "normal" or config.blocks > 1):
        raise InputError("tables with atoms or missing cells need one ODE and base='normal': omit base and blocks")
    y, trend = None if encoded is None else encoded.y, Trend(dim, context, masked)
    if encoded is not None and features is not None and not config.extra:
        y = trend.double().fit(encoded.y, encoded.present, features, weights).encode(encoded.y, features)
        trend.to(torch.get_default_dtype())
    if not masked:
        flow = density_model((dim,), y, weights=weights, context=context, config=config)
        if context and not config.extra:  # which lifts and mixtures of flows do without
            assert isinstance(flow, Flow), "without augmentation"
            assert isinstance(flow.transform, Compose), "of several parts"
            flow.transform = Compose([trend, *flow.transform.transforms])
        return flow
    config.validate((dim,), context)
    whiten = WhitenPresent(dim)
    if encoded is not None and y is not None:
        whiten.fit(y, encoded.present, weights)
    field = MLPField(dim, config.hidden, config.activation, config.time, context, zero_init=True)
    ode = Continuous(MaskedField(field, dim), config.solver, config.divergence, config.probes, config.noise)
    flow = Flow(Compose([trend, whiten, ode]), Normal((dim,)))
    flow.description, flow.context = config, context
    return flow
