"""Solvers against matrix exponentials, finite differences and their own failures."""

import inspect
import math
from typing import get_args

import pytest
import torch
from fields import Blowup, Broken, Linear

from anode import Field, InputError, MLPField, ODEBlock, Solver, SolverError, classifier_model, count_evals
from anode.runge_kutta import ComponentRoles
from anode.solver import ADAPTIVE_METHODS, FixedMethod, solvers_in, with_solver

LOOSER = ("fehlberg2", "adaptive_heun")  # of second order
SOLVERS = [
    Solver(method, *(2 * [1e-6 if method in LOOSER else 1e-8]), max_steps=100_000) for method in ADAPTIVE_METHODS
]
FIXED_METHODS = get_args(FixedMethod)
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


ROW_SOLVERS = [
    *(Solver(method, rtol=1e-9, atol=1e-9, gradient=gradient) for method in ("dopri5", "tsit5")
      for gradient in ("direct", "checkpoint")),
    Solver("dopri8", rtol=1e-9, atol=1e-9),
    Solver("rk4", step_size=0.05),
]  # fmt: skip


@pytest.mark.parametrize("solver", ROW_SOLVERS, ids=str)
def test_rows_have_times_of_their_own(field, solver):
    """Values and gradients are those of the matrix exponential, at repeated and unsorted times, at both ends."""
    times, rows = torch.tensor([0.7, 0.1, 2.0, 0.1, 0.7001, 1.3]), torch.tensor([3, 0, 1, 1, 3, 3])
    x = torch.randn(4, 3, requires_grad=True)
    found = solver.states_at(field, x, 0.1, times, rows)
    exact = torch.stack([field.solution(x[row], t - 0.1) for t, row in zip(times, rows, strict=True)])
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)
    weights, leaves = torch.randn(6, 3), (x, field.a, field.b)
    gradients = [torch.autograd.grad((weights * path).sum(), leaves) for path in (found, exact)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_rows_cost_no_evaluations_and_no_time_is_none(field):
    x, solver = torch.randn(50, 3), Solver()
    with count_evals() as one:
        solver.integrate(field, x, 0.0, 1.0)
    with count_evals() as many:
        found = solver.states_at(field, x, 0.0, torch.linspace(0, 1, 5000), torch.arange(5000) % 50)
    assert found.shape == (5000, 3)
    assert many.forward == one.forward
    none = torch.zeros(0, dtype=torch.long)
    assert solver.states_at(field, x, 0.0, torch.zeros(0), none).shape == (0, 3)
    assert torch.equal(solver.states_at(field, x, 0.5, torch.tensor([0.5]), none.new_tensor([7])), x[7:8])
    for times in (torch.tensor([0.4, 1.0]), torch.tensor([0.6, 1.0], requires_grad=True)):
        with pytest.raises(InputError, match=r"times must be numbers from t0=0\.5 on"):
            solver.states_at(field, x, 0.5, times, none.new_tensor([0, 1]))


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

    @pytest.mark.parametrize(("gradient", "counts"), [("adjoint", True), ("checkpoint", True), ("direct", False)])
    def test_backward_evaluations_are_counted_apart(self, field, gradient, counts):
        block = ODEBlock(field, Solver(gradient=gradient))
        with count_evals(block) as nfe:
            y = block(torch.randn(4, 3))
            forward = nfe.forward
            y.sum().backward()
        assert nfe.forward == forward > 0
        assert (nfe.backward > 0) == counts

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
            ({"method": "rk5"}, "method='rk5' is unknown; choose one of dopri5, tsit5"),
            ({"rtol": -1e-5}, "rtol=-1e-05"),
            ({"atol": 0.0}, "atol=0.0"),
            ({"atol": math.nan}, "atol=nan"),
            ({"rtol": None}, "rtol=None"),
            ({"rtol": "small"}, "rtol='small'"),
            ({"method": "rk4", "step_size": -0.1}, "step_size=-0.1"),
            ({"step_size": 0.1}, "step_size=0.1 has no effect"),
            ({"first_step": -0.1}, "first_step=-0.1"),
            ({"method": "rk4", "step_size": 0.1, "first_step": 0.1}, "first_step=0.1 has no effect"),
            ({"max_steps": 0}, "max_steps=0"),
            ({"max_steps": 2.5}, "max_steps=2.5"),
            ({"method": ["rk4"]}, "method"),
            ({"gradient": "magic"}, "gradient='magic' is unknown; choose one of checkpoint, direct, adjoint"),
            ({"method": "dopri8", "gradient": "checkpoint"}, "gradient=\"checkpoint\" is not for method='dopri8'"),
            ({"method": "tsit5", "gradient": "adjoint"}, "gradient=\"adjoint\" is not for method='tsit5'"),
        ],
    )
    def test_is_named(self, arguments, names):
        with pytest.raises(InputError, match=names):
            Solver(**arguments)

    @pytest.mark.parametrize("times", [[0.0], [0.0, 0.5, 0.5], [0.0, 1.0, 0.5], [0.0, math.nan, 1.0], [1.0, 1.0]])
    def test_times_must_be_monotone(self, field, times):
        with pytest.raises(InputError, match="strictly"):
            Solver().trajectory(field, torch.randn(2, 3), times)
        with pytest.raises(InputError, match="strictly"):
            Solver().integrate(field, torch.randn(2, 3), 0.0, math.nan)

    @pytest.mark.parametrize(
        "solver", [Solver(), Solver("rk4", step_size=0.5), Solver("dopri8"), Solver(gradient="adjoint")]
    )
    def test_f_must_return_a_velocity(self, solver):
        y = torch.ones(4, 2)
        for f, got in (
            (lambda t, y: y[:, :1], r"f returns \(4, 1\) torch.float32 for a state \(4, 2\) torch.float32"),
            (lambda t, y: y.double(), "float64 for a state"),
            (lambda t, y: 0, "f returns int"),
        ):
            with pytest.raises(InputError, match=got):
                solver.integrate(f, y, 0.0, 1.0)
        with pytest.raises(InputError, match=r"NoneType for a state \(4, 2\)"):
            solver.integrate(lambda t, y: y[:1], (y, y), 0.0, 1.0)

    def test_on_step_needs_a_solver_that_supports_it(self, field):
        roles = ComponentRoles(on_step=lambda nodes, slopes, h: torch.zeros(2))
        for solver in (Solver(gradient="adjoint"), Solver("dopri8"), Solver("euler", step_size=0.1)):
            assert not solver.supports_on_step
            with pytest.raises(InputError, match="on_step"):
                solver.integrate(lambda t, y: (field(t, y[0]),), (torch.randn(2, 3),), 0, 1, roles=roles)

    @pytest.mark.parametrize(
        ("state", "names"),
        [
            ([1.0, 2.0], "y0 is of type list"),
            (1.0, "y0 is of type float"),
            (torch.ones(2).numpy(), "y0 is of type ndarray"),
            (torch.ones(2, dtype=torch.int64), r"dtype torch.int64: pass floating-point numbers, such as x.float\(\)"),
            (torch.ones(2, dtype=torch.complex64), "complex64"),
            (torch.ones(2, dtype=torch.float16), "float16, too coarse .* pass float32"),
            (torch.ones(2, dtype=torch.bfloat16), "bfloat16, too coarse"),
            ((torch.ones(2), torch.ones(2).half()), "float16, too coarse"),
        ],
    )
    def test_states_are_tensors_in_single_or_double_precision(self, state, names):
        for solver in (Solver(), Solver("rk4", step_size=0.5), Solver(gradient="adjoint")):
            with pytest.raises(InputError, match=names):
                solver.integrate(lambda t, y: y, state, 0.0, 1.0)
            with pytest.raises(InputError, match=names):
                solver.trajectory(lambda t, y: y, state, [0.0, 1.0])

    def test_arguments_of_another_type_are_named(self):
        x = torch.ones(2, 2)
        for arguments, names in (
            ((3, x, 0.0, 1.0), "f=3 is not a function"),
            ((MLPField(2), x, 0.0, "end"), "time 'end' is not a number"),
            ((MLPField(2), x.double(), 0.0, 1.0), r"dtype torch.float64, the field torch.float32: cast"),
        ):
            with pytest.raises(InputError, match=names):
                Solver().integrate(*arguments)
        for times in (1.0, torch.tensor(1.0)):
            with pytest.raises(InputError, match="two or more strictly"):
                Solver().trajectory(MLPField(2), x, times)


@pytest.mark.parametrize("solver", [Solver(rtol=1e-9, atol=1e-9), Solver("rk4", step_size=0.01)], ids=str)
def test_time_runs_both_ways(field, solver):
    x = torch.randn(4, 3)
    there = solver.integrate(field, x, 1.0, -0.5)
    torch.testing.assert_close(solver.integrate(field, there, -0.5, 1.0), x, rtol=1e-6, atol=1e-6)


def test_a_jump_in_time_costs_as_in_torchdiffeq(float64):
    """dx/dt = -x, and x from t = 0.37 on: x(1) = exp(0.63 - 0.37)."""
    f = lambda t, x: torch.where(t < 0.37, -x, x)  # noqa: E731
    x, exact = torch.ones(1), math.exp(0.26)
    own, theirs = (Solver(gradient=gradient).integrate(f, x, 0.0, 1.0) for gradient in ("direct", "adjoint"))
    assert own.item() == pytest.approx(theirs.item(), abs=1e-9)
    assert own.item() == pytest.approx(exact, abs=3e-3)


OF_EVERY_KIND = [
    *(Solver(gradient=gradient) for gradient in ("direct", "checkpoint", "adjoint")),
    Solver("rk4", step_size=0.1),
    Solver("dopri8"),
    Solver("explicit_adams", step_size=0.1),
]


class TestAutocast:
    @pytest.mark.parametrize("solver", OF_EVERY_KIND, ids=str)
    def test_states_keep_their_precision(self, solver):
        seen = set()

        def f(t, x):
            seen.add((x.dtype, (x @ x.new_ones(2, 2)).dtype))
            return -(x @ torch.eye(2))

        x = torch.rand(4, 2, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            y = solver.integrate(f, x, 0.0, 1.0)
            path = solver.trajectory(f, x.bfloat16(), [0.0, 0.5, 1.0])
        assert seen == {(torch.float32, torch.bfloat16)}
        assert (y.dtype, path.dtype) == (torch.float32, torch.float32)
        torch.testing.assert_close(y, x * math.exp(-1), rtol=1e-2, atol=1e-2)
        y.sum().backward()
        torch.testing.assert_close(x.grad, torch.full((4, 2), math.exp(-1)), rtol=1e-2, atol=1e-2)


def test_a_solver_goes_by_the_name_of_its_method():
    block = ODEBlock(MLPField(2), "rk4")
    assert block.solver == Solver("rk4") == Solver("rk4", step_size=0.25)
    assert with_solver(block, "dopri8").solver == Solver("dopri8")
    assert classifier_model((2,), 1, solver="tsit5").config.solver == Solver("tsit5")
    with pytest.raises(InputError, match="'rk5' is unknown; choose one of"):
        ODEBlock(MLPField(2), "rk5")


def test_a_solver_is_a_value():
    assert list(inspect.signature(Solver.__init__).parameters)[:3] == ["self", "method", "rtol"]
    assert Solver(rtol=1e-3) == Solver(rtol=1e-3) != Solver()
    assert len({Solver(), Solver()}) == 1
    assert Solver("dopri8").gradient == Solver("explicit_adams", step_size=0.1).gradient == "direct"


def test_solvers_in_a_model_are_found_and_replaced():
    model = torch.nn.Sequential(ODEBlock(MLPField(2), Solver(rtol=1e-3)), ODEBlock(MLPField(2), Solver("tsit5")))
    copy = with_solver(model, Solver(rtol=1e-7))
    assert solvers_in(copy) == 2 * [Solver(rtol=1e-7)]
    assert solvers_in(model) == [Solver(rtol=1e-3), Solver("tsit5")]
    assert all(a is b for a, b in zip(model.parameters(), copy.parameters(), strict=True))
