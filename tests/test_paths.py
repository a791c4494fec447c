"""Paths from base to data of flows of any composition, against closed forms and against the one solve of one ODE."""

import math

import pytest
import torch
from fields import Linear

from anode import Field, InputError, MLPField, Solver
from cnf import (
    Compose,
    Continuous,
    Dequantize,
    Flow,
    LiftedFlow,
    Logit,
    Mixture,
    Multiscale,
    Normal,
    PathOptions,
    Planar,
    Squeeze,
    Standardize,
    density_model,
)

TIGHT = Solver(rtol=1e-10, atol=1e-10)
TIMES = [0.0, 0.3, 1.0]


class Growth(Field):
    """dx/dt = r x, of any shape."""

    def __init__(self, rate):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(rate))

    def forward(self, t, x, c=None):
        return self.rate * x


def growth(rate):
    return Continuous(Growth(rate), TIGHT)


def scales(first, second, third):
    """Images at two scales: ODEs of such rates before and after the squeeze, and at the smaller scale."""
    larger = Compose([growth(first), Squeeze(), growth(second)])
    return Flow(Multiscale([larger, growth(third)]), Normal((1, 4, 4)))


def test_one_ode_takes_the_same_path_by_one_solve_and_by_many(float64):
    x = torch.randn(500, 2) * 7 + 3
    flow = density_model((2,), hidden=(16, 16), solver=TIGHT, data=x)
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    z = flow.base.sample(10)
    each = torch.stack([flow.transform.decode(z, path=PathOptions(until=time)) for time in TIMES])
    torch.testing.assert_close(flow.trajectory(z, TIMES), each, rtol=1e-7, atol=1e-7)
    by_inverse = [flow.transform.inverse(z, path=PathOptions(until=time)).point for time in TIMES]
    torch.testing.assert_close(torch.stack(by_inverse), each, rtol=1e-7, atol=1e-7)


@torch.no_grad()
def test_several_scales_grow_at_their_rates(float64):
    rates = 0.5, -1.0, 2.0
    flow, still = scales(*rates), scales(0.0, 0.0, 0.0)
    z = flow.base.sample(5)
    finished, rest = z.flatten(1).chunk(2, 1)
    for time, x in zip(TIMES, flow.trajectory(z, TIMES), strict=True):
        grown = [finished * math.exp(time * sum(rates[:2])), rest * math.exp(time * sum(rates))]
        torch.testing.assert_close(x, still.decode(torch.cat(grown, 1).view_as(z)), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(flow.encode(flow.decode(z)), z, rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_nothing_moves_without_a_field(float64):
    flow = scales(0.0, 0.0, 0.0)
    z = flow.base.sample(5)
    path = flow.trajectory(z, TIMES)
    assert torch.equal(path, path[:1].expand_as(path))
    assert torch.equal(path[0].flatten(1).sort(1).values, z.flatten(1).sort(1).values)  # a permutation


@torch.no_grad()
def test_several_odes_run_at_the_same_time(float64):
    fields = [Linear(torch.randn(2, 2) / 2, torch.randn(2)) for _ in range(2)]
    between = Standardize((2,)).fit(torch.randn(9, 2) * 3 + 1)
    flow = Flow(Compose([Continuous(fields[0], TIGHT), between, Continuous(fields[1], TIGHT)]), Normal((2,)))
    z = flow.base.sample(5)
    for time, x in zip(TIMES, flow.trajectory(z, TIMES), strict=True):
        expected = fields[0].solution(between.decode(fields[1].solution(z, time)), time)
        torch.testing.assert_close(x, expected, rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_the_density_on_the_way_is_that_of_the_points_there(float64):
    field = Linear(torch.randn(2, 2), torch.randn(2))
    flow, time = Flow(Continuous(field, TIGHT), Normal((2,))), 0.4
    shift = field.solution(torch.zeros(1, 2), time)[0]
    matrix = (field.solution(torch.eye(2), time) - shift).T
    x = torch.randn(5, 2)
    found = flow.elbo_on_path(x, path=PathOptions(until=time)).value
    expected = torch.distributions.MultivariateNormal(shift, matrix @ matrix.T).log_prob(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "flow",
    [
        scales(0.5, -1.0, 2.0),
        Flow(Compose([Logit(), growth(0.3), growth(0.2)]), Mixture((3,))),
        LiftedFlow(Dequantize(17), Flow(Compose([Logit(), growth(0.3), growth(0.2)]), Normal((1, 2, 2)))),
        Flow(Planar(2, 3), Normal((2,))),
    ],
    ids=["multiscale", "two ODEs", "lifted", "planar"],
)
def test_paths_end_at_the_samples(flow):
    torch.manual_seed(1)
    paths = flow.sample_paths(4, TIMES)
    torch.manual_seed(1)
    torch.testing.assert_close(paths[-1], flow.sample(4))


def test_paths_hold_no_graph():
    assert not scales(0.5, -1.0, 2.0).sample_paths(2, TIMES).requires_grad


def test_sampling_several_scales_spares_the_divergence(monkeypatch):
    monkeypatch.setattr("cnf.continuous.exact", None)
    flow = scales(0.5, -1.0, 2.0)
    flow.sample(3)
    flow.encode(torch.randn(3, 1, 4, 4))


def test_parts_look_inside_what_is_composed():
    inside = Multiscale([Continuous(MLPField(2))])
    with pytest.raises(InputError, match="no single path"):
        Flow(Compose([inside, Continuous(MLPField(2))]), Normal((2,))).parts()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": 1.5}, r"until=1.5 must lie in \[0, 1\]"),
        ({"until": math.nan}, "until=nan"),
        ({"until": 0.2, "steer": 0.3}, r"steer=0.3 must lie in \[0, 0.2\)"),
    ],
)
def test_times_outside_are_named(options, message):
    with pytest.raises(InputError, match=message):
        PathOptions(**options)
