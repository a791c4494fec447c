"""Gradients of solves: checkpoints = direct = finite differences, the adjoint up to the tolerance, nothing left out."""

from dataclasses import replace

import pytest
import torch
from fields import Linear, wild
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from anode import Field, InputError, MLPField, ODEBlock, Solver, count_evals
from anode.runge_kutta import ComponentRoles

NATIVE = [
    Solver(rtol=1e-6, atol=1e-6),
    Solver("tsit5", rtol=1e-6, atol=1e-6),
    *(Solver(method, step_size=0.2) for method in ("euler", "midpoint", "heun2", "heun3", "rk4")),
]
native = pytest.mark.parametrize("solver", NATIVE, ids=lambda solver: solver.method)


def agree(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def assert_same_gradients(loss, solver, inputs):
    """The value and the gradients of loss(solver) are those of backpropagation through the same steps."""
    assert solver.gradient == "checkpoint"
    checkpoint, direct = loss(solver), loss(replace(solver, gradient="direct"))
    assert torch.equal(checkpoint, direct)
    agree(torch.autograd.grad(checkpoint, inputs), torch.autograd.grad(direct, inputs))


@pytest.fixture
def field(float64):
    return wild(MLPField(3, (8, 8), context=2))


class TestCheckpoints:
    @native
    def test_gradients_are_those_of_the_steps(self, field, solver):
        x, c = torch.randn(4, 3, requires_grad=True), torch.randn(4, 2, requires_grad=True)
        loss = lambda solver: ODEBlock(field, solver)(x, c).square().sum()  # noqa: E731
        assert_same_gradients(loss, solver, (x, c, *field.parameters()))

    @native
    @pytest.mark.parametrize("times", [(0, 0.1, 0.15, 0.7, 1), (1, 0.55, 0)])
    def test_gradients_reach_every_time_of_a_trajectory(self, field, solver, times):
        x, c, weights = torch.randn(4, 3, requires_grad=True), torch.randn(4, 2), torch.randn(len(times), 4, 3)
        loss = lambda solver: (weights * ODEBlock(field, solver).trajectory(x, times, c)).sum()  # noqa: E731
        assert_same_gradients(loss, solver, (x, *field.parameters()))

    @native
    def test_gradients_reach_all_roles(self, field, solver):
        x, c = torch.randn(4, 3, requires_grad=True), torch.randn(4, 2)

        def f(t, state):
            v = field(t, state[0], c)
            return v, state[0].square().sum(1), v.square().sum(1)

        def on_step(nodes, slopes, h):
            return (slopes[-1][0] - slopes[0][0]).square().sum(1) / abs(h)

        def loss(solver):
            on = on_step if solver.supports_on_step else None
            roles = ComponentRoles(2, lambda t, state: (field(t, state[0], c),), 1, on)
            y0 = (x, torch.zeros(4), torch.zeros(4))
            return sum(part.sin().sum() for part in solver.integrate(f, y0, 1, 0, (c,), field, roles))

        assert_same_gradients(loss, solver, (x, *field.parameters()))

    @pytest.mark.parametrize("solver", NATIVE[:3], ids=lambda solver: solver.method)
    def test_gradients_of_gradients_are_those_of_the_steps(self, field, solver):
        x, c = torch.randn(4, 3, requires_grad=True), torch.randn(4, 2)

        def loss(solver):
            (gradient,) = torch.autograd.grad(ODEBlock(field, solver)(x, c).sum(), x, create_graph=True)
            return gradient.square().sum()

        direct = loss(replace(solver, gradient="direct"))
        inputs = (x, *list(field.parameters())[:-1])
        agree(torch.autograd.grad(loss(solver), inputs), torch.autograd.grad(direct, inputs))

    def test_each_accepted_step_is_replayed_once(self, field):
        x, c = torch.randn(4, 3), torch.randn(4, 2)
        with count_evals() as direct:
            ODEBlock(field, Solver(gradient="direct"))(x, c).sum().backward()
        with count_evals() as nfe:
            ODEBlock(field, Solver())(x, c).sum().backward()
        assert (nfe.forward, nfe.steps) == (direct.forward, direct.steps)
        assert direct.backward == 0
        assert nfe.backward % 6 == 0
        assert 0 < nfe.backward <= 6 * nfe.steps

    def test_memory_is_that_of_the_states(self, field):
        x, c = torch.randn(100, 3), torch.randn(100, 2)

        def saved_bytes(gradient, step_size):
            saved = []
            with saved_tensors_hooks(lambda tensor: saved.append(tensor.nbytes) or tensor, lambda tensor: tensor):
                ODEBlock(field, Solver("rk4", step_size=step_size, gradient=gradient))(x, c)
            return sum(saved)

        grown = {
            gradient: saved_bytes(gradient, 0.05) - saved_bytes(gradient, 0.1) for gradient in ("checkpoint", "direct")
        }
        assert grown["checkpoint"] == 10 * x.nbytes
        assert grown["direct"] > 100 * x.nbytes

    def test_nothing_is_kept_without_gradients(self, field):
        x, c = torch.randn(4, 3), torch.randn(4, 2)
        with torch.no_grad():
            assert not ODEBlock(field, Solver())(x, c).requires_grad
        assert not Solver().integrate(lambda t, y: -y, x, 0, 1).requires_grad

    def test_steps_are_replayed_in_their_precision(self):
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


class TestAdjoint:
    def test_gradients_agree_with_direct_ones(self, field):
        x, c = torch.randn(5, 3, requires_grad=True), torch.randn(5, 2, requires_grad=True)
        inputs = (x, c, *field.parameters())
        for tolerance in ({"rtol": 1e-9, "atol": 1e-9}, {"method": "rk4", "step_size": 0.01}):
            direct, adjoint = (
                torch.autograd.grad(
                    ODEBlock(field, Solver(gradient=gradient, **tolerance))(x, c).square().sum(), inputs
                )
                for gradient in ("direct", "adjoint")
            )
            for a, b in zip(direct, adjoint, strict=True):
                assert (a - b).norm() <= 1e-6 * a.norm()

    def test_parameters_take_no_part_in_the_error_control(self, float64):
        """The seminorm: parameters without any influence on x, but with huge gradients, cost no evaluation."""

        class Loud(Field):
            def __init__(self, loudness):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(()))
                self.loudness = loudness

            def forward(self, t, x, c=None):
                return -x + self.loudness * torch.sin(200 * t) * (self.weight - self.weight.detach())

        counts = []
        for loudness in (0.0, 1e6):
            block = ODEBlock(Loud(loudness), Solver(gradient="adjoint"))
            with count_evals(block) as nfe:
                block(torch.ones(2, 1)).sum().backward()
            counts.append(nfe.backward)
        assert counts[0] == counts[1]


@pytest.mark.parametrize("solver", [Solver(rtol=1e-9, atol=1e-9), Solver("rk4", step_size=0.25)], ids=str)
def test_gradients_equal_finite_differences(float64, solver):
    block = ODEBlock(MLPField(2, (6,), context=1), solver)
    inputs = torch.randn(3, 2, requires_grad=True), torch.randn(3, 1, requires_grad=True)
    assert torch.autograd.gradcheck(block, inputs, eps=1e-5, atol=1e-6)


class TestParams:
    def test_an_undeclared_tensor_is_refused(self, float64):
        a, x = torch.ones(2, requires_grad=True), torch.randn(3, 2)
        x_grad = torch.randn(2, requires_grad=True)
        for f, y0 in ((lambda t, y: -a * y, x), (lambda t, y: -(2 * a) * y, x), (lambda t, y: x_grad - y, x_grad)):
            with pytest.raises(InputError, match=r"shape \(2,\) that is neither in y0 nor in params"):
                Solver().integrate(f, y0, 0, 1)
        end = Solver().integrate(lambda t, y: -a * y, x, 0, 1, params=(a,))
        direct = Solver(gradient="direct").integrate(lambda t, y: -a * y, x, 0, 1)
        agree(torch.autograd.grad(end.sum(), a), torch.autograd.grad(direct.sum(), a))

    def test_the_module_of_a_closure_can_be_named(self, float64):
        net, x = nn.Linear(2, 2), torch.randn(3, 2)
        with pytest.raises(InputError, match="module that holds it"):
            Solver().integrate(lambda t, y: net(y), x, 0, 1)
        Solver().integrate(lambda t, y: net(y), x, 0, 1, field=net).sum().backward()
        assert net.weight.grad is not None

    def test_a_declared_tensor_may_depend_on_others(self, float64):
        a, x = torch.ones(2, requires_grad=True), torch.randn(3, 2, requires_grad=True)

        def loss(solver):
            b = 2 * a
            return solver.integrate(lambda t, y: -b * y, x.sin(), 0, 1, params=(b,)).sum()

        assert_same_gradients(loss, Solver(), (a, x))

    @pytest.mark.parametrize("gradient", ["checkpoint", "adjoint"])
    def test_params_computed_from_each_other_are_refused(self, gradient, float64):
        y, c = torch.randn(5, 2), torch.randn(2, requires_grad=True)
        h = c.exp()
        with pytest.raises(InputError, match="computed from another"):
            Solver(gradient=gradient).integrate(lambda t, y: y * h + c, y, 0.0, 1.0, params=(c, h))

    @pytest.mark.parametrize("gradient", ["direct", "checkpoint", "adjoint"])
    def test_a_tensor_declared_twice_has_its_gradient_once(self, gradient, float64):
        field, y, found = MLPField(2, (4,)), torch.randn(5, 2), []
        for params in ((), tuple(field.parameters())):
            end = Solver(gradient=gradient).integrate(field, y, 0.0, 1.0, params=params)
            found.append(torch.autograd.grad(end.square().sum(), list(field.parameters())))
        agree(*found)

    def test_an_unused_parameter_has_no_gradient(self, float64):
        field, c = Linear(torch.eye(2)), torch.ones(1, requires_grad=True)
        field.idle = nn.Parameter(torch.ones(2))
        ODEBlock(field, Solver())(torch.randn(3, 2)).sum().backward()
        assert field.idle.grad is None
        assert field.a.grad is not None
        end = Solver().integrate(lambda t, y: -y, torch.randn(5, 2), 0.0, 1.0, params=(c,))
        assert torch.autograd.grad(end.sum(), c, create_graph=True, allow_unused=True) == (None,)

    @pytest.mark.parametrize("gradient", ["checkpoint", "adjoint"])
    def test_exchanged_parameters_are_refused(self, float64, gradient):
        block = ODEBlock(wild(MLPField(2, (5,))), Solver(gradient=gradient))
        other = {name: (2 * parameter).detach().requires_grad_() for name, parameter in block.named_parameters()}
        x = torch.randn(3, 2)
        y = torch.func.functional_call(block, other, (x,))
        with pytest.raises(InputError, match="functional_call"):
            y.sum().backward()
        block.solver = Solver(gradient="direct")
        torch.func.functional_call(block, other, (x,)).sum().backward()
        assert all(parameter.grad is not None for parameter in other.values())


CHANGING = {
    "dropout": lambda: nn.Dropout(0.3),
    "batch-norm": lambda: nn.BatchNorm1d(8),
    "both": lambda: nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.3)),
}


def training(gradient, layer, method="rk4"):
    """A block with random or stateful layers in training mode."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 8), layer(), nn.Tanh(), nn.Linear(8, 3))
    tolerance = {"step_size": 0.1} if method in ("euler", "rk4") else {"rtol": 1e-8, "atol": 1e-8}
    return ODEBlock(net, Solver(method, gradient=gradient, **tolerance))


class TestChangingFields:
    """Dropout, noise and running statistics: one draw a solve, and no trace of the backward pass."""

    @pytest.mark.parametrize("layer", CHANGING.values(), ids=CHANGING)
    @pytest.mark.parametrize(
        ("method", "gradient", "accuracy"),
        [
            ("euler", "checkpoint", 1e-12),
            ("rk4", "checkpoint", 1e-12),
            ("dopri5", "checkpoint", 1e-12),
            ("rk4", "adjoint", 1e-5),
            ("dopri5", "adjoint", 1e-6),
        ],
    )
    def test_gradients_are_those_of_the_forward_pass(self, float64, layer, method, gradient, accuracy):
        x, found = torch.randn(16, 3), []
        for each in ("direct", gradient):
            block = training(each, layer, method)
            torch.manual_seed(2)
            y = block(x)
            y.square().sum().backward()
            weights = torch.cat([parameter.grad.flatten() for parameter in block.parameters()])
            found.append((y.detach(), weights, torch.rand(()), [buffer.clone() for buffer in block.buffers()]))
        (y, direct, draw, buffers), (z, weights, same_draw, same_buffers) = found
        torch.testing.assert_close(y, z, rtol=1e-12, atol=1e-12)
        assert (direct - weights).norm() < accuracy * direct.norm()
        assert draw == same_draw
        torch.testing.assert_close(buffers, same_buffers, rtol=1e-9, atol=1e-9)

    def test_a_solve_has_one_draw_and_the_next_another(self, float64):
        """dx/dt = xi with one normal xi: x(1) = x(0) + xi in any number of steps."""
        draws = []
        x = torch.zeros(5)
        for solver in (Solver(), Solver("euler", step_size=0.1), Solver("dopri8")):
            torch.manual_seed(3)
            solves = [solver.integrate(lambda t, y: torch.randn_like(y), x, 0, 1) for _ in range(2)]
            torch.manual_seed(3)
            torch.testing.assert_close(solves, [torch.randn(5), torch.randn(5)])
            draws.append(torch.stack(solves))
        assert not torch.allclose(draws[0][0], draws[0][1])

    @pytest.mark.parametrize("gradient", ["direct", "checkpoint", "adjoint"])
    @pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
    def test_a_field_that_overwrites_its_state_is_refused(self, gradient, mode):
        net = nn.Sequential(nn.ELU(inplace=True), nn.Linear(2, 2))
        leaf = torch.randn(4, 2, requires_grad=True)
        for solver in (Solver(gradient=gradient), Solver("rk4", step_size=0.5, gradient=gradient)):
            with mode():
                for x in (torch.randn(4, 2), leaf, leaf * 2, leaf.detach().clone()):
                    with pytest.raises(InputError, match="in place: pass inplace=False"):
                        ODEBlock(net, solver)(x)


class TestSecondDerivatives:
    @pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
    def test_hessian_is_that_of_finite_differences(self, float64, gradient):
        block = ODEBlock(wild(MLPField(2, (6,))), Solver(rtol=1e-10, atol=1e-10, gradient=gradient))
        x, step = torch.randn(2), 1e-5

        def slope(x):
            x = x.detach().requires_grad_()
            return torch.autograd.grad(block(x[None]).square().sum(), x)[0]

        hessian = torch.autograd.functional.hessian(lambda x: block(x[None]).square().sum(), x)
        differences = [(slope(x + step * e) - slope(x - step * e)) / (2 * step) for e in torch.eye(2)]
        torch.testing.assert_close(hessian, torch.stack(differences), rtol=1e-5, atol=1e-6)
        transformed = torch.func.hessian(lambda x: block(x[None]).square().sum())(x)
        torch.testing.assert_close(transformed, hessian, rtol=1e-7, atol=1e-7)

    @pytest.mark.parametrize("method", ["dopri5", "dopri8", "rk4"])
    def test_the_adjoint_refuses_them(self, float64, method):
        steps = {"step_size": 0.1} if method == "rk4" else {}
        block = ODEBlock(MLPField(2), Solver(method, gradient="adjoint", **steps))
        x = torch.randn(3, 2, requires_grad=True)
        torch.autograd.grad(block(x).sum(), x)
        with pytest.raises(InputError, match='pass gradient="checkpoint"'):
            torch.autograd.grad(block(x).sum(), x, create_graph=True)

    @pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
    def test_a_parameter_of_state_and_field_counts_once(self, float64, gradient):
        """y(1) = c exp(-c) for y(0) = c, whose derivatives are (1 - c) exp(-c) and (c - 2) exp(-c)."""
        c = torch.tensor(0.5, requires_grad=True)
        solver = Solver(rtol=1e-10, atol=1e-10, gradient=gradient)
        y = solver.integrate(lambda t, y: -c * y, c * torch.ones(1), 0, 1, params=(c,)).sum()
        (first,) = torch.autograd.grad(y, c, create_graph=True)
        (second,) = torch.autograd.grad(first, c)
        torch.testing.assert_close((first, second), ((1 - c) * (-c).exp(), (c - 2) * (-c).exp()))


ACCURATE = [
    Solver("dopri5", rtol=1e-10, atol=1e-10),
    Solver("rk4", step_size=0.01),
    Solver("dopri5", rtol=1e-10, atol=1e-10, gradient="direct"),
    Solver("dopri5", rtol=1e-10, atol=1e-10, gradient="adjoint"),
    Solver("dopri8", rtol=1e-10, atol=1e-10),
]


class TestTimes:
    """dy/dt = -k t y, y(t) = y(t0) exp(-k (t^2 - t0^2) / 2)."""

    each = pytest.mark.parametrize("solver", ACCURATE, ids=lambda solver: f"{solver.method}-{solver.gradient}")

    @staticmethod
    def exact(x, k, t0, t):
        return x * (-k * (t**2 - t0**2) / 2).exp()

    @each
    def test_both_ends_of_a_solve_have_gradients(self, float64, solver):
        x, ends = torch.randn(4, 2), [torch.tensor(v, requires_grad=True) for v in (0.1, 0.7, 1.3)]
        t0, t1, k = ends
        y = solver.integrate(lambda t, y: -k * t * y, x, t0, t1, params=(k,))
        assert torch.equal(y, solver.integrate(lambda t, y: -k * t * y, x, 0.1, 0.7, params=(k,)))
        expected = torch.autograd.grad(self.exact(x, k, t0, t1).sum(), ends)
        for found, right in zip(torch.autograd.grad(y.sum(), ends), expected, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-7)

    @each
    def test_times_of_a_trajectory_have_gradients(self, float64, solver):
        x, weights, k = torch.randn(4, 2), torch.randn(4, 4, 2), torch.tensor(1.3)
        times = torch.tensor([0.1, 0.3, 0.4, 0.9], requires_grad=True)
        path = ODEBlock(lambda t, y: -k * t * y, solver).trajectory(x, times)
        exact = self.exact(x, k, times[0], times[:, None, None])
        found, expected = (torch.autograd.grad((weights * each).sum(), times)[0] for each in (path, exact))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("solver", ACCURATE[:3], ids=str)
    def test_they_have_second_derivatives(self, float64, solver):
        x = torch.randn(4, 2)

        def solved(t0, t1, k):
            return solver.integrate(lambda t, y: -k * t * y, x, t0, t1, params=(k,)).square().sum()

        inputs = torch.tensor(0.1), torch.tensor(0.7), torch.tensor(1.3)
        expected = torch.autograd.functional.hessian(lambda t0, t1, k: self.exact(x, k, t0, t1).square().sum(), inputs)
        torch.testing.assert_close(torch.autograd.functional.hessian(solved, inputs), expected, rtol=1e-5, atol=1e-5)

    def test_a_tuple_and_a_duration_of_the_field_have_them(self, float64):
        """A learned duration: a parameter of the field, from which the end time is computed."""
        field, x, s = Linear(-torch.eye(2)), torch.randn(4, 2), torch.ones(3)
        field.raw = nn.Parameter(torch.tensor(0.3))

        def loss(solver, end):
            f = lambda t, y: (field(t, y[0]), -2 * y[1])  # noqa: E731
            return sum(part.sum() for part in solver.integrate(f, (x, s), 0.0, end, field=field))

        exact = x.sum() * (-field.raw.exp()).exp() + 3 * (-2 * field.raw.exp()).exp()
        (expected,) = torch.autograd.grad(exact, field.raw)
        for solver in ACCURATE:
            (found,) = torch.autograd.grad(loss(solver, field.raw.exp()), field.raw)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)

    def test_the_evaluations_stay(self, float64):
        x, counts = torch.randn(4, 2), []
        for end in (0.7, torch.tensor(0.7, requires_grad=True)):
            with count_evals() as evals:
                Solver().integrate(lambda t, y: -t * y, x, 0.0, end)
            counts.append(evals)
        assert counts[0] == counts[1]

    def test_what_has_no_gradient_is_refused(self):
        x, t = torch.randn(4, 2), torch.tensor(0.5, requires_grad=True)
        with pytest.raises(InputError, match="distinct times"):
            Solver().integrate(lambda t, y: -y, x, 0.5, t)
        with pytest.raises(InputError, match=r"time of shape \(4,\) is not one number"):
            Solver().integrate(lambda t, y: -y, x, 0.0, torch.rand(4))


class TestTransforms:
    """Transforms of torch.func."""

    @pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
    @pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd])
    def test_jacobians_are_those_of_the_flow(self, float64, gradient, transform):
        field = Linear(torch.randn(2, 2))
        block = ODEBlock(field, Solver(rtol=1e-10, atol=1e-10, gradient=gradient))
        jacobian = transform(lambda x: block(x[None])[0])(torch.randn(2))
        torch.testing.assert_close(jacobian, torch.matrix_exp(field.a))

    def test_a_tensor_of_a_closure_and_the_end_time_have_gradients(self, float64):
        x, a = torch.ones(2), torch.tensor(0.5)
        solver = Solver(rtol=1e-10, atol=1e-10)
        found = torch.func.grad(lambda a: solver.integrate(lambda t, y: -a * y, x, 0, 1).sum())(a)
        torch.testing.assert_close(found, -2 * (-a).exp())
        found = torch.func.grad(lambda end: solver.integrate(lambda t, y: -y, x, 0, end).sum())(a)
        torch.testing.assert_close(found, -2 * (-a).exp())

    @pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacfwd, torch.func.hessian])
    @pytest.mark.parametrize("solver", [Solver(gradient="adjoint"), Solver("dopri8")], ids=str)
    def test_solvers_without_them_say_so(self, transform, solver):
        block = ODEBlock(MLPField(2), solver)
        with pytest.raises(InputError, match='pass gradient="direct"'):
            transform(lambda x: block(x).sum())(torch.randn(3, 2))

    @pytest.mark.filterwarnings("ignore:There is a performance drop")
    @pytest.mark.parametrize("solver", [Solver(), Solver("rk4", step_size=0.5)], ids=str)
    def test_vmap_is_refused(self, solver):
        block, x = ODEBlock(MLPField(2), solver), torch.randn(3, 1, 2)
        with pytest.raises(InputError, match="takes a batch, so call it on all rows"):
            torch.func.vmap(block)(x)
        with pytest.raises(InputError, match="takes a batch"):
            torch.func.vmap(torch.func.grad(lambda x: block(x).sum()))(x)
        with pytest.raises(InputError, match="takes a batch"):
            torch.func.vmap(lambda t: solver.integrate(lambda t, y: -y, torch.ones(2), 0.0, t))(torch.rand(3))


@pytest.mark.parametrize("with_f_state", [False, True])
def test_a_field_may_differentiate(float64, with_f_state):
    """Dynamics given by a Hamiltonian: dq/dt = dH/dp, dp/dt = -dH/dq, here a circle."""

    def velocity(t, state):
        with torch.enable_grad():
            energy = state[0].square().sum() / 2
            dq, dp = torch.autograd.grad(energy, state[0], create_graph=True)[0].chunk(2, dim=1)
        return (torch.cat([dp, -dq], 1),)

    def f(t, state):
        return *velocity(t, state), state[0].sum(1)

    x = torch.randn(4, 2, requires_grad=True)
    circle = Linear(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    roles = ComponentRoles(quadratures=1, f_state=velocity if with_f_state else None)
    y, _ = Solver(rtol=1e-9, atol=1e-9).integrate(f, (x, torch.zeros(4)), 0, 1, roles=roles)
    torch.testing.assert_close(y, circle.solution(x, torch.tensor(1.0)))
