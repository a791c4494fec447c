"""Energies of the paths of ODEs against closed forms, and their gradients."""

import math

import pytest
import torch
from fields import Linear, wild

from anode import Field, MLPField, Solver, count_evals
from cnf import Continuous, MaximumLikelihood, SolveOptions, density_model

TIGHT = Solver(rtol=1e-9, atol=1e-9)
SOLVERS = {
    "dopri5": TIGHT,
    "rk4": Solver("rk4", step_size=0.01),
    "midpoint": Solver("midpoint", step_size=0.02),
    "bosh3": Solver("bosh3", rtol=1e-8, atol=1e-8),
    "adjoint": Solver(rtol=1e-9, atol=1e-9, gradient="adjoint"),
}
ALL = SolveOptions(("kinetic", "frobenius", "acceleration"))
OMEGA = 1.3
ROTATION = torch.tensor([[0.0, -OMEGA], [OMEGA, 0.0]], dtype=torch.float64)


class Shear(Field):
    """dx/dt = (t + x2, 0), whose acceleration along the path is (1, 0)."""

    def forward(self, t, x, c=None):
        return torch.stack([t + x[:, 1], 0 * x[:, 1]], 1)


class Growing(Field):
    """dx/dt = t x in two dimensions: the divergence 2 t changes at the rate 2."""

    def forward(self, t, x, c=None):
        return t.to(x.dtype) * x


def wild_ode(**options):
    torch.manual_seed(0)
    return Continuous(wild(MLPField(2, (16, 16), zero_init=True)), **options)


def energies(ode, x, *names, way="forward"):
    return getattr(ode, way)(x, options=SolveOptions(names) if names else ALL).energies


@pytest.mark.parametrize("way", ["forward", "inverse"])
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_energies_of_linear_fields(float64, solver, way):
    x = torch.randn(5, 2)
    constant = energies(Continuous(Linear(torch.zeros(2, 2), torch.tensor([3.0, -1.0])), solver), x, way=way)
    torch.testing.assert_close(constant["kinetic"], torch.full((5,), 5.0))
    torch.testing.assert_close(constant["frobenius"], torch.zeros(5))
    torch.testing.assert_close(constant["acceleration"], torch.zeros(5), rtol=0, atol=1e-16)

    rotation, square = energies(Continuous(Linear(ROTATION), solver), x, way=way), x.square().sum(1)
    torch.testing.assert_close(rotation["kinetic"], OMEGA**2 * square / 2, rtol=1e-3, atol=0)
    torch.testing.assert_close(rotation["frobenius"], torch.full((5,), 2 * OMEGA**2))
    # from the ends of steps of size h it is too small by a share (OMEGA h)^2 / 12
    torch.testing.assert_close(rotation["acceleration"], OMEGA**4 * square, rtol=1e-3, atol=0)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_acceleration_counts_the_explicit_time_and_the_log_density(float64, solver):
    of_shear = energies(Continuous(Shear(), solver), torch.randn(4, 2))["acceleration"]
    torch.testing.assert_close(of_shear, torch.ones(4), rtol=1e-6, atol=0)
    of_growth = energies(Continuous(Growing(), solver), torch.zeros(4, 2))["acceleration"]
    torch.testing.assert_close(of_growth, torch.full((4,), 4.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rate", [2.0, -2.0])
@pytest.mark.parametrize(("method", "within"), [("dopri5", 0.05), ("rk4", 0.01)])
def test_acceleration_of_growth_and_decay_at_coarse_steps(float64, rate, method, within):
    """For x' = a x, a^4 times the integral of x^2 along the path; from the last stage alone it is 6 to 12% off."""
    solver = Solver("rk4", step_size=0.125) if method == "rk4" else Solver(rtol=1e-4, atol=1e-4)
    x = torch.randn(5, 2)
    found = energies(Continuous(Linear(rate * torch.eye(2)), solver), x, "acceleration")["acceleration"]
    expected = rate**4 * x.square().sum(1) * -math.expm1(-2 * rate) / (2 * rate)
    torch.testing.assert_close(found, expected, rtol=within, atol=0)


def test_the_frobenius_energy_is_the_integral_of_the_jacobian(float64):
    field, step = wild_ode().field, 0.05
    x = torch.randn(6, 2)
    found = energies(Continuous(field, Solver("rk4", step_size=step)), x, "frobenius")["frobenius"]

    def norm(t, x):
        jacobian = torch.autograd.functional.jacobian(lambda x: field(torch.tensor(t), x).sum(0), x)
        return jacobian.square().sum((0, 2))

    times = torch.linspace(1, 0, 41)
    path = Solver("rk4", step_size=0.005).trajectory(field, x, times)
    norms = torch.stack([norm(t, y) for t, y in zip(times.tolist(), path, strict=True)])
    expected = (norms[:-1:2] + 4 * norms[1::2] + norms[2::2]).sum(0) * step / 6  # Simpson's rule
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_hutchinson_estimates(float64):
    """The Frobenius norm without bias; the acceleration of an estimated log-density has its variance on top."""
    x = torch.randn(1, 2).expand(4000, 2)
    estimates = energies(wild_ode(divergence="hutchinson"), x, "frobenius", "acceleration")
    truth = energies(wild_ode(), x[:1], "frobenius", "acceleration")
    norm, acceleration = estimates["frobenius"], estimates["acceleration"]
    assert norm.std() > 0
    assert (norm.mean() - truth["frobenius"]).abs() < 4 * norm.std() / 4000**0.5 + 1e-6
    assert acceleration.mean() - truth["acceleration"] > 4 * acceleration.std() / 4000**0.5


@pytest.mark.parametrize("method", ["dopri5", "adjoint", "bosh3"])
def test_energies_leave_the_steps_alone(method):
    gradient = "adjoint" if method == "adjoint" else "direct"
    ode = wild_ode(solver=Solver("bosh3" if method == "bosh3" else "dopri5", 1e-4, 1e-4, gradient=gradient))
    x = 3 * torch.randn(50, 2)
    results = []
    for options in (None, ALL):
        with count_evals() as nfe:
            result = ode(x, options=options)
            result.log_det.sum().backward()
        results.append((result, nfe))
    (plain, without), (full, with_energies) = results
    assert without.forward == with_energies.forward >= 20
    assert without.backward == with_energies.backward
    assert (without.backward > 0) == (method == "adjoint")
    assert torch.equal(plain.point, full.point)
    assert torch.equal(plain.log_det, full.log_det)


@pytest.mark.parametrize("solver", ["dopri5", "adjoint", "rk4", "midpoint"])
def test_gradients_of_energies_are_right(float64, solver):
    # the gradient takes the steps of adaptive solvers as constants
    adaptive = {"dopri5": TIGHT, "adjoint": Solver(rtol=1e-6, atol=1e-6, gradient="adjoint")}
    flow = density_model((2,), hidden=(8, 8), solver=adaptive.get(solver) or Solver(solver, step_size=0.25))
    wild(flow)
    objective, x = MaximumLikelihood(flow, kinetic=0.1, frobenius=0.2, acceleration=0.3), torch.randn(4, 2)
    bias = flow.split()[1].field.layers[1].bias
    (gradient,) = torch.autograd.grad(objective(x), bias)
    with torch.no_grad():
        bias[3] += 1e-5
        above = objective(x)
        bias[3] -= 2e-5
        below = objective(x)
    tolerance = 2e-3 if solver in adaptive else 1e-6
    assert abs((above - below) / 2e-5 - gradient[3]) < tolerance * gradient.abs().max()
