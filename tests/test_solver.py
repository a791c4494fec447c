"""Solvers against matrix exponentials, finite differences and their own failures."""

import math

import pytest
import torch
from fields import Blowup, Broken, Linear

from anode import Field, InputError, MLPField, ODEBlock, Solver, SolverError, count_evals
from anode.solver import ADAPTIVE_METHODS, FIXED_METHODS

LOOSER = ("fehlberg2", "adaptive_heun")  # of second order
SOLVERS = [
    Solver(method, *(2 * [1e-6 if method in LOOSER else 1e-8]), max_steps=100_000) for method in ADAPTIVE_METHODS
]
SOLVERS += [Solver(method, step_size=1e-3) for method in FIXED_METHODS]
ORDERS = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "explicit_adams": 4, "implicit_adams": 4}


@pytest.fixture
def field(float64):
    return Linear(torch.randn(3, 3), torch.randn(3))


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.method)
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0), (0.3, 0.35)])
def test_linear_field_has_its_matrix_exponential(field, solver, t0, t1):
    x = torch.randn(4, 3)
    y = solver.integrate(field, x, t0, t1)
    accuracy = {"euler": 2e-2, "midpoint": 1e-4, "heun2": 1e-4, "fehlberg2": 1e-3, "adaptive_heun": 1e-3}.get(
        solver.method, 2e-6
    )
    torch.testing.assert_close(y, field.solution(x, t1 - t0), rtol=accuracy, atol=accuracy)


@pytest.mark.parametrize("method", FIXED_METHODS)
def test_fixed_methods_converge_at_their_order(field, method):
    x = torch.randn(4, 3)
    exact = field.solution(x, 1.0)
    errors = [(Solver(method, step_size=h).integrate(field, x, 0, 1) - exact).detach().norm() for h in (1 / 40, 1 / 80)]
    assert math.log2(errors[0] / errors[1]) > ORDERS[method] - 0.3


@pytest.mark.parametrize("solver", [Solver(rtol=1e-9, atol=1e-9), Solver("rk4", step_size=0.07)], ids=str)
def test_trajectory_is_right_at_every_time(field, solver):
    x = torch.randn(4, 3)
    times = [1.0, 0.81, 0.5, 0.0]
    path = solver.trajectory(field, x, times)
    assert path.shape == (4, 4, 3)
    for t, y in zip(times, path, strict=True):
        torch.testing.assert_close(y, field.solution(x, t - 1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(path[-1], solver.integrate(field, x, 1, 0), rtol=1e-4, atol=1e-4)


def test_tuple_states_keep_their_components_apart(field):
    x, s = torch.randn(4, 3), torch.randn(2)
    solver = Solver(rtol=1e-9, atol=1e-9)
    y, r = solver.integrate(lambda t, state: (field(t, state[0]), -state[1]), (x, s), 0.0, 1.0, field=field)
    torch.testing.assert_close(y, field.solution(x, 1.0), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(r, s * math.exp(-1), rtol=1e-7, atol=1e-7)


def test_easy_dimensions_do_not_dilute_the_error(field):
    """A thousand constant dimensions beside three moving ones cost the same steps and leave the same error."""
    x = torch.randn(4, 3)
    solver = Solver(rtol=1e-6, atol=1e-6)
    with count_evals() as alone:
        y = solver.integrate(field, x, 0.0, 1.0)
    with count_evals() as beside:
        z, _ = solver.integrate(
            lambda t, s: (field(t, s[0]), torch.zeros_like(s[1])), (x, torch.zeros(4, 1000)), 0.0, 1.0, field=field
        )
    assert beside == alone
    torch.testing.assert_close(z, y)


def test_no_time_no_change(field):
    x = torch.randn(4, 3)
    assert Solver().integrate(field, x, 0.4, 0.4) is x


def _gradients(gradient, tolerance=1e-9):
    torch.manual_seed(1)
    field = MLPField(3, (16, 16), context=2)
    x, c = torch.randn(5, 3, requires_grad=True), torch.randn(5, 2, requires_grad=True)
    block = ODEBlock(field, Solver(rtol=tolerance, atol=tolerance, gradient=gradient))
    loss = block(x, c).square().sum()
    return torch.autograd.grad(loss, [x, c, *field.parameters()])


def test_adjoint_equals_direct_gradient(float64):
    for direct, adjoint in zip(_gradients("direct"), _gradients("adjoint"), strict=True):
        assert (direct - adjoint).norm() <= 1e-6 * direct.norm()


@pytest.mark.parametrize("solver", [Solver(rtol=1e-9, atol=1e-9), Solver("rk4", step_size=0.25)], ids=str)
def test_direct_gradient_equals_finite_differences(float64, solver):
    field = MLPField(2, (6,), context=1)
    block = ODEBlock(field, solver)
    inputs = torch.randn(3, 2, requires_grad=True), torch.randn(3, 1, requires_grad=True)
    assert torch.autograd.gradcheck(block, inputs, eps=1e-5, atol=1e-6)


def test_parameters_take_no_part_in_the_error_control_of_the_adjoint(float64):
    """The seminorm: parameters without any influence on x, but with huge gradients, cost no evaluation."""

    class Loud(Field):
        def __init__(self, loudness):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))
            self.loudness = loudness

        def forward(self, t, x, c=None):
            wobble = self.loudness * torch.sin(200 * t) * (self.weight - self.weight.detach())  # zero, with a gradient
            return -x + wobble

    counts = []
    for loudness in (0.0, 1e6):
        block = ODEBlock(Loud(loudness), Solver(gradient="adjoint"))
        with count_evals(block) as nfe:
            block(torch.ones(2, 1)).sum().backward()
        counts.append(nfe.backward)
    assert counts[0] == counts[1]


def test_adjoint_works_with_fixed_steps(float64):
    field = MLPField(2, (6,))
    x = torch.randn(3, 2)
    grads = []
    for gradient in ("direct", "adjoint"):
        y = Solver("rk4", step_size=0.01, gradient=gradient).integrate(field, x, 0.0, 1.0)
        grads.append(torch.autograd.grad(y.square().sum(), list(field.parameters())))
    for direct, adjoint in zip(*grads, strict=True):
        torch.testing.assert_close(direct, adjoint, rtol=1e-6, atol=1e-8)


class TestCount:
    def test_one_evaluation_is_one_call(self, field):
        calls = 0

        def f(t, x):
            nonlocal calls
            calls += 1
            return field(t, x)

        with count_evals() as nfe:
            Solver().integrate(f, torch.randn(4, 3), 0.0, 1.0, field=field)
        assert nfe.forward == calls > 0
        assert nfe.backward == 0
        assert (calls - 2) % 6 == 0  # dopri5: two to begin, six a step

    def test_backward_counts_the_adjoint(self, field):
        block = ODEBlock(field, Solver(gradient="adjoint"))
        with count_evals(block) as nfe:
            y = block(torch.randn(4, 3))
            forward = nfe.forward
            y.sum().backward()
        assert nfe.forward == forward > 0
        assert nfe.backward > 0

    def test_direct_gradient_evaluates_nothing(self, field):
        block = ODEBlock(field, Solver(gradient="direct"))
        with count_evals(block) as nfe:
            block(torch.randn(4, 3)).sum().backward()
        assert nfe.backward == 0

    def test_only_the_asked_module_counts(self, field):
        first, second = (
            ODEBlock(field, Solver("rk4", step_size=0.5)),
            ODEBlock(MLPField(3), Solver("euler", step_size=1)),
        )
        with count_evals(first) as one, count_evals(second) as two, count_evals() as both:
            second(first(torch.randn(4, 3)))
        assert (one.forward, two.forward, both.forward) == (8, 1, 9)

    def test_nothing_is_left_behind(self, field):
        before = dict(vars(field))
        with count_evals(field) as nfe:
            Solver().integrate(field, torch.randn(4, 3), 0.0, 1.0)
        counted = nfe.forward
        Solver().integrate(field, torch.randn(4, 3), 0.0, 1.0)
        assert nfe.forward == counted
        assert dict(vars(field)) == before


class TestFailures:
    @pytest.mark.parametrize(
        ("field", "solver", "cause"),
        [
            (Blowup(), Solver(), "step underflow"),
            (Broken(), Solver(), "non-finite state"),
            (MLPField(2), Solver(max_steps=1, rtol=1e-9, atol=1e-9), "too many steps"),
            (Blowup(), Solver("rk4", step_size=0.01), "non-finite state"),
            (MLPField(2), Solver("euler", step_size=0.01, max_steps=10), "too many steps"),
        ],
        ids=lambda part: part if isinstance(part, str) else "",
    )
    def test_are_explained(self, field, solver, cause):
        with pytest.raises(SolverError, match=cause) as caught:
            solver.integrate(field, torch.ones(4, 2), 0.0, 1.0)
        assert caught.value.cause == cause
        assert 0 <= caught.value.time <= 1
        assert caught.value.evaluations > 0

    def test_time_of_a_blowup_is_where_it_blows_up(self, float64):
        with pytest.raises(SolverError) as caught:
            Solver().integrate(Blowup(), torch.full((1, 1), 0.25), 0.0, 1.0)
        assert caught.value.time == pytest.approx(0.4, abs=1e-3)  # x = x0 / (1 - 10 x0 t)

    def test_limit_of_steps_is_over_the_whole_trajectory(self, field):
        solver = Solver("euler", step_size=0.1, max_steps=15)
        solver.trajectory(field, torch.randn(4, 3), [0, 1.0])
        with pytest.raises(SolverError, match="too many steps"):
            solver.trajectory(field, torch.randn(4, 3), [0, 1.0, 2.0])

    def test_backward_failures_are_explained_too(self, float64):
        class OneWay(Field):
            """Harmless forwards, violently unstable in the adjoint's direction."""

            def forward(self, t, x, c=None):
                return -40 * x

        solver = Solver(gradient="adjoint", max_steps=60, rtol=1e-7, atol=1e-7)
        x = torch.ones(1, 1, requires_grad=True)
        y = Solver(gradient="adjoint", max_steps=60, rtol=1e-3, atol=1e-3).integrate(OneWay(), x, 0.0, 1.0)
        y.sum().backward()  # within the limit
        with pytest.raises(SolverError, match="too many steps"):
            solver.integrate(OneWay(), x, 0.0, 1.0).sum().backward()

    def test_two_backward_passes_do_not_add_up(self, field):
        solver = Solver("rk4", step_size=0.1, max_steps=10, gradient="adjoint")
        y = solver.integrate(field, torch.randn(4, 3), 0.0, 1.0)
        for _ in range(2):
            y.sum().backward(retain_graph=True)


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "names"),
        [
            ({"method": "rk5"}, "rk5"),
            ({"rtol": -1e-5}, "rtol=-1e-05"),
            ({"atol": 0.0}, "atol=0.0"),
            ({"atol": math.nan}, "atol=nan"),
            ({"method": "rk4"}, "step_size"),
            ({"method": "rk4", "step_size": -0.1}, "step_size=-0.1"),
            ({"step_size": 0.1}, "step_size"),
            ({"max_steps": 0}, "max_steps=0"),
            ({"max_steps": 2.5}, "max_steps=2.5"),
            ({"rtol": None}, "rtol=None"),
            ({"rtol": "1e-5"}, "rtol=1e-5"),
            ({"gradient": "magic"}, "magic"),
        ],
    )
    def test_is_named(self, arguments, names):
        with pytest.raises(InputError, match=names):
            Solver(**arguments)

    @pytest.mark.parametrize("times", [[0.0], [0.0, 0.5, 0.5], [0.0, 1.0, 0.5]])
    def test_times_must_be_monotone(self, field, times):
        with pytest.raises(InputError, match="strictly"):
            Solver().trajectory(field, torch.randn(2, 3), times)


def test_a_solver_is_a_value():
    assert Solver(rtol=1e-3) == Solver(rtol=1e-3) != Solver()
    assert len({Solver(), Solver()}) == 1
