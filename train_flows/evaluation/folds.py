"""How far residual steps fold space: where they do, the likelihood of a density is not exact.

With 0 in place of negative determinants, a density of residual steps integrates to 1 + m, where m is the mean number of
images with a negative determinant that a base point has. Divided by its integral, the density has an NLL larger by

    log(1 + m)

A base point with such an image has two or more others with positive ones. It shows in two ways: a sample, which is one
of its images, may have a negative determinant, at most in a share m; and a point of the data, mapped to the base and
back, may return as another one. If the data follow the density, the share that returns as another point is m / (1 + m),
where a return with a negative determinant counts half, since both of two points return as it. The larger estimate is
taken for m.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cnf import Density, LiftedFlow, MixtureFlow, ResidualSteps, watch_determinants
from cnf.batches import split_batch
from cnf.tables import TableDensity
from cnf.tables.columns import encode
from train_flows.data import Split
from train_flows.evaluation import to_model
from train_flows.run import distributed

FOLDED = "folded"  # kind of a likelihood that is neither exact nor a bound
POINTS = 1000  # of the data, and samples
APART = 1e-2  # standard deviations of the base between a point and its return that rounding does not explain
WIDE = 3.0  # standard deviations of the noise that is added to points, for a look beyond the data


def has_residual_steps(model: Density) -> bool:
    """Return True if a model has residual steps."""
    return any(isinstance(part, ResidualSteps) for part in model.modules())


@torch.no_grad()
def measure_folds(model: Density, data: Split) -> dict[str, Any]:
    """Measure the folds of residual steps at up to 1,000 points of the data, at samples, and far from both.

    Returns:
        ``least_data``, ``least_samples`` and ``least_wide``, the least determinants of a step at points of the data, at
        samples, and at points of the data with normal noise of three standard deviations, which are far from both;
        ``negative_data`` and ``negative_samples``, the shares of points with a negative determinant, of samples also
        those whose inverse is not found; ``returned``, the
        share of points of the data that return as another point, or not at all; ``mass``, the estimate of m. Points
        are taken in the coordinates of the likeliest component of a mixture.
    """

    def measure(rows: slice) -> dict[str, Any]:
        x, c = to_model(model, split_batch(data.batch(rows)))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            local, context = _coordinates(model, x, c)
            steps = _residual_steps(model)
            base, _, _ = steps(local, context)
            back, solved = steps.try_decode(base, context)
            sampled, drawn = steps.try_decode(torch.randn_like(base), context)
            wide = local + WIDE * local.std(0) * torch.randn_like(local)
            least = {
                name: _least(steps, points, context)
                for name, points in (("data", local), ("samples", sampled), ("wide", wide))
            }
        returned = (~solved | ((back - local).flatten(1).norm(dim=1) > APART)).double()
        others = torch.where(solved & (_least(steps, back, context) < 0), returned / 2, returned).sum().item()
        negative = {"data": least["data"] < 0, "samples": (least["samples"] < 0) | ~drawn}
        shares = {name: where.double().mean().item() for name, where in negative.items()}
        return {
            **{f"least_{name}": each.min().item() for name, each in least.items()},
            **{f"negative_{name}": share for name, share in shares.items()},
            "returned": returned.mean().item(),
            "mass": max(others / max(1.0, len(x) - others), *shares.values()),
        }

    return distributed.shared_out([slice(POINTS)], measure)[0]


def _residual_steps(model: Density) -> ResidualSteps:
    steps = model.split()[1]
    assert isinstance(steps, ResidualSteps), "as the caller knows"
    return steps


def _coordinates(model: Density, x: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return points, with one draw of augmented variables, as residual steps take them, and their contexts."""
    if isinstance(model, LiftedFlow):
        x, c = model.prepare("x", x, c)
        return _coordinates(model.flow, model.lift(x, c).point, c)
    if isinstance(model, TableDensity):
        x, c = model.prepare("x", x, c)
        rows = encode(model.columns, x)
        assert model.flow is not None, "it has residual steps"
        return _coordinates(model.flow, rows.y.to(model.like), model.features(rows.states, c))
    if isinstance(model, MixtureFlow):
        return model.likeliest_component(x, c)[1:]
    x, c = model.prepare("x", x, c)
    return model.split()[0].encode(x, c), c


def _least(steps: ResidualSteps, x: Tensor, c: Tensor | None) -> Tensor:
    """Return the least determinant of a step at each point, (B,)."""
    with watch_determinants() as found:
        steps(x, c)
    return torch.cat(found).amin(1)
