"""Models of time series against matrix exponentials, joint Gaussians and each series alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fields import Linear
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import anode
from anode import Field, Solver, count_evals
from anode.time_series import SeriesConfig, pad, series_model
from anode.time_series.encoders import PosteriorStart
from anode.time_series.predictive import FIRST_SCALE, LEAST_SCALE

TIGHT = Solver(rtol=1e-9, atol=1e-9)
VARIANTS = {
    "node": {"kind": "node"},
    "learned": {"kind": "anode", "extra": 2, "start": "learned", "noise": "student"},
    "anode": {"kind": "anode", "extra": 1, "noise_from": "state"},
    "second-order": {"kind": "second-order", "periods": (7.0,)},
    "latent": {"kind": "latent", "latent": 3, "extra": 1, "noise": "student", "noise_from": "state"},
    "ode-rnn": {"kind": "ode-rnn", "periods": (7.0, 30.0)},
}
DAY = 16_000.0  # days from 1970, where float32 has steps of a hundred seconds


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


def drawn(n, features=2, seed=0, missing=0.3):
    """A series with irregular times, and missing values."""
    rng = np.random.default_rng(seed)
    times, values = DAY + np.sort(rng.uniform(0, 20, n)), rng.normal(size=(n, features))
    values[rng.uniform(size=values.shape) < missing] = np.nan
    values[n // 2] = 1.0
    return times, values


def build(options, data, **others):
    """A model whose weights, those that begin at zero too, are small random numbers."""
    model = series_model(2, data=data, hidden=(6,), encoder=5, decoder=(4,), **options, **others)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


class TestSolves:
    def test_a_linear_field_has_its_matrix_exponential(self, float64):
        data = pad([drawn(n, seed=n, missing=0.0) for n in (5, 9, 7)])
        model = build({"kind": "node", "start": "learned"}, data, solver=TIGHT)
        model.paths.field = field = Linear(torch.tensor([[-0.1, -1.0], [1.0, -0.2]]), torch.tensor([0.1, 0.3]))
        at = data.times[:, :1] + torch.tensor([[0.0, 0.3, 7.0, 30.0], [2.0, 2.0, 1.0, 3.0], [0.1, 0.0, 0.0, 0.5]])
        states, mean = model.trajectory(data, at), model.forecast(data, at).mean
        for i in range(3):
            first = (data.values[i, 0] - model.scaling.mean) / model.scaling.scale
            for j in range(4):
                exact = field.solution(first[None], (at[i, j] - data.times[i, 0]) / model.unit)[0]
                torch.testing.assert_close(states[i, j], exact, rtol=1e-6, atol=1e-6)
                torch.testing.assert_close(mean[i, j], model.scaling.mean + model.scaling.scale * exact)

    def test_a_batch_is_each_series_alone(self, float64, variant):
        series = [drawn(n, seed=n) for n in (4, 9, 1, 6)]
        data = pad(series)
        model = build(variant, data, solver=TIGHT)
        at = data.times[:, :1] + torch.tensor([[0.0, 25.0], [3.0, 11.0], [0.0, 0.0], [1.0, 40.0]])
        together, weights, losses = model.trajectory(data, at), data.mask.sum((1, 2)), []
        for i, one in enumerate(series):
            alone = pad([one])
            torch.testing.assert_close(model.trajectory(alone, at[i]), together[i : i + 1], rtol=1e-6, atol=1e-6)
            losses.append(model.loss(alone, alone))
        if variant["kind"] != "latent":  # which draws samples
            expected = (torch.stack(losses) * weights).sum() / weights.sum()
            torch.testing.assert_close(model.loss(data, data), expected, rtol=1e-6, atol=1e-6)

    def test_a_batch_is_one_solve(self, variant):
        data = pad([drawn(n, seed=n) for n in (4, 9, 6)])
        with count_evals(model := build(variant, data)) as nfe:
            model.loss(data, data)
        gaps = model._history(data).times.shape[1] - 1
        assert nfe.solves == (gaps if variant["kind"] == "ode-rnn" else 1)
        assert nfe.forward > 0

    def test_a_motion_without_acceleration_is_a_straight_line(self):
        data = pad([drawn(n, seed=n) for n in (4, 9)])
        model = build({"kind": "second-order"}, data)
        for weight in model.paths.field.parameters():
            torch.nn.init.zeros_(weight)
        x, v = model.trajectory(data, data.times[:, :1] + torch.tensor([0.0, 5.0, 7.5])).chunk(2, dim=-1)
        steps = torch.tensor([0.0, 5.0, 7.5])[:, None] / model.unit
        torch.testing.assert_close(x, x[:, :1] + steps * v[:, :1], rtol=1e-5, atol=1e-5)
        assert v[:, 0].abs().min() > 0.01
        torch.testing.assert_close(v, v[:, :1].expand_as(v))

    def test_calendar_features_know_the_absolute_time(self, float64):
        """dx/dt = sin(2 pi t / 7) has x(t) - x(s) = -(cos(2 pi t / 7) - cos(2 pi s / 7)) 7 / (2 pi)."""
        data = pad([([DAY + s, DAY + s + 1], [[0.5], [1.5]]) for s in (0.0, 2.3, 5.9)])
        model = series_model(1, data=data, start="learned", periods=(7.0, 365.25), solver=TIGHT)
        model.paths.field.field = Field.wrap(lambda t, x, c: c[:, :1] * model.unit)
        at = data.times[:, :1] + torch.tensor([0.0, 1.0, 33.3])
        cosines = torch.cos(2 * math.pi * torch.cat([data.times[:, :1], at], dim=1) / 7)
        exact = (cosines[:, :1] - cosines[:, 1:]) * 7 / (2 * math.pi)
        path = model.trajectory(data, at)[..., 0]
        torch.testing.assert_close(path, path[:, :1] + exact, rtol=1e-6, atol=1e-6)


class TestMissingValues:
    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 1000), name=st.sampled_from(sorted(VARIANTS)))
    def test_they_have_no_influence(self, seed, name):
        """Values behind the mask, whatever they are, and times without a value change nothing."""
        data = pad([drawn(n, seed=seed + n) for n in (4, 9, 6)])
        torch.manual_seed(seed)
        model = build(VARIANTS[name], data)
        hidden = data.mask == 0
        garbage = torch.tensor([torch.nan, torch.inf, 1e30, -3.0])[torch.randint(4, hidden.shape)]
        values = data.values.where(~hidden, garbage).requires_grad_()
        found = []
        for history in (data, data._replace(values=values)):
            torch.manual_seed(1)
            loss = model.loss(history, history._replace(values=history.values.detach()), samples=2)
            mean = model.forecast(history, [DAY + 20, DAY + 21.5], samples=2).mean
            found.append((loss, mean))
        torch.testing.assert_close(*found, rtol=0, atol=0)
        (gradient,) = torch.autograd.grad(found[1][0], values, allow_unused=True)
        assert not gradient[hidden].any()

    def test_times_without_a_value_have_no_influence(self, variant):
        series = [drawn(n, seed=n) for n in (5, 8)]
        holes = [
            (np.concatenate([[t[0] - 3], t[:2], [t[2] - 1e-3], t[2:], [t[-1] + 9]]),
             np.concatenate([[[np.nan] * 2], x[:2], [[np.nan] * 2], x[2:], [[np.nan] * 2]]))
            for t, x in series
        ]  # fmt: skip
        data, sparse = pad(series), pad(holes)
        model = build(variant, data)
        torch.manual_seed(1)
        loss = model.loss(data, data)
        torch.manual_seed(1)
        torch.testing.assert_close(model.loss(sparse, sparse), loss, rtol=1e-6, atol=0)  # sums in another order

    def test_observations_have_influence(self, variant):
        data = pad([drawn(8, seed=3)])
        model, at = build(variant, data), [DAY + 25]
        values = data.values.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model.trajectory(data._replace(values=values), at).sum(), values)
        seen = data.mask > 0
        if variant.get("start") == "learned":  # which looks at the first time alone
            seen = seen & (torch.arange(8) == int(data.observed[0].int().argmax()))[:, None]
        assert (gradient != 0).equal(seen)


class Exact(PosteriorStart):
    """The exact posterior of z ~ N(0, I) and x(t) = R(t) z + noise with rotations R, or a worse one."""

    def __init__(self, noise, shift=0.0, stretch=1.0):
        torch.nn.Module.__init__(self)
        self.dim, self.extra, self.noise, self.shift, self.stretch = 2, 0, noise, shift, stretch

    def posterior(self, history):
        back = rotations(history.times).mT
        precision = 1 + history.mask[..., 0].sum(1, keepdim=True) / self.noise**2
        mean = ((back @ history.values[..., None])[..., 0] * history.mask).sum(1) / self.noise**2 / precision
        return Normal(mean + self.shift, (precision**-0.5 * self.stretch).expand_as(mean))


def rotations(t):
    return torch.stack([t.cos(), -t.sin(), t.sin(), t.cos()], dim=-1).unflatten(-1, (2, 2))


def rotating(noise, **posterior):
    """The latent model of rotating points that are observed with Gaussian noise."""
    model = series_model(2, kind="latent", latent=2, decoder=(), solver=TIGHT)
    model.paths.field, model.paths.start = Linear(torch.tensor([[0.0, -1.0], [1.0, 0.0]])), Exact(noise, **posterior)
    with torch.no_grad():
        model.emission.mean[0].weight.copy_(torch.eye(2))
        model.emission.mean[0].bias.zero_()
        model.emission.raw_scale.fill_(math.log(math.expm1(noise - LEAST_SCALE)))
    return model


class TestLatent:
    @pytest.mark.parametrize("posterior", [{}, {"shift": 0.2}, {"stretch": 1.5}], ids=str)
    def test_the_bound_is_the_likelihood_of_the_joint_gaussian_up_to_the_divergence(self, float64, posterior):
        """-ELBO = -log p(x) + KL(q, p(z | x)); log p(x) from the covariance R R' + noise^2 I of all observations."""
        noise = 0.4
        rng = np.random.default_rng(0)
        data = pad([(np.r_[0.0, np.sort(rng.uniform(0, 9, n - 1))], rng.normal(size=(n, 2))) for n in (3, 5)])
        exact, divergence = 0.0, 0.0
        model, best = rotating(noise, **posterior), rotating(noise)
        for i, n in enumerate((3, 5)):
            r = rotations(data.times[i, :n]).reshape(2 * n, 2)
            covariance = r @ r.T + noise**2 * torch.eye(2 * n)
            exact -= MultivariateNormal(torch.zeros(2 * n), covariance).log_prob(data.values[i, :n].flatten())
        q, p = (each.paths.start.posterior(each._history(data)) for each in (model, best))
        divergence = kl_divergence(q, p).sum()
        bound = model.loss(data, data, samples=20_000) * data.mask.sum()
        torch.testing.assert_close(bound, exact + divergence, rtol=2e-3, atol=0)
        assert (divergence > 0.5) == bool(posterior)

    def test_intervals_cover_data_drawn_from_the_model(self, float64):
        noise, n, model = 0.4, 600, rotating(0.4)
        times = torch.tensor([0.0, 0.7, 2.0, 5.0, 6.1])
        paths = (rotations(times) @ torch.randn(n, 1, 2, 1))[..., 0] + noise * torch.randn(n, 5, 2)
        history = pad([(times[:3], path[:3]) for path in paths])
        future = model.forecast(history, times[3:], samples=100)
        for level in (0.5, 0.9):
            low, high = (future.icdf(torch.tensor(p)) for p in ((1 - level) / 2, (1 + level) / 2))
            covered = ((paths[:, 3:] > low) & (paths[:, 3:] < high)).double().mean().item()
            assert abs(covered - level) < 4 * math.sqrt(level * (1 - level) / (2 * n))

    def test_the_weight_of_the_divergence(self, float64):
        data, losses = pad([([0.0, 1.0], np.ones((2, 2)))]), []
        for weight in (0.0, 0.5, 1.0):
            torch.manual_seed(1)
            losses.append(rotating(0.4).loss(data, data, kl_weight=weight))
        assert losses[0] < losses[1] < losses[2]
        torch.testing.assert_close(losses[0] + losses[2], 2 * losses[1])


class TestStartNoise:
    def test_it_adds_its_variance_to_the_squared_error(self, float64):
        """Series are constant, and so are the paths of an untrained field."""
        n, noise, scale = 4000, 0.3, FIRST_SCALE
        data = pad([([0.0, 1.0, 2.0], np.full((3, 1), value)) for value in np.random.default_rng(0).normal(size=n)])
        plain, noisy = (series_model(1, data=data, start="learned", start_noise=std) for std in (0.0, noise))
        gap = (noisy.loss(data, data) - plain.loss(data, data)).item()
        expected = noise**2 / (2 * scale**2)
        assert gap == pytest.approx(expected, abs=5 * expected * math.sqrt(2 / n))

    def test_forecasts_have_none(self, variant):
        data = pad([drawn(9), drawn(7, seed=1)])
        torch.manual_seed(0)
        model = build(variant, data, start_noise=1.0)
        assert torch.equal(*(model.trajectory(data, data.times) for _ in range(2)))
        torch.manual_seed(0)
        noisy = model.loss(data, data)
        model._config = replace(model._config, start_noise=0.0)
        torch.manual_seed(0)
        assert model.loss(data, data) != noisy


class TestHistories:
    def test_the_encoder_reads_observations_backwards(self):
        data = pad([drawn(n, seed=n) for n in (4, 9)])
        model = build({"kind": "latent"}, data)
        encoder, history = model.paths.start.encoder, model._history(data)
        for i, (times, values) in enumerate(drawn(n, seed=n) for n in (4, 9)):
            seen = ~np.isnan(values).all(1)
            times, values = torch.tensor(times[seen]), torch.tensor(values[seen]).float()
            known = (~values.isnan()).float()
            values = ((values - model.scaling.mean) / model.scaling.scale).nan_to_num() * known
            gaps = torch.cat([times.diff(), torch.zeros(1)])[:, None].float() / model.unit
            _, last = encoder.gru(torch.cat([values, known, gaps], dim=1).flip(0))
            torch.testing.assert_close(encoder(history)[i], last[0], rtol=1e-5, atol=1e-5)

    def test_corrections_of_the_start_have_a_standard_normal_prior(self, float64):
        data = pad([drawn(6, missing=0.0), drawn(4, seed=1, missing=0.0)])
        model = build({"kind": "anode", "extra": 1}, data)
        corrections = model.trajectory(data, data.times)[:, 0] - torch.nn.functional.pad(
            (data.values[:, 0] - model.scaling.mean) / model.scaling.scale, (0, 1)
        )
        expected = -Normal(0, 1).log_prob(corrections).sum() - corrections.numel() * math.log(2 * math.pi) / 2
        both, alone = (model.loss(data, data, kl_weight=weight) * data.mask.sum() for weight in (1.0, 0.0))
        torch.testing.assert_close(both - alone, expected)
        forecast = model.forecast(data, data.times)
        nll = -forecast.log_prob(data.values)[data.mask > 0].sum()
        torch.testing.assert_close(alone, nll)

    def test_an_ode_rnn_is_a_loop_over_observations(self, float64):
        data = pad([([0.0, 1.0, 3.0], [[1.0, 2.0], [2.0, np.nan], [0.0, 1.0]])])
        model = build({"kind": "ode-rnn", "latent": 3}, data, solver=TIGHT)
        model.paths.field = field = Linear(torch.randn(3, 3))
        history, at = model._history(data), [0.0, 0.4, 1.0, 2.0, 3.0, 3.5, 7.0]
        h, expected, passed = model.paths.before[None], [], 0
        clock = 0.0
        for t in at:
            while passed < 3 and data.times[0, passed] < t:
                h = field.solution(h, (data.times[0, passed] - clock) / model.unit)
                joined = torch.cat([history.values[:, passed], history.mask[:, passed]], dim=1)
                h, clock, passed = model.paths.jump(joined, h), float(data.times[0, passed]), passed + 1
            expected.append(field.solution(h, (t - clock) / model.unit) if passed else h)
        torch.testing.assert_close(model.trajectory(data, at)[0], torch.cat(expected), rtol=1e-6, atol=1e-6)

    def test_an_ode_rnn_does_not_see_what_it_predicts(self):
        data = pad([drawn(8, seed=3, missing=0.0)])
        model = build({"kind": "ode-rnn"}, data)
        values = data.values.clone().requires_grad_()
        path = model.trajectory(data._replace(values=values), data.times)
        for j in range(8):
            (gradient,) = torch.autograd.grad(path[0, j].sum(), values, retain_graph=True)
            assert (gradient[0].abs().sum(1) > 0).tolist() == [k < j for k in range(8)]


class TestUnits:
    def test_of_values_are_their_moments(self):
        series = [drawn(n, seed=n) for n in (5, 8)]
        model = series_model(2, data=pad(series))
        values = np.concatenate([x for _, x in series])
        np.testing.assert_allclose(model.scaling.mean, np.nanmean(values, 0), rtol=1e-5)
        np.testing.assert_allclose(model.scaling.scale, np.nanstd(values, 0), rtol=1e-5)

    @pytest.mark.parametrize("period", [1e-3, 1.0, 365.0])
    def test_an_oscillation_has_an_angular_frequency_near_one(self, period):
        t = torch.linspace(0, 4 * period, 400, dtype=torch.float64)
        unit = series_model(1, data=pad([(t, (2 * math.pi * t / period).sin()[:, None])])).unit.item()
        assert 0.5 < 2 * math.pi * unit / period < 2.1

    def test_of_the_data_do_not_change_the_likelihood(self):
        """Other units of values and times shift the NLL by the logarithm of the factor alone."""
        losses = []
        for factor, clock in ((1.0, 1.0), (100.0, 60.0)):
            data = pad([(clock * (t - DAY), 7 + factor * x) for t, x in (drawn(n, seed=n) for n in (5, 8))])
            torch.manual_seed(1)
            losses.append(build({"kind": "anode", "extra": 1}, data).loss(data, data))
        torch.testing.assert_close(losses[1] - losses[0], torch.tensor(math.log(100)), rtol=1e-3, atol=1e-3)

    def test_days_from_1970_keep_their_minutes(self):
        """Times in float64 are subtracted before they become float32, also by a stored model."""
        series = [drawn(8, seed=3)]
        moved = [(times - DAY, values) for times, values in series]
        model = build({"kind": "anode", "extra": 1}, pad(series))
        at = torch.tensor([21.0, 22.0], dtype=torch.float64)
        near, far = model.trajectory(pad(moved), at), model.trajectory(pad(series), at + DAY)
        torch.testing.assert_close(far, near, rtol=1e-5, atol=1e-5)


class TestModels:
    def test_they_survive_storage(self, variant, tmp_path):
        data = pad([drawn(n, seed=n) for n in (4, 9)])
        model = build(variant, data, solver={"method": "tsit5", "rtol": 1e-4, "atol": 1e-4})
        anode.save(model, tmp_path / "model")
        loaded = anode.load(tmp_path / "model")
        assert (loaded.config, loaded.arguments, loaded.training) == (model.config, model.arguments, False)
        found = []
        for each in (model, loaded):
            torch.manual_seed(1)
            found.append((each.loss(data, data), each.forecast(data, [DAY + 20], samples=3).mean))
        torch.testing.assert_close(*found, rtol=0, atol=0)

    def test_every_weight_learns(self, variant):
        data = pad([drawn(n, seed=n) for n in (4, 9)])
        model = build(variant, data)
        model.loss(data, data).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())

    def test_they_are_solved_at_other_tolerances(self):
        data = pad([drawn(6)])
        model = build(VARIANTS["anode"], data)
        tight = model.with_solver(TIGHT)
        assert (tight.config.solver, model.config.solver) == (TIGHT, SeriesConfig().solver)
        torch.testing.assert_close(tight.loss(data, data), model.loss(data, data), rtol=1e-2, atol=1e-2)

    @pytest.mark.parametrize("seed", range(5))
    def test_a_plain_ode_on_the_line_cannot_turn_back(self, seed):
        """Its paths are monotone for any weights; one augmented dimension makes x(t) = x(0) cos t possible."""
        torch.manual_seed(seed)
        data, at = pad([([0.0], [[0.5]])]), torch.linspace(0, 10, 40)
        model = series_model(1, solver=Solver(rtol=1e-6, atol=1e-6))
        for weight in model.parameters():
            torch.nn.init.normal_(weight)
        steps = model.trajectory(data, at)[0, :, 0].diff()
        assert (steps > -1e-4).all() or (steps < 1e-4).all()

        model = series_model(1, kind="anode", extra=1, start="learned", solver=Solver(rtol=1e-6, atol=1e-6))
        model.paths.field = Linear(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
        path = model.trajectory(data, at)[0, :, 0]
        torch.testing.assert_close(path, 0.5 * at.cos(), rtol=1e-4, atol=1e-4)


def test_bad_input_is_named():
    data = pad([drawn(n, seed=n) for n in (4, 9)])
    model = series_model(2, data=data)
    nothing = data._replace(mask=data.mask * torch.tensor([1.0, 0.0])[:, None, None])
    refused(r"history lacks an observed value in series 1", model.loss, nothing, data)
    refused(r"target lacks observed values", model.loss, data, data._replace(mask=0 * data.mask))
    refused(r"series 0 has the time 1 after 2: sort", pad, [([0.0, 2.0, 1.0], torch.zeros(3, 1))])
    refused(r"series 1 has the time 2 after 2: sort", pad, [([0.0], [[0.0]]), ([2.0, 2.0], [[0.0], [1.0]])])
    refused(r"series 0 has times of shape \(2,\) and values of shape \(3, 1\)", pad, [([0.0, 1.0], torch.zeros(3, 1))])
    refused(r"times of series 0 .* pass real numbers", pad, [(["monday"], [[0.0]])])
    refused(r"series 0 has a time that is not finite", pad, [([math.nan], [[0.0]])])
    refused(r"series 0 has an infinite value", pad, [([0.0], [[math.inf]])])
    refused(r"different numbers of features, \[1, 2\]", pad, [([0.0], [[0.0]]), ([0.0], [[0.0, 1.0]])])
    refused("series is empty", pad, [])
    refused(r"history has values of shape \(1, 1, 3\).*pass \(B, T, 2\)", model.loss, pad([([0.0], [[1.0] * 3])]), data)
    refused("history of type list is not a Series", model.forecast, [1.0], [2.0])
    refused(r"history has the time .* sort its times", model.loss, data._replace(times=data.times.flip(1)), data)
    refused(r"at has the time 15999 in series 0, whose history begins at 16001\.6", model.forecast, data, [DAY - 1])
    refused(r"at has the time nan in series 0", model.forecast, data, [math.nan])
    refused(r"at has times of shape \(3, 1\) for 2 series", model.trajectory, data, torch.full((3, 1), DAY + 30))
    refused(r"target has the time", model.loss, data, data._replace(times=data.times - 1))
    refused("samples=0 must be a whole number", model.forecast, data, [DAY + 30], samples=0)
    blind = data._replace(mask=data.mask * torch.tensor([1.0, 0.0]))
    refused("series lacks observed values of feature 1", series_model, 2, data=blind)
    refused("extra=0 must be at least 1", series_model, 2, kind="anode")
    refused("extra=1 has no effect on kind='second-order'", series_model, 2, kind="second-order", extra=1)
    refused("start='learned' has no effect on kind='latent'", series_model, 2, kind="latent", start="learned")
    refused("kind='arima' is unknown", series_model, 2, kind="arima")
    refused("features=0 must be", series_model, 0)
