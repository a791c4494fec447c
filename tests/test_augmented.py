"""Augmented densities against closed forms, quadrature, explicit sums and their own samplers."""

import math

import pytest
import torch
from fields import wild
from sklearn.mixture import GaussianMixture
from torch import nn

from anode import ConvField, FrozenField, InputError, MLPField, SecondOrderField, Solver, count_evals
from cnf import (
    CategoricalFlow,
    Continuous,
    Dequantize,
    Flow,
    FlowMatching,
    LiftedFlow,
    Lifts,
    MaximumLikelihood,
    Mixture,
    Normal,
    PathOptions,
    Standardize,
    Through,
    VariationalAugment,
    WarmedUp,
    density_model,
    exact,
    hutchinson,
)
from cnf.divergence import exact_by_pullbacks, probe_noise
from cnf.transforms import Transform, Transport

VARIANTS = {
    "joint": {"extra": 1},
    "joint, learned": {"extra": 1, "posterior": "learned"},
    "joint, conditional base": {"extra": 1, "base": "conditional"},
    "joint, mixture": {"extra": 1, "base": "mixture", "components": 3},
    "frozen": {"extra": 1, "augmentation": "frozen"},
    "frozen, conditional base": {"extra": 1, "augmentation": "frozen", "base": "conditional", "posterior": "learned"},
    "momentum": {"extra": 1, "augmentation": "momentum"},
    "categorical": {"extra": 3, "augmentation": "categorical"},
    "categorical, correlated": {"extra": 3, "augmentation": "categorical", "correlated": True},
    "copies": {"extra": 3, "augmentation": "copies"},
    "categorical, fitted": {"extra": 3, "augmentation": "categorical", "posterior": "fitted"},
}


def line_model(options, data=None):
    """A density of one dimension whose parameters are no longer those of the start."""
    model = density_model((1,), hidden=(6, 6), solver=Solver(rtol=1e-6, atol=1e-6), data=data, **options)
    for name, parameter in model.named_parameters():
        if "logits" not in name and "log_scales" not in name:
            nn.init.normal_(parameter, std=0.1 if "moments" in name else 0.4)
    return model


@pytest.fixture(params=VARIANTS)
def variant(request, float64):
    return line_model(VARIANTS[request.param])


def on_a_grid(model, axis):
    """The density of x on a grid of the line, augmented dimensions integrated out by quadrature."""
    if isinstance(model, CategoricalFlow):
        return model.log_prob(axis[:, None]).exp()
    step = (axis[1] - axis[0]).item()
    joint = model.flow.log_prob(torch.cartesian_prod(axis, axis)).exp().view(len(axis), -1)
    return joint.sum(1) * step


@torch.no_grad()
def test_densities_integrate_to_one_and_agree_with_their_samplers(variant):
    axis = torch.arange(-9, 9, 0.06)
    density = on_a_grid(variant, axis)
    assert density.sum().item() * 0.06 == pytest.approx(1, abs=2e-3)
    x, _ = variant.sample(20_000)[:, 0].sort()
    below = torch.cumsum(density, 0) * 0.06  # up to the end of a cell, half a step on
    shares = torch.searchsorted(x, axis + 0.03) / len(x)
    assert (shares - below).abs().max() < 0.013  # Kolmogorov and Smirnov: one sample in 500 is further off


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_log_densities_are_in_the_units_of_the_data(float64, name):
    """Importance weighting is unbiased for the density, whose integral over x is 1 wherever the data are."""
    model = line_model(VARIANTS[name], data=10 + 5 * torch.randn(400, 1))
    axis = torch.arange(-40, 60, 0.4)[:, None]
    density = model.log_prob(axis, samples=200) if model.kind == "bound" else model.log_prob(axis)
    assert density.exp().sum().item() * 0.4 == pytest.approx(1, abs=0.02)
    assert abs((density.exp() * axis[:, 0]).sum().item() * 0.4 - model.sample(20_000).mean().item()) < 0.4


@torch.no_grad()
@pytest.mark.parametrize("name", ["joint", "joint, conditional base", "frozen", "momentum"])
def test_importance_weighting_is_the_marginal_by_quadrature(float64, name):
    model = line_model(VARIANTS[name])
    x, axis = torch.linspace(-1.5, 1.5, 7)[:, None], torch.arange(-8, 8, 0.04)
    pairs = torch.cat([x.repeat_interleave(len(axis), 0), axis.repeat(len(x))[:, None]], 1)
    marginal = (model.flow.log_prob(pairs).view(len(x), -1).logsumexp(1) + math.log(0.04)).detach()
    value, error = model.log_prob_with_error(x, samples=40_000)
    assert error.max() < 0.02
    assert ((value - marginal).abs() < torch.clamp(4 * error, min=5e-3)).all()
    assert (value - marginal).mean().abs() < 5e-3


@torch.no_grad()
def test_the_standard_error_is_that_of_many_repetitions(float64):
    model = line_model(VARIANTS["joint"])
    x = torch.tensor([[0.3], [-1.0]])
    values, errors = zip(*(model.log_prob_with_error(x, samples=200) for _ in range(60)), strict=True)
    spread = torch.stack(values).std(0)
    torch.testing.assert_close(torch.stack(errors).mean(0), spread, rtol=0.35, atol=0)


@torch.no_grad()
def test_the_bound_rises_with_the_draws(float64):
    model = line_model(VARIANTS["joint, learned"])
    x = torch.tensor([[0.5]]).expand(3000, 1)
    means = [model.log_prob(x, samples=k).mean().item() for k in (1, 4, 32)]
    assert means[0] < means[1] < means[2]


class _Correlated(Transform):
    """To independent normal numbers from a pair of unit variances and a correlation."""

    def __init__(self, correlation):
        super().__init__()
        self.factor = torch.linalg.cholesky(torch.tensor([[1.0, correlation], [correlation, 1.0]]))

    def forward(self, x, c=None, path=None):
        z = torch.linalg.solve_triangular(self.factor, x.T, upper=False).T
        return Transport(z, -self.factor.diagonal().log().sum().expand(len(x)))


def test_the_true_posterior_makes_the_bound_exact(float64):
    """Of a pair of correlated normal numbers, q(a given x) = N(r x, 1 - r^2)."""
    correlation = 0.8
    lift = VariationalAugment(1, "learned", (1,))
    linear = nn.Linear(1, 2)
    linear.weight.data = torch.tensor([[correlation], [0.0]])
    linear.bias.data = torch.tensor([0.0, math.log(1 - correlation**2) / 2])
    lift.moments = nn.Sequential(linear)
    model = LiftedFlow(lift, Flow(_Correlated(correlation), Normal((2,))))
    x = torch.randn(100, 1)
    torch.testing.assert_close(model.elbo(x), Normal((1,)).log_prob(x))
    value, error = model.log_prob_with_error(x, samples=5)
    torch.testing.assert_close(value, Normal((1,)).log_prob(x))
    assert error.max() < 1e-12


def test_the_divergence_of_posterior_and_base(float64):
    lift = VariationalAugment(2, "learned", (3,))
    assert not VariationalAugment(2)(torch.randn(4, 3)).kl.any()
    assert not lift(torch.randn(4, 3)).kl.any()  # it starts at N(0, I)
    wild(lift)
    x = torch.randn(1, 3).expand(40_000, 3)
    mean, log_scale = lift.moments(x[:1]).chunk(2, 1)
    known = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, log_scale.exp()), torch.distributions.Normal(0.0, 1.0)
    ).sum()
    kl = lift(x).kl
    assert abs(kl.mean() - known) < 4 * kl.std() / 200


def test_the_learned_posterior_is_that_of_its_network(float64):
    lift = wild(VariationalAugment(2, "learned", (3,)))
    y, log_q, _ = lift(x := torch.randn(6, 3))
    mean, log_scale = lift.moments(x).chunk(2, 1)
    expected = torch.distributions.Normal(mean, log_scale.exp()).log_prob(y[:, 3:]).sum(1)
    torch.testing.assert_close(log_q, expected)
    assert torch.equal(lift.project(y), x)


@pytest.mark.parametrize("posterior", ["normal", "learned"])
def test_images_gain_channels(float64, posterior):
    lift = VariationalAugment(2, posterior, (1, 4, 5))
    y, log_q, _ = lift(x := torch.randn(6, 1, 4, 5))
    assert y.shape == (6, 3, 4, 5)
    assert torch.equal(lift.project(y), x)
    torch.testing.assert_close(log_q, Normal((2, 4, 5)).log_prob(y[:, 1:]))


class TestFields:
    T = torch.tensor(0.3)

    @pytest.mark.parametrize("hidden", [(5, 4), (5, 4, 3)])
    @pytest.mark.parametrize("make", ["frozen", "momentum"])
    def test_divergences_are_the_traces_of_the_jacobian(self, float64, hidden, make):
        if make == "frozen":
            field = FrozenField(MLPField(3, hidden, context=3), 3)
        else:
            field = SecondOrderField(MLPField(3, hidden, context=3))
        wild(field)
        x = torch.randn(4, 6)
        jacobian = torch.autograd.functional.jacobian(lambda x: field(self.T, x).sum(0), x).transpose(0, 1)
        trace = jacobian.diagonal(dim1=1, dim2=2).sum(1)
        own = jacobian[:, 3:, 3:] if make == "momentum" else jacobian[:, :3, :3]
        torch.testing.assert_close(trace, own.diagonal(dim1=1, dim2=2).sum(1))
        rates = exact(field, self.T, x, frobenius=True)
        torch.testing.assert_close(rates.divergence, trace)
        torch.testing.assert_close(rates.frobenius, jacobian.square().sum((1, 2)))
        torch.testing.assert_close(exact_by_pullbacks(field, self.T, x).divergence, trace)

    def test_a_frozen_image_is_the_context_of_convolutions(self, float64):
        field = wild(FrozenField(ConvField(1, 4, "tanh", context=2), 2))
        y = torch.randn(3, 3, 4, 4)
        velocity, divergence = field.velocity_and_divergence(self.T, y)
        assert not velocity[:, 1:].any()
        expected = exact_by_pullbacks(field, self.T, y)
        torch.testing.assert_close(velocity, expected.velocity)
        torch.testing.assert_close(divergence, expected.divergence)

    def test_frozen_dimensions_join_the_context(self, float64):
        field = wild(FrozenField(MLPField(2, (5,), context=3), 1))
        y, c = torch.randn(4, 3), torch.randn(4, 2)
        expected = field.field(self.T, y[:, :2], torch.cat([y[:, 2:], c], 1))
        torch.testing.assert_close(field(self.T, y, c)[:, :2], expected)

    def test_probes_miss_what_has_no_diagonal(self, float64):
        """An estimate that spares the zero part of the diagonal is unbiased, and of less variance."""
        field = wild(FrozenField(MLPField(2, (8, 8), context=4), 4))
        ode = Continuous(field, divergence="hutchinson")
        y = torch.randn(1, 6).expand(4000, 6)
        spared = ode._rates(y, None, False)(self.T, y).divergence
        full = hutchinson(field, self.T, y, probe_noise(y)).divergence
        known = exact(field, self.T, y[:1]).divergence
        assert abs(spared.mean() - known) < 4 * spared.std() / math.sqrt(4000)
        assert spared.std() < full.std()

    def test_bad_fields_are_named(self):
        with pytest.raises(InputError, match="extra=0"):
            FrozenField(MLPField(2), 0)
        with pytest.raises(InputError, match="holds nothing beside 2"):
            FrozenField(MLPField(2, context=2), 2)(self.T, torch.randn(3, 2))


def test_frozen_dimensions_do_not_dilute_the_error(float64):
    """A solve takes the steps of the same flow with a context, however many dimensions stand still."""
    inner = wild(MLPField(2, (16, 16), context=30))
    y = torch.randn(50, 32)
    with count_evals() as of_frozen:
        z, log_det, _ = Continuous(FrozenField(inner, 30), extra=30)(y)
    with count_evals() as of_context:
        expected = Continuous(inner)(y[:, :2], y[:, 2:])
    assert of_frozen.forward == of_context.forward
    torch.testing.assert_close(z[:, :2], expected.point)
    torch.testing.assert_close(log_det, expected.log_det)


class TestCategorical:
    @pytest.fixture
    def model(self, float64):
        model = density_model((2,), hidden=(6, 6), extra=3, augmentation="categorical", context=1)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.4)
        return model

    def test_the_density_is_the_explicit_sum(self, model):
        x, c = torch.randn(7, 2), torch.randn(7, 1)
        total = torch.zeros(7)
        for k in range(3):
            mean, scale = model.mixture.means[k], model.mixture.log_scales[k].exp()
            z, log_det, _ = model.ode((x - mean) / scale, torch.cat([torch.eye(3)[k].expand(7, 3), c], 1))
            log_normal = Normal((2,)).log_prob(z) + log_det - scale.log().sum()
            total = total + model.mixture.weights[k] * log_normal.exp()
        torch.testing.assert_close(model.log_prob(x, c), total.log(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.elbo(x, c), model.log_prob(x, c))

    def test_no_samples_have_no_log_density(self, model):
        assert model.log_prob(torch.randn(0, 2), torch.randn(0, 1)).shape == (0,)

    def test_copies_are_one_flow_at_places_and_scales(self, float64):
        model = density_model((2,), hidden=(8,), extra=3, augmentation="copies")
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.4)
        x, total = torch.randn(7, 2), torch.zeros(7)
        for k in range(3):
            mean, scale = model.mixture.means[k], model.mixture.log_scales[k].exp()
            z, log_det, _ = model.ode((x - mean) / scale)
            total = total + model.mixture.weights[k] * (Normal((2,)).log_prob(z) + log_det - scale.log().sum()).exp()
        torch.testing.assert_close(model.log_prob(x), total.log(), rtol=1e-5, atol=1e-5)

    def test_components_solved_apart_are_the_same(self, model, monkeypatch):
        x, c = torch.randn(7, 2), torch.randn(7, 1)
        together = model.log_prob(x, c)
        monkeypatch.setattr("cnf.density.POINTS", 8)
        with count_evals() as nfe:
            apart = model.log_prob(x, c)
        assert nfe.solves == 3
        torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-4)

    def test_energies_are_means_over_the_components(self, model):
        x, c = torch.randn(5, 2), torch.randn(5, 1)
        shares = model.log_joint(x, c).softmax(0)
        path = PathOptions(("kinetic",))
        found = model.elbo_on_path(x, c, path).energies["kinetic"]
        alone = []
        for k in range(3):
            context = torch.cat([torch.eye(3)[k].expand(5, 3), c], 1)
            local = (x - model.mixture.means[k]) / model.mixture.log_scales[k].exp()
            alone.append(model.ode(local, context, path).energies["kinetic"])
        torch.testing.assert_close(found, (shares * torch.stack(alone)).sum(0), rtol=1e-4, atol=1e-5)

    def test_points_return(self, model):
        x, c = torch.randn(5, 2), torch.randn(5, 1)
        torch.testing.assert_close(model.returned(x, c), x, rtol=1e-3, atol=1e-3)

    def test_it_starts_as_the_mixture_of_the_data(self, float64):
        x = torch.cat([torch.randn(300, 2) * 0.3 + place for place in (-4.0, 4.0)])
        model = density_model((2,), extra=2, augmentation="categorical", data=x)
        normal = torch.distributions.Normal(torch.tensor([-4.0, 4.0])[:, None], 0.3)
        known = normal.log_prob(x[:, None, :]).sum(2).logsumexp(1) - math.log(2)
        assert abs(model.log_prob(x).mean() - known.mean()) < 0.05

    def test_flow_matching_starts_from_the_component_of_the_data(self, float64):
        x = torch.cat([torch.randn(300, 2) * 0.3 + place for place in (-4.0, 4.0)])
        model = density_model((2,), extra=2, augmentation="categorical", data=x)
        ode, local, _, c, _ = model.ends(x)
        assert model.paired
        torch.testing.assert_close(local.mean(0), torch.zeros(2), rtol=0, atol=0.05)  # each piece by its own measure
        torch.testing.assert_close(local.std(0), torch.ones(2), rtol=0, atol=0.05)
        assert torch.equal(c.argmax(1), model.log_joint(x).argmax(0))
        FlowMatching(model)(x).backward()
        assert ode.field.layers[-1].weight.grad.any()

    def test_one_component_a_sample_is_a_bound_whose_mean_is_known(self, float64):
        x = torch.cat([torch.randn(300, 2) + place for place in (-1.0, 1.0)])
        model = density_model((2,), hidden=(6, 6), extra=2, augmentation="categorical", posterior="fitted", data=x)
        wild(model.ode.field)
        nn.init.normal_(model.mixture.means, std=0.4)
        points = torch.tensor([[0.0, 0.0], [0.5, -0.2], [-0.3, 0.1]])
        shares = model.posterior.log_joint(model.parts()[0].encode(points)[:, None], slice(None)).softmax(1).T
        mean = (shares * (model.log_joint(points) - shares.log())).sum(0)
        drawn = torch.stack([model.elbo(points) for _ in range(3000)])
        assert ((drawn.mean(0) - mean).abs() < 4 * drawn.std(0) / math.sqrt(3000)).all()
        assert (mean < model.log_prob(points)).all()
        torch.testing.assert_close(
            MaximumLikelihood(model, samples=2000)(points), -model.log_prob(points).mean(), atol=0.03, rtol=0
        )
        assert not any(weight.requires_grad for weight in model.posterior.parameters())

    def test_estimates_are_refused(self):
        with pytest.raises(InputError, match="biased"):
            density_model((2,), extra=2, augmentation="categorical", divergence="hutchinson")
        model = density_model((2,), extra=2, augmentation="categorical")
        model.ode.divergence = "hutchinson"
        with pytest.raises(InputError, match="biased"):
            model.log_prob(torch.randn(3, 2))


class TestTraining:
    def test_draws_of_the_objective_are_those_of_the_bound(self, float64):
        model = line_model(VARIANTS["joint, learned"])
        x = torch.randn(30, 1)
        torch.manual_seed(3)
        loss = MaximumLikelihood(model, samples=8)(x)
        torch.manual_seed(3)
        torch.testing.assert_close(loss, -model.log_prob(x, samples=8).mean())
        loss.backward()
        assert all(parameter.grad.any() for parameter in model.lift.parameters())

    def test_contexts_are_repeated_with_their_samples(self, float64):
        model = density_model((2,), hidden=(6, 6), extra=1, context=1, data=torch.randn(50, 2))
        wild(model.flow.transform.field)
        x, c = torch.randn(6, 2), torch.randn(6, 1)
        torch.manual_seed(3)
        loss = MaximumLikelihood(model, samples=4)((x, c))
        torch.manual_seed(3)
        torch.testing.assert_close(loss, -model.log_prob(x, c, samples=4).mean())

    @pytest.mark.parametrize("samples", [1, 3])
    def test_warm_up_weighs_the_divergence_of_the_posterior(self, float64, samples):
        model = line_model(VARIANTS["joint, learned"])
        objective = MaximumLikelihood(model, samples=samples)
        x = torch.randn(20, 1)

        def loss(share):
            torch.manual_seed(3)
            return WarmedUp(objective)((share, x))

        torch.manual_seed(3)
        bound = model.elbo_on_path(x.repeat(samples, 1))
        weights = (bound.value + 0.75 * bound.kl).view(samples, -1)
        torch.testing.assert_close(loss(0.25), -(weights.logsumexp(0) - math.log(samples)).mean())
        plain = bound.value.view(samples, -1)
        torch.testing.assert_close(loss(1.0), -(plain.logsumexp(0) - math.log(samples)).mean())

    @pytest.mark.parametrize("name", ["joint, learned", "frozen", "frozen, conditional base"])
    def test_flow_matching_ends_where_the_field_can_lead(self, float64, name):
        model = line_model(VARIANTS[name])
        x = torch.randn(40, 1)
        _, y, z, c, kl = model.ends(x)
        assert y.shape == z.shape == (40, 2)
        assert c is None
        frozen = name.startswith("frozen")
        assert model.paired == frozen
        assert torch.equal(y[:, 1], z[:, 1]) == frozen
        assert kl.any() == ("learned" in name or "conditional" in name)
        torch.manual_seed(1)
        without = FlowMatching(model, kl=0.0)(x)
        torch.manual_seed(1)
        weighed = FlowMatching(model, kl=2.0)(x)
        torch.manual_seed(1)
        torch.testing.assert_close(weighed - without, 2 * model.ends(x).kl.mean())

    @pytest.mark.parametrize(
        "options",
        [
            {"augmentation": "categorical"},
            {"augmentation": "copies", "posterior": "fitted"},
            {"augmentation": "frozen", "base": "conditional"},
            {"augmentation": "frozen", "base": "mixture", "posterior": "learned"},
        ],
    )
    def test_matching_leaves_the_base_as_it_is(self, options):
        """It would make base and data alike, which leaves nothing to learn."""
        x = torch.randn(50, 2)
        model = density_model((2,), hidden=(8,), extra=2, data=x, **options)
        FlowMatching(model)(x).backward()
        flow = model.flow if isinstance(model, LiftedFlow) else model
        based = flow.mixture if isinstance(flow, CategoricalFlow) else flow.base
        assert all(parameter.grad is None for parameter in based.parameters())
        assert any(parameter.grad is not None for parameter in flow.parameters())

    @pytest.mark.parametrize("options", [{"interpolation": "variance-preserving"}, {"sigma": 0.5}, {}])
    def test_what_is_at_rest_is_matched_at_rest(self, options):
        model = density_model((2,), hidden=(8,), extra=1, augmentation="frozen")
        field, seen = model.flow.parts()[1].field, []
        before = field.forward
        field.forward = lambda t, y, c=None: seen.append(y) or before(t, y, c)
        torch.manual_seed(0)
        loss = FlowMatching(model, **options)(torch.zeros(4000, 2))
        torch.manual_seed(0)
        a = model.lift(torch.zeros(4000, 2)).point[:, 2:]
        assert torch.equal(seen[0][:, 2:], a)
        rate = math.pi**2 / 8 if "interpolation" in options else 1  # mean square of beta' z, all that there is to learn
        assert loss.item() == pytest.approx(rate, rel=0.1)

    def test_what_cannot_be_matched_is_refused(self):
        with pytest.raises(InputError, match="momentum"):
            FlowMatching(density_model((2,), extra=2, augmentation="momentum"))
        for augmentation in ("frozen", "categorical"):
            with pytest.raises(InputError, match="components"):
                FlowMatching(density_model((2,), extra=2, augmentation=augmentation), "optimal_transport")

    def test_draws_without_a_bound_are_refused(self):
        with pytest.raises(InputError, match="samples=2: the model has no bound"):
            MaximumLikelihood(density_model((2,)), samples=2)
        with pytest.raises(InputError, match="no bound: use"):
            MaximumLikelihood(density_model((2,), extra=1, divergence="hutchinson"), samples=2)


class TestDiscrete:
    @pytest.mark.parametrize("field", ["mlp", "conv"])
    @pytest.mark.parametrize(
        "options", [{"extra": 2}, {"extra": 2, "augmentation": "frozen"}, {"extra": 2, "augmentation": "categorical"}]
    )
    def test_images_are_dequantised_first(self, field, options):
        data = torch.randint(5, (60, 1, 3, 3))
        model = density_model((1, 3, 3), field=field, hidden=(8,), filters=4, levels=5, data=data, **options)
        assert model.kind == "bound"
        assert set(model.sample(20).unique().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}
        assert torch.isfinite(model.log_prob(data, samples=3)).all()
        MaximumLikelihood(model, samples=2)(data[:7]).backward()

    def test_composed_lifts_add_up(self, float64):
        standardize = Standardize((2,)).fit(torch.rand(50, 2))
        lift = Lifts([Dequantize(4), Through(standardize, (2,)), VariationalAugment(1)]).double()
        x = torch.randint(4, (30, 2))
        y, log_q, kl = lift(x)
        expected = 2 * math.log(4) + standardize.scale.log().sum() + Normal((1,)).log_prob(y[:, 2:])
        torch.testing.assert_close(log_q, expected)
        assert not kl.any()
        assert torch.equal(lift.project(y), x.double())


def test_no_more_points_than_fit_are_solved_together(float64, monkeypatch):
    model = line_model(VARIANTS["joint"])
    x = torch.randn(10, 1)
    with count_evals() as nfe:
        model.log_prob(x, samples=64)
    assert nfe.solves == 1
    for bound, most in (("POINTS", 100), ("NUMBERS", 105)):
        with monkeypatch.context() as patched, count_evals() as nfe:
            patched.setattr(f"cnf.density.{bound}", most)
            model.log_prob(x, samples=64)
        assert nfe.solves == 7  # ten draws at once, and four
        assert nfe.each == nfe.forward / 7


def test_paths_of_augmented_samples_are_projected():
    model = density_model((2,), extra=3)
    assert model.sample_paths(7, [0.0, 0.5, 1.0]).shape == (3, 7, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extra": -1}, "extra=-1"),
        ({"augmentation": "frozen"}, "extra=0 must be from 1"),
        ({"extra": 1, "augmentation": "zeros"}, "augmentation='zeros' is unknown"),
        ({"extra": 1, "posterior": "true"}, "posterior='true' is unknown"),
        ({"posterior": "learned"}, "posterior='learned' is of no use"),
        ({"extra": 2, "posterior": "fitted"}, "posterior='fitted' is of no use"),
        ({"extra": 2, "augmentation": "categorical", "posterior": "learned"}, "posterior='learned' is of no use"),
        ({"extra": 3, "augmentation": "momentum"}, "extra=3: momentum needs as many as the data have, 2"),
        ({"extra": 2, "augmentation": "momentum", "context": 1}, "without context"),
        ({"base": "conditional"}, "base='conditional' depends on augmented dimensions"),
        ({"extra": 2, "augmentation": "categorical", "base": "mixture"}, "drop base"),
        ({"field": "conv"}, "field='conv' is for images"),
    ],
)
def test_choices_that_exclude_each_other_are_named(options, message):
    with pytest.raises(InputError, match=message):
        density_model((2,), **options)


def test_samples_that_do_not_fit_are_named():
    model = density_model((2,), extra=1)
    for x in (torch.randn(4, 3), torch.randn(4, 2).double(), torch.full((4, 2), math.nan)):
        with pytest.raises(InputError, match=r"x of shape|dtype|not finite"):
            model.log_prob(x)
    with pytest.raises(InputError, match="extra=0"):
        VariationalAugment(0)
    with pytest.raises(InputError, match="pass the shape"):
        VariationalAugment(1, "learned")


def test_a_mixture_starts_as_that_of_points(float64):
    z = torch.cat([torch.randn(900, 2) * 0.5 - 3, torch.randn(300, 2) * 0.2 + 2])
    base = Mixture((2,), 2).fit(z)
    order = base.weights.argsort(descending=True)
    torch.testing.assert_close(base.weights[order], torch.tensor([0.75, 0.25]), rtol=0, atol=0.01)
    torch.testing.assert_close(base.means[order], torch.tensor([[-3.0, -3.0], [2.0, 2.0]]), rtol=0, atol=0.1)
    torch.testing.assert_close(base.log_scales.exp()[order][:, 0], torch.tensor([0.5, 0.2]), rtol=0.1, atol=0)


def test_a_mixture_takes_over_the_correlations_of_points(float64):
    roots = torch.tensor([[[1.0, 0.0], [0.9, 0.2]], [[0.3, 0.0], [-0.5, 0.1]]])
    z = torch.cat([torch.randn(900, 2) @ roots[0].T - 3, torch.randn(300, 2) @ roots[1].T + 3])
    base = Mixture((2,), 2, correlated=True).fit(z)
    order = base.weights.argsort(descending=True)
    edges = torch.stack([base.placed(e.expand(2, 2), order) for e in (*torch.eye(2), torch.zeros(2))])
    halves = (edges[:2] - edges[2]).movedim(0, 2)  # columns of C_k^(1/2)
    torch.testing.assert_close(halves @ halves.mT, roots @ roots.mT, rtol=0.1, atol=0.02)
    fitted = GaussianMixture(2, covariance_type="full", reg_covar=1e-4, random_state=0).fit(z.numpy())
    assert base.log_prob(z).mean().item() == pytest.approx(fitted.score(z.numpy()), abs=1e-6)
