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
