"""Residual steps against automatic differentiation, Euler's method, bisection, finite differences and grids."""

import math

import pytest
import torch
from fields import jacobians
from refusals import refused
from tasks import minimise
from torch import nn
from torch.func import functional_call

from anode import Field, MLPField, Solver, SolverError, count_evals
from cnf import (
    Compose,
    Continuous,
    Flow,
    FlowMatching,
    MaximumLikelihood,
    Mixture,
    MixtureFlow,
    Normal,
    ResidualSteps,
    watch_determinants,
)
from cnf.residual_steps import log_determinant

CASES = pytest.mark.parametrize(("dim", "context"), [(1, 0), (2, 0), (2, 3), (5, 3)])


def built(dim, n=4, std=0.4, certify=False, **options):
    """Residual steps of a perceptron with normal weights."""
    field = MLPField(dim, (8, 7), ("tanh", "silu"), **options)
    for parameter in field.parameters():
        nn.init.normal_(parameter, std=std)
    return ResidualSteps(field, n, certify)


def points(dim, context=0, n=6):
    return torch.randn(n, dim), torch.randn(n, context) if context else None


def grid(half=9.0, step=0.06):
    """Points of a square and the area of a cell."""
    axis = torch.arange(-half, half, step)
    return torch.cartesian_prod(axis, axis), step**2


class Call(nn.Module):
    """A method of a module, for functional_call."""

    def __init__(self, module, method):
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args):
        return getattr(self.module, self.method)(*args)


class TestDeterminants:
    @CASES
    def test_steps_are_those_of_the_formula(self, float64, dim, context):
        steps, (x, c) = built(dim, context=context, std=0.8), points(dim, context)
        with watch_determinants() as found:
            z, log_det, _ = steps(x, c)
        expected, y = [], x
        for i in range(4):
            t = torch.tensor(1 - i / 4)
            expected.append(torch.linalg.det(torch.eye(dim) - jacobians(steps.field, t, y, c) / 4))
            y = y - steps.field(t, y, c) / 4
        torch.testing.assert_close(z, y)
        torch.testing.assert_close(torch.cat(found), torch.stack(expected, 1))
        kept = (torch.cat(found) > 0).all(1)
        torch.testing.assert_close(log_det[kept], torch.stack(expected, 1)[kept].log().sum(1))

    @CASES
    def test_the_log_determinant_is_that_of_the_whole_map(self, float64, dim, context):
        steps, (x, c) = built(dim, context=context), points(dim, context)
        rows = torch.autograd.functional.jacobian(lambda x: steps.encode(x, c).sum(0), x)
        sign, log_abs = torch.linalg.slogdet(rows.transpose(0, 1))
        assert (sign > 0).all()
        torch.testing.assert_close(steps(x, c).log_det, log_abs)
        torch.testing.assert_close(steps.inverse(steps.encode(x, c), c).log_det, -log_abs)

    @pytest.mark.parametrize("dim", [1, 2])
    def test_a_singular_step_has_a_finite_gradient(self, dim):
        matrices = torch.zeros(1, dim, dim, requires_grad=True)
        log_determinant(matrices)[1].sum().backward()
        assert matrices.grad.isfinite().all()

    def test_a_determinant_below_the_smallest_number_has_a_logarithm(self):
        _, log_abs = log_determinant(0.01 * torch.eye(64).unsqueeze(0))
        torch.testing.assert_close(log_abs, torch.full((1,), 64 * math.log(0.01)))

    def test_they_are_watched_in_nested_blocks_only(self):
        steps, x = built(2), torch.randn(5, 2)
        with watch_determinants() as outer:
            steps(x)
            with watch_determinants() as inner:
                steps(x[:3])
        steps(x)
        assert [tuple(each.shape) for each in outer] == [(5, 4), (3, 4)]
        assert torch.equal(inner[0], outer[1])

    def test_a_fold_lowers_the_likelihood_until_training_undoes_it(self, float64):
        steps = ResidualSteps(MLPField(3, (), time="none"), 1)
        with torch.no_grad():
            steps.field.layers[0].weight.copy_(torch.diag(torch.tensor([1.5, 0.0, 0.0])))  # I - W has det -1/2
        log_det = steps(torch.zeros(1, 3)).log_det
        assert log_det.item() == pytest.approx(2 * math.log(1e-6) - math.log(0.5), abs=1e-5)
        (slope,) = torch.autograd.grad(log_det, steps.field.layers[0].weight)
        assert slope[0, 0] < 0  # a smaller weight has a larger determinant


class TestEuler:
    def test_the_points_are_those_of_the_ode(self, float64):
        steps, (x, c) = built(2, 5, context=3), points(2, 3)
        euler = Continuous(steps.field, Solver("euler", step_size=1 / 5))
        torch.testing.assert_close(steps.encode(x, c), euler.encode(x, c))
        torch.testing.assert_close(steps(x, c).point, steps.encode(x, c))

    @torch.no_grad()
    def test_traces_differ_in_the_second_order_of_a_step(self, float64):
        """Half the length makes it a quarter in each step, and a half in the sum of the steps."""
        field, x = built(2).field, torch.randn(20, 2)
        errors = []
        for n in (64, 128, 256):
            euler = Continuous(field, Solver("euler", step_size=1 / n))
            errors.append((ResidualSteps(field, n)(x).log_det - euler(x).log_det).abs().mean())
        assert errors[0] / errors[1] == pytest.approx(2, abs=0.02)
        assert errors[1] / errors[2] == pytest.approx(2, abs=0.02)


class TestInverse:
    def test_in_one_dimension_by_bisection(self, float64):
        steps, z = built(1, 3), 3 * torch.randn(50, 1)
        low, high = torch.full_like(z, -100), torch.full_like(z, 100)
        for _ in range(70):
            middle = (low + high) / 2
            above = steps.encode(middle) > z
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        torch.testing.assert_close(steps.decode(z), middle, rtol=0, atol=1e-10)

    @CASES
    @pytest.mark.parametrize("certify", [False, True])
    def test_points_return(self, float64, dim, context, certify):
        steps, (x, c) = built(dim, context=context, certify=certify, std=2.0 if certify else 0.4), points(dim, context)
        torch.testing.assert_close(steps.decode(steps.encode(x, c), c), x, rtol=0, atol=1e-9)
        torch.testing.assert_close(steps.encode(steps.decode(x, c), c), x, rtol=0, atol=1e-9)

    def test_points_return_in_single_precision(self):
        steps, x = built(5), 3 * torch.randn(500, 5)
        torch.testing.assert_close(steps.decode(steps.encode(x)), x, rtol=0, atol=1e-4)

    def test_a_point_without_a_preimage_is_named(self, float64):
        steps = ResidualSteps(Field.wrap(lambda x: 2 * x**2), 2)  # x - x^2 is at most 1/4
        torch.testing.assert_close(steps.encode(steps.decode(torch.tensor([[0.1]]))), torch.tensor([[0.1]]))
        with pytest.raises(
            SolverError, match=r"step 2 of 2, whose relative residual stays at 0.38.*--certify"
        ) as caught:
            steps.decode(torch.tensor([[1.0]]))
        assert caught.value.cause == "inverse not found"

    @pytest.mark.parametrize("certify", [False, True])
    @pytest.mark.parametrize("method", ["decode", "inverse"])
    def test_gradients_equal_finite_differences(self, float64, method, certify):
        steps, (z, c) = built(2, 2, certify=certify, context=1, std=0.8 if certify else 0.4), points(2, 1, 3)
        call = Call(steps, method)
        names, values = zip(*call.named_parameters(), strict=True)

        def of(z, c, *values):
            found = functional_call(call, dict(zip(names, values, strict=True)), (z, c))
            return found if method == "decode" else tuple(found[:2])

        inputs = [part.detach().clone().requires_grad_() for part in (z, c, *values)]
        assert torch.autograd.gradcheck(of, inputs, eps=1e-5, atol=1e-6)

    def test_gradients_of_draws_equal_finite_differences(self, float64):
        call = Call(Flow(built(2, 2, context=1), Normal((2,))), "rsample_and_log_prob")
        names, values = zip(*call.named_parameters(), strict=True)

        def of(c, *values):
            torch.manual_seed(1)
            return functional_call(call, dict(zip(names, values, strict=True)), (3, c))

        inputs = [part.detach().clone().requires_grad_() for part in (torch.randn(3, 1), *values)]
        assert torch.autograd.gradcheck(of, inputs, eps=1e-5, atol=1e-6)

    def test_paths_are_straight_between_the_states(self, float64):
        steps, (z, c) = built(2, 4, context=3), points(2, 3)
        paths = steps.trajectory(z, [0, 0.125, 0.25, 0.5, 0.75, 0.8, 1], c)
        states = [steps.decode(z, c)]
        for i in range(4):
            states.append(states[-1] - steps.field(torch.tensor(1 - i / 4), states[-1], c) / 4)
        torch.testing.assert_close(paths[[6, 4, 3, 2, 0]], torch.stack(states), rtol=0, atol=1e-9)
        torch.testing.assert_close(paths[1], (paths[0] + paths[2]) / 2)
        torch.testing.assert_close(paths[5], paths[4] + 0.2 * (paths[6] - paths[4]))
        torch.testing.assert_close(steps.trajectory(z, [0, 0.5], c)[1], paths[3])


class TestInputs:
    @pytest.mark.parametrize("method", ["encode", "forward"])
    def test_a_density_takes_n_evaluations(self, method):
        steps = built(2, 5)
        with count_evals(steps) as nfe:
            getattr(steps, method)(torch.randn(7, 2))
        assert (nfe.solves, nfe.forward, nfe.points) == (1, 5, 35)

    def test_evaluations_of_the_inverse_are_counted(self):
        steps = built(2, 5)
        with count_evals(steps) as nfe:
            steps.decode(torch.randn(7, 2))
        assert nfe.solves == 1
        assert nfe.forward >= 5
        assert nfe.points >= 35

    def test_every_call_of_the_field_is_counted(self):
        steps, calls = built(2, 5), []
        move, slopes = steps._move, steps._slopes
        steps._move = lambda i, x, c: calls.append(len(x)) or move(i, x, c)
        steps._slopes = lambda i, x, c: calls.append(len(x)) or slopes(i, x, c)
        for method in (steps.forward, steps.encode, steps.decode):
            calls.clear()
            with count_evals(steps) as nfe, torch.no_grad():
                method(torch.randn(7, 2))
            assert (nfe.solves, nfe.forward, nfe.points) == (1, len(calls), sum(calls))

    @pytest.mark.parametrize("dim", [1, 2, 3])
    def test_empty_batches(self, dim):
        steps, x = built(dim), torch.randn(0, dim)
        assert steps(x).log_det.shape == (0,)
        assert steps.inverse(x).log_det.shape == (0,)
        assert steps.trajectory(x, [0, 1]).shape == (2, 0, dim)

    def test_samples_of_any_shape_are_flattened(self, float64):
        steps, x = built(16), torch.randn(3, 1, 4, 4)
        image, flat = steps(x), steps(x.flatten(1))
        torch.testing.assert_close(image.point.flatten(1), flat.point)
        torch.testing.assert_close(image.log_det, flat.log_det)
        torch.testing.assert_close(steps.decode(image.point), x)

    def test_what_cannot_serve_is_refused(self):
        refused("bounded field: pass activation=", ResidualSteps, MLPField(2, activation="silu"))
        refused("steps=0", ResidualSteps, MLPField(2), 0)
        refused("spectral norms of an MLPField", ResidualSteps, Field.wrap(lambda x: x.tanh()), certify=True)
        refused("65 x 65.*at most 64", ResidualSteps(MLPField(65)), torch.zeros(1, 65))


class TestCertified:
    @pytest.mark.parametrize("time", ["none", "concat", "bias", "squash"])
    @pytest.mark.parametrize("activation", ["tanh", "relu", ("tanh", "silu"), "softplus"])
    def test_the_lipschitz_constant_of_a_step_is_below_one(self, float64, time, activation):
        steps = ResidualSteps(MLPField(3, (8, 7), activation, time), 4, certify=True)
        for parameter in steps.parameters():
            nn.init.normal_(parameter, std=30)
        for t in torch.arange(1, 5) / 4:
            norms = [torch.linalg.svdvals(layer.as_affine(t, None)[0])[0] for layer in steps.field.layers]
            slope = 1.0998 if "silu" in activation else 1
            assert slope * math.prod(norms) / 4 < 1
        x = torch.cat([torch.randn(300, 3) * scale for scale in (0.01, 1, 1e3, 1e6)])
        with watch_determinants() as determinants:
            steps(x)
        assert (torch.cat(determinants) > 0).all()

    def test_small_weights_stay(self, float64):
        field = MLPField(2, (8,))
        for parameter in field.parameters():
            nn.init.normal_(parameter, std=0.1)
        x, t = torch.randn(5, 2), torch.tensor(0.3)
        before = field(t, x)
        ResidualSteps(field, 4, certify=True)
        torch.testing.assert_close(field(t, x), before)

    def test_raw_weights_have_gradients(self):
        steps = built(2, certify=True, std=5.0)
        steps(torch.randn(20, 2)).log_det.sum().backward()
        for layer in steps.field.layers:
            assert layer.parametrizations.weight.original.grad.abs().max() > 0


def density(kind, std=0.4):
    """A density of two dimensions and its context."""
    if kind == "flow":
        return Flow(built(2, std=std), Normal((2,))), None
    if kind == "conditional":
        return Flow(built(2, std=std, context=1), Normal((2,))), torch.tensor([0.7])
    mixture = Mixture((2,), 3, correlated=True).fit(torch.randn(300, 2) * torch.tensor([1.0, 0.7]))
    return MixtureFlow(Compose([]), mixture, built(2, std=std, context=3)), None


class TestDensities:
    @torch.no_grad()
    @pytest.mark.parametrize("kind", ["flow", "conditional", "mixture"])
    def test_they_integrate_to_one_and_agree_with_their_samplers(self, float64, kind):
        model, c = density(kind)
        x, cell = grid()
        with watch_determinants() as determinants:
            p = model.log_prob(x, None if c is None else c.expand(len(x), 1)).exp() * cell
        assert (torch.cat(determinants) > 0).all()
        assert model.kind == "exact"
        assert p.sum().item() == pytest.approx(1, abs=1e-6)
        mean = p @ x
        products = torch.einsum("bi,bj->bij", x - mean, x - mean)
        drawn = model.sample(4000, c)
        assert ((drawn.mean(0) - mean).abs() < 4 * drawn.std(0) / 4000**0.5).all()
        found = torch.einsum("bi,bj->bij", drawn - mean, drawn - mean)
        assert ((found.mean(0) - torch.einsum("b,bij->ij", p, products)).abs() < 4 * found.std(0) / 4000**0.5).all()

    @pytest.mark.parametrize("kind", ["flow", "conditional", "mixture"])
    def test_shapes(self, kind):
        model, c = density(kind)
        x = model.sample(7, c)
        assert x.shape == (7, 2)
        assert model.log_prob(x, None if c is None else c.expand(7, 1)).shape == (7,)
        assert model.sample_paths(7, [0, 0.3, 1], c).shape == (3, 7, 2)
        torch.testing.assert_close(model.round_trip(x, None if c is None else c.expand(7, 1)), x, rtol=0, atol=1e-4)
        if model.has_rsample:
            assert model.rsample(7, c).requires_grad

    def test_draws_know_their_density(self, float64):
        flow = density("flow")[0]
        x, log_p = flow.rsample_and_log_prob(9)
        torch.testing.assert_close(flow.log_prob(x), log_p)

    @pytest.mark.parametrize("objective", [FlowMatching, MaximumLikelihood])
    def test_objectives_train_the_field(self, objective):
        x = torch.randn(512, 2) * 0.5 + torch.tensor([1.0, 0.0])
        flow = Flow(built(2, std=0.3), Normal((2,)))
        loss = objective(flow)
        before, nll = loss(x).item(), -flow.log_prob(x).mean().item()
        minimise(lambda: loss(x), flow, 100, 1e-2)
        assert loss(x).item() < before - 0.1
        assert -flow.log_prob(x).mean().item() < nll - 0.1
