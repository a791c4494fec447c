"""Gradients from checkpoints: those of the steps taken, in little memory, with nothing left out silently."""

import pytest
import torch
from fields import Linear, wild
from torch import nn

from anode import Field, InputError, MLPField, ODEBlock, Solver, SolverError, count_evals
from cnf import MaximumLikelihood, density_model
from train_flows.paper.tolerance import kept_bytes

OWN = [
    Solver(rtol=1e-6, atol=1e-6),
    Solver("tsit5", rtol=1e-6, atol=1e-6),
    *(Solver(method, step_size=0.2) for method in ("euler", "midpoint", "heun2", "heun3", "rk4")),
]


def direct(solver):
    return Solver(solver.method, solver.rtol, solver.atol, solver.step_size, gradient="direct")


def gradients(solve, *wanted):
    return torch.autograd.grad(solve(), wanted)


def agree(mine, theirs):
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.fixture
def field(float64):
    return wild(MLPField(3, (8, 8), context=2))


@pytest.mark.parametrize("solver", OWN, ids=lambda solver: solver.method)
def test_gradients_are_those_of_the_steps(field, solver):
    x, c = torch.randn(4, 3, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    wanted = (x, c, *field.parameters())

    def loss(solver):
        return lambda: ODEBlock(field, solver)(x, c).square().sum()

    assert solver.gradient == "checkpoint"
    assert torch.equal(loss(solver)(), loss(direct(solver))())
    agree(gradients(loss(solver), *wanted), gradients(loss(direct(solver)), *wanted))


@pytest.mark.parametrize("solver", OWN, ids=lambda solver: solver.method)
@pytest.mark.parametrize("times", [(0, 0.1, 0.15, 0.7, 1), (1, 0.55, 0)])
def test_gradients_reach_every_time_of_a_trajectory(field, solver, times):
    x, c = torch.randn(4, 3, requires_grad=True), torch.randn(4, 2)
    weights = torch.randn(len(times), 4, 3)

    def loss(solver):
        return lambda: (weights * ODEBlock(field, solver).trajectory(x, times, c)).sum()

    wanted = (x, *field.parameters())
    agree(gradients(loss(solver), *wanted), gradients(loss(direct(solver)), *wanted))


@pytest.mark.parametrize("solver", OWN, ids=lambda solver: solver.method)
def test_likelihood_and_energies_have_the_same_gradients(float64, solver):
    flow = density_model((2,), hidden=(8, 8, 8), solver=solver)
    wild(flow.parts()[1].field)
    x, wanted = torch.randn(6, 2), list(flow.parameters())

    def loss(solver):
        model = flow.with_solver(solver)
        return lambda: MaximumLikelihood(model, kinetic=0.1, acceleration=0.2)(x)

    assert torch.equal(loss(solver)(), loss(direct(solver))())
    agree(gradients(loss(solver), *wanted), gradients(loss(direct(solver)), *wanted))


def test_a_solve_takes_the_same_evaluations_and_each_step_six_more_backwards(field):
    x, c = torch.randn(4, 3), torch.randn(4, 2)
    with count_evals() as plain:
        ODEBlock(field, Solver(gradient="direct"))(x, c).sum().backward()
    with count_evals() as nfe:
        ODEBlock(field, Solver())(x, c).sum().backward()
    assert nfe.forward == plain.forward
    assert (nfe.steps, nfe.rejected, nfe.last_step) == (plain.steps, plain.rejected, plain.last_step)
    assert nfe.steps > nfe.rejected
    assert nfe.backward == 6 * (nfe.steps - nfe.rejected)
    assert plain.backward == 0


def test_memory_is_that_of_the_states(field):
    x, c = torch.randn(100, 3), torch.randn(100, 2)
    kept = {}
    for gradient in ("direct", "checkpoint"):
        for step_size in (0.1, 0.05):
            solver = Solver("rk4", step_size=step_size, gradient=gradient)
            with kept_bytes() as bytes_kept:
                y = ODEBlock(field, solver)(x, c)
                kept[gradient, step_size] = bytes_kept()
            del y
    state = x.numel() * x.element_size()
    assert kept["checkpoint", 0.05] - kept["checkpoint", 0.1] <= 10 * state
    assert kept["direct", 0.05] - kept["direct", 0.1] > 100 * state


def test_nothing_is_kept_where_nothing_is_wanted(field):
    x, c = torch.randn(4, 3), torch.randn(4, 2)
    with torch.no_grad():
        assert not ODEBlock(field, Solver())(x, c).requires_grad
    assert not Solver().integrate(lambda t, y: -y, x, 0, 1).requires_grad


def test_what_is_not_used_has_no_gradient(float64):
    class Idle(Linear):
        def __init__(self):
            super().__init__(torch.eye(2))
            self.idle = nn.Parameter(torch.ones(2))

    field = Idle()
    ODEBlock(field, Solver())(torch.randn(3, 2)).sum().backward()
    assert field.idle.grad is None
    assert field.a.grad is not None


class TestClosures:
    def test_a_tensor_that_would_get_no_gradient_is_refused(self, float64):
        a = torch.ones(2, requires_grad=True)
        x = torch.randn(3, 2)
        with pytest.raises(InputError, match=r"shape \(2,\) that is neither in y0 nor in params"):
            Solver().integrate(lambda t, y: -a * y, x, 0, 1)
        with pytest.raises(InputError, match="neither in y0 nor in params"):
            Solver().integrate(lambda t, y: -(2 * a) * y, x, 0, 1)
        mine = gradients(lambda: Solver().integrate(lambda t, y: -a * y, x, 0, 1, params=(a,)).sum(), a)
        theirs = gradients(lambda: Solver(gradient="direct").integrate(lambda t, y: -a * y, x, 0, 1).sum(), a)
        agree(mine, theirs)

    def test_a_listed_one_may_depend_on_others(self, float64):
        a, x = torch.ones(2, requires_grad=True), torch.randn(3, 2, requires_grad=True)

        def loss(solver):
            b, y = 2 * a, x.sin()
            return solver.integrate(lambda t, y: -b * y, y, 0, 1, params=(b,)).sum()

        agree(gradients(lambda: loss(Solver()), a, x), gradients(lambda: loss(Solver(gradient="direct")), a, x))

    def test_the_initial_state_is_no_closure(self, float64):
        x = torch.randn(3, 2, requires_grad=True)
        with pytest.raises(InputError, match="neither in y0 nor in params"):
            Solver().integrate(lambda t, y: x - y, x, 0, 1)

    def test_the_module_of_a_closure_can_be_named(self, float64):
        net = nn.Linear(2, 2)
        x = torch.randn(3, 2)
        with pytest.raises(InputError, match="name the field"):
            Solver().integrate(lambda t, y: net(y), x, 0, 1)
        Solver().integrate(lambda t, y: net(y), x, 0, 1, field=net).sum().backward()
        assert net.weight.grad is not None


@pytest.mark.parametrize("solver", OWN[:3], ids=lambda solver: solver.method)
def test_gradients_of_gradients_are_those_of_the_steps(float64, solver):
    flow = wild(density_model((2,), hidden=(5,), solver=solver))
    x = torch.randn(4, 2, requires_grad=True)

    def loss(solver):
        (score,) = torch.autograd.grad(flow.with_solver(solver).log_prob(x).sum(), x, create_graph=True)
        return score.square().sum()

    wanted = (x, *flow.parameters())
    agree(gradients(lambda: loss(solver), *wanted), gradients(lambda: loss(direct(solver)), *wanted))


@pytest.mark.parametrize("gradient", ["checkpoint", "adjoint"])
def test_parameters_for_a_while_are_refused_not_ignored(float64, gradient):
    block = ODEBlock(wild(MLPField(2, (5,))), Solver(gradient=gradient))
    other = {name: (2 * parameter).detach().requires_grad_() for name, parameter in block.named_parameters()}
    x = torch.randn(3, 2)
    y = torch.func.functional_call(block, other, (x,))
    with pytest.raises(InputError, match="functional_call"):
        y.sum().backward()
    block.solver = Solver(gradient="direct")
    torch.func.functional_call(block, other, (x,)).sum().backward()
    assert all(parameter.grad is not None for parameter in other.values())


def test_a_solve_that_fails_says_so(float64):
    class Blowup(Field):
        def forward(self, t, x, c=None):
            return 10 * x * x

    with pytest.raises(SolverError, match="step underflow"):
        ODEBlock(Blowup(), Solver())(torch.ones(2, 1, requires_grad=True))


def test_steps_are_taken_again_in_the_precision_they_had():
    seen = []

    class Loud(MLPField):
        def forward(self, t, x, c=None):
            seen.append((x @ self.layers[0].weight.T).dtype)
            return super().forward(t, x, c)

    block = ODEBlock(Loud(3, (8, 8)), Solver("rk4", step_size=0.5))
    with torch.autocast("cpu", torch.bfloat16):
        y = block(torch.randn(4, 3))
    y.float().sum().backward()
    assert seen == 16 * [torch.bfloat16]


def test_what_torchdiffeq_solves_has_no_checkpoints():
    assert Solver("dopri8").gradient == Solver("explicit_adams", step_size=0.1).gradient == "direct"
    with pytest.raises(InputError, match="gradient=\"checkpoint\" is not for method='dopri8'"):
        Solver("dopri8", gradient="checkpoint")
    with pytest.raises(InputError, match="tsit5"):
        Solver("tsit5", gradient="adjoint")


@pytest.mark.parametrize("gradient", ["direct", "checkpoint", "adjoint"])
def test_what_is_listed_twice_has_its_gradient_once(gradient, float64):
    field = MLPField(2, (4,))
    y = torch.randn(5, 2)
    found = []
    for params in ((), tuple(field.parameters())):
        field.zero_grad()
        Solver(gradient=gradient).integrate(field, y, 0.0, 1.0, params=params).square().sum().backward()
        found.append([p.grad.clone() for p in field.parameters()])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("gradient", ["checkpoint", "adjoint"])
def test_params_made_of_each_other_are_refused(gradient, float64):
    """Their gradients would be counted twice; one of them alone is as good as a leaf."""
    y, c = torch.randn(5, 2), torch.randn(2, requires_grad=True)
    solver, h = Solver(gradient=gradient), c.exp()
    with pytest.raises(InputError, match="made of another"):
        solver.integrate(lambda t, y: y * h + c, y, 0.0, 1.0, params=(c, h))
    found = []
    for each in (solver, Solver(gradient="direct", rtol=1e-9, atol=1e-9)):
        end = each.integrate(lambda t, y: y * h, y, 0.0, 1.0, params=(h,))
        found += torch.autograd.grad(end.square().sum(), c, retain_graph=True)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_nothing_depends_on_what_is_listed(float64):
    c = torch.ones(1, requires_grad=True)
    end = Solver().integrate(lambda t, y: -y, torch.randn(5, 2), 0.0, 1.0, params=(c,))
    assert torch.autograd.grad(end.sum(), c, create_graph=True, allow_unused=True) == (None,)
