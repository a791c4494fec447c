"""Vector fields with known flows, and fields of every kind, for the tests."""

import torch
from torch import nn

from anode import Field, MLPField


class Linear(Field):
    """dx/dt = A x + b, whose flow is known by the matrix exponential."""

    def __init__(self, a, b=None):
        super().__init__()
        self.a = nn.Parameter(a)
        self.b = nn.Parameter(torch.zeros(len(a), dtype=a.dtype) if b is None else b)

    def forward(self, t, x, c=None):
        return x @ self.a.T + self.b

    def solution(self, x, t):
        """x(t) for x(0) = x, by the exponential of the matrix ((A, b), (0, 0))."""
        d = len(self.b)
        joined = torch.zeros(d + 1, d + 1, dtype=x.dtype)
        joined[:d, :d], joined[:d, d] = self.a, self.b
        flow = torch.matrix_exp(joined * t)
        return x @ flow[:d, :d].T + flow[:d, d]


class Conv(Field):
    """A small convolutional field that does not know its divergence."""

    def __init__(self, channels):
        super().__init__()
        self.inner = nn.Conv2d(channels, 3, 3, padding=1)
        self.outer = nn.Conv2d(3, channels, 3, padding=1)

    def forward(self, t, x, c=None):
        return self.outer(torch.tanh(self.inner(x) + t.reshape(-1, 1, 1, 1)))


class Blowup(Field):
    """dx/dt = 10 x^2 escapes to infinity in finite time."""

    def forward(self, t, x, c=None):
        return 10 * x * x


class Broken(Field):
    """Infinite from t = 1/2 on."""

    def forward(self, t, x, c=None):
        return x / (t < 0.5)


def mlp_fields():
    """Every combination of time conditioning, depth and activation, some with context."""
    for time in ("none", "concat", "bias", "squash"):
        for hidden in ((), (7,), (7, 5), (6, 5, 4)):
            for activation in ("tanh", "softplus", "relu", "silu", ("tanh", "silu")):
                context = 2 if activation in ("relu", "silu") else 0
                yield wild(MLPField(3, hidden, activation, time, context))


def jacobians(field, t, x, c=None):
    """The Jacobians df/dx of the samples, (B, D, D), by automatic differentiation."""
    rows = torch.autograd.functional.jacobian(lambda x: field(t, x, c).flatten(1).sum(0), x)
    return rows.flatten(2).transpose(0, 1)


def wild(field):
    """The field with large parameters, those that begin at zero too."""
    for parameter in field.parameters():
        nn.init.normal_(parameter, std=0.5)
    return field
