"""Contexts in any units: standardised once for every use, stored with the model, and a warning where they are not."""

import math
import warnings

import pytest
import torch
from fields import wild

from anode import InputError, MLPField, Solver
from cnf import Continuous, Flow, FlowMatching, MaximumLikelihood, Normal, density_model, load, save
from train_flows.density import build
from train_flows.density import load as load_data
from train_flows.settings import DensitySettings

UNITS = [(0.0, 1e6), (1e3, 1.0), (0.0, 1e-4), (1.7e9, 600.0)]  # offset and scale; the last are times in seconds
COARSE = Solver("rk4", step_size=0.5)
DENSITIES = {
    "flow": {"shape": 2},
    "blocks": {"shape": 2, "blocks": 2},
    "lifted": {"shape": 2, "extra": 1, "posterior": "learned"},
    "mixture": {"shape": 2, "extra": 3, "augmentation": "categorical"},
    "discrete mixture": {"shape": (1, 2, 2), "levels": 4, "extra": 2, "augmentation": "categorical"},
    "scales": {
        "shape": (1, 8, 8), "field": "stack", "multiscale": True, "divergence": "hutchinson", "solver": COARSE
    },
}  # fmt: skip


def build_for(options, c, x):
    torch.manual_seed(0)
    return wild(density_model(data=x, context_data=c, hidden=(6, 6), **options))


@pytest.mark.parametrize("name", DENSITIES)
def test_the_units_of_contexts_do_not_matter(float64, name):
    options = DENSITIES[name]
    shape = (2,) if options["shape"] == 2 else options["shape"]
    x, u = torch.randint(4, (30, *shape)).double(), torch.randn(30, 2)

    def figures(offset, scale):
        c = offset + scale * u
        model = build_for(options, c, x)
        uses = [
            lambda: model.log_prob(x[:6], c[:6]),
            lambda: model.elbo(x[:6], c[:6]).value,
            lambda: MaximumLikelihood(model)((x, c)),
            lambda: model.sample(6, c[:6]),
            lambda: model.sample(6, c[0]),
            lambda: model.sample_paths(6, [0.0, 0.5, 1.0], c[:6]),
            lambda: model(c[:6]).log_prob(x[:6]),
            lambda: (
                model.round_trip(x[:6] if options.get("levels") is None else x[:6] / 4 + 0.1, c[:6])
                if name != "lifted"
                else torch.zeros(())
            ),
        ]
        if name not in ("blocks", "scales"):
            uses.append(lambda: FlowMatching(model)((x, c)))
        if isinstance(model, Flow):
            uses += [lambda: model.encode(x[:6], c[:6]), lambda: model.rsample_and_log_prob(6, c[:6])[1]]
            uses += [lambda: model.trajectory(torch.ones(6, *shape), [0, 1], c[:6]), lambda: model.rsample(6, c[:6])]
        found = []
        for use in uses:
            torch.manual_seed(1)
            found.append(use())
        return found

    expected = figures(0.0, 1.0)
    for offset, scale in UNITS:
        for found, known in zip(figures(offset, scale), expected, strict=True):
            torch.testing.assert_close(found, known, rtol=1e-4, atol=1e-4)


def test_moments_of_contexts_are_stored_and_differences_of_large_numbers_survive(tmp_path):
    """Contexts in float64 are standardised before they are rounded to float32, in which 1.7e9 has steps of 128."""
    x, c = torch.randn(500, 2), 1.7e9 + 600 * torch.rand(500, 1, dtype=torch.float64)
    model = build_for({"shape": (2,)}, c.numpy(), x)
    assert model.context == 1
    save(model, tmp_path)
    loaded = load(tmp_path)
    x, c = x[:50], c[:50]
    assert torch.equal(loaded.log_prob(x, c), model.log_prob(x, c))
    assert torch.equal(loaded.context_scale.mean, model.context_scale.mean)
    near = build_for({"shape": (2,)}, (c - 1.7e9).float(), x)
    assert len(model.sample(50, c).unique(dim=0)) == 50
    assert len({tuple(row) for row in model.prepare_context(c, 50).tolist()}) == 50
    assert near.context_scale.scale.item() == pytest.approx(model.context_scale.scale.item(), rel=0.2)


def test_gradients_reach_contexts_in_their_units(float64):
    x, c = torch.randn(40, 2), 1000 + 50 * torch.randn(40, 2)
    model = build_for({"shape": (2,)}, c, x)
    c = c[:3].requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob(x[:3], c).sum(), c)
    step = 0.01 * torch.randn(3, 2)
    change = (model.log_prob(x[:3], c + step) - model.log_prob(x[:3], c - step)).sum() / 2
    torch.testing.assert_close((gradient * step).sum(), change, rtol=1e-2, atol=1e-6)


def test_indicators_of_classes_stay_as_they_are():
    model = density_model(2, context=3)
    c = torch.eye(3)
    assert torch.equal(model.prepare_context(c, 3), c)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.log_prob(torch.randn(300, 2), torch.eye(3)[[0] * 299 + [1]])
        model.sample(3, c[0])


@pytest.mark.parametrize(("offset", "scale"), UNITS)
@pytest.mark.parametrize(
    "model",
    [density_model(2, context=1), Flow(Continuous(MLPField(2, context=1)), Normal(2))],
    ids=["described", "composed"],
)
def test_contexts_far_from_unit_scale_without_moments_warn_once(model, offset, scale):
    x, u = torch.randn(100, 2), torch.randn(100, 1)
    with pytest.warns(UserWarning, match="contexts are far from unit scale.*context_data=c") as caught:
        model.log_prob(x, offset + scale * u)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.log_prob(x, u)
        model.log_prob(x, 1 + 0.01 * u)  # a narrow range within unit scale
        model.log_prob(x, torch.zeros(100, 1))
        MaximumLikelihood(model)((x, offset + scale * u))  # values are not looked at in training
        density_model(2, context_data=offset + scale * u).log_prob(x, offset + scale * u)


def test_the_number_of_contexts_follows_from_the_data():
    assert density_model(2, context_data=torch.randn(9, 3)).context == 3
    assert density_model(2, context=(3,), context_data=torch.randn(9, 3)).context == 3
    assert density_model(2, context=3.0).context == 3
    assert density_model(2).context == 0
    with pytest.raises(InputError, match=r"context=2\.5 must be a whole number"):
        density_model(2, context=2.5)


def test_programs_standardise_columns_and_leave_classes(tmp_path):
    table = tmp_path / "table.csv"
    rows = [f"{math.sin(i)},{math.cos(3 * i)},{1000 + i % 17}" for i in range(200)]
    table.write_text("\n".join(["a,b,pressure", *rows]))
    settings = DensitySettings(data={"source": str(table), "given": ("pressure",)})
    dataset = load_data(settings)
    scale = build(settings, dataset).context_scale
    assert scale.mean.item() == pytest.approx(dataset.train.c.mean().item())
    assert scale.scale.item() == pytest.approx(dataset.train.c.std(correction=0).item())
    settings = DensitySettings(data={"source": "digits", "conditional": True})
    scale = build(settings, load_data(settings)).context_scale
    assert torch.equal(scale.mean, torch.zeros(10))
    assert torch.equal(scale.scale, torch.ones(10))
