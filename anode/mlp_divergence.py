"""Velocity and exact divergence of perceptrons of any depth, by forward derivatives stacked into one product a layer.

The D tangents dh/dx_i of a hidden layer pass through the next layer together with h, as one product with a stack of
(1 + D) B rows. The backward pass does the same with gradients; :class:`_StackedJVP` writes it out, in place where
possible, which is a quarter faster than automatic differentiation of :func:`reference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anode.gradients import gradients, is_transformed
from anode.layers import Activation, Affine, affine


def forward_with_divergence(
    x: Tensor, layers: Sequence[Affine], activations: Sequence[Activation]
) -> tuple[Tensor, Tensor]:
    """Return the velocity (B, D) and the divergence (B,) of affine layers with activations between them.

    Args:
        x: points (B, D).
        layers: two or more affine maps, which take D dimensions to D.
        activations: one for every layer but the last.
    """
    flat = [tensor for layer in layers for tensor in layer]
    autocast = torch.is_autocast_enabled(x.device.type)  # the hand-written backward pass knows one dtype
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or autocast or is_transformed():
        return reference(x, layers, activations)
    return _StackedJVP.apply(activations, x, *flat)


def reference(x: Tensor, layers: Sequence[Affine], activations: Sequence[Activation]) -> tuple[Tensor, Tensor]:
    """Compute :func:`forward_with_divergence` by operations that autograd and torch.func can transform."""
    (weight, shift), *inner = layers[:-1]
    h, slope = activations[0].with_slope(affine(x, weight, shift))
    tangents = weight.T.unsqueeze(1)  # (D, 1, H) before the activation, equal for all samples
    for activation, (weight, shift) in zip(activations[1:], inner, strict=True):
        stack = torch.cat([h.unsqueeze(0), slope * tangents])  # (1 + D, B, H)
        product = stack @ weight.T
        tangents = product[1:]
        h, slope = activation.with_slope(product[0] + shift)
    last, shift = layers[-1]
    return affine(h, last, shift), (slope * _contract(tangents, last)).sum(1)


def _contract(tangents: Tensor, weight: Tensor) -> Tensor:
    """Return sum_i tangents[i] * weight[i] for tangents (D, B, H) and a weight (D, H)."""
    return (tangents * weight.unsqueeze(1)).sum(0)


class _StackedJVP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activations: Sequence[Activation], x: Tensor, *flat: Tensor) -> tuple[Tensor, Tensor]:
        weights, shifts = flat[::2], flat[1::2]
        a, tangents = affine(x, weights[0], shifts[0]), weights[0].T.unsqueeze(1)
        h, slope = activations[0].with_slope(a)
        saved = [a, h, slope]
        for activation, weight, shift in zip(activations[1:], weights[1:-1], shifts[1:-1], strict=True):
            stack = x.new_empty(1 + len(tangents), *h.shape)
            stack[0] = h
            torch.mul(slope, tangents, out=stack[1:])
            product = stack @ weight.T
            a, tangents = product[0].add_(shift), product[1:]
            h, slope = activation.with_slope(a)
            saved += [stack, product, h, slope]
        contracted = _contract(tangents, weights[-1])
        ctx.activations, ctx.n_flat = activations, len(flat)
        ctx.save_for_backward(x, *flat, *saved, contracted)
        return affine(h, weights[-1], shifts[-1]), (slope * contracted).sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        flat = tensors[: ctx.n_flat]
        if torch.is_grad_enabled():  # gradients of gradients; the saved tensors do not have a graph
            return None, *_double_backward(ctx.activations, x, flat, *grads)
        return None, *_backward(ctx.activations, x, flat, tensors[ctx.n_flat :], *grads)


def _backward(
    activations: Sequence[Activation],
    x: Tensor,
    flat: Sequence[Tensor],
    saved: Sequence[Tensor],
    grad_velocity: Tensor,
    grad_divergence: Tensor,
) -> list[Tensor]:
    """Return the gradients of x and of every weight and shift."""
    weights, shifts = flat[::2], flat[1::2]
    (first_a, first_h, first_slope), (*inner, contracted) = saved[:3], saved[3:]
    layers = [(first_h, first_a, weights[0].T.unsqueeze(1), first_h, first_slope)]  # no stack enters the first layer
    for stack, product, h, slope in zip(*[iter(inner)] * 4, strict=True):
        layers.append((stack, product[0], product[1:], h, slope))

    _, _, tangents, h, slope = layers[-1]
    share = grad_divergence.unsqueeze(1)
    grad_h, grad_slope = grad_velocity @ weights[-1], share * contracted
    grad_tangents = (share * slope) * weights[-1].unsqueeze(1)  # before the activation
    grad_last = grad_velocity.T @ h + ((share * slope) * tangents).sum(1)
    found = [grad_last, _sum_to(grad_velocity, shifts[-1])]
    for i in reversed(range(1, len(layers))):
        stack, a, _, h, slope = layers[i]
        both = x.new_empty(1 + len(grad_tangents), *a.shape)  # gradients before the activation
        torch.mul(slope, grad_h, out=both[0]).addcmul_(activations[i].curvature(a, h, slope), grad_slope)
        both[1:] = grad_tangents
        grad_weight = both.flatten(0, 1).T @ stack.flatten(0, 1)
        found = [grad_weight, _sum_to(both[0], shifts[i]), *found]
        back = both @ weights[i]
        _, _, tangents, _, slope = layers[i - 1]
        grad_h, grad_slope, grad_tangents = back[0], (back[1:] * tangents).sum(0), slope * back[1:]
    _, a, _, h, slope = layers[0]
    grad_a = (slope * grad_h).addcmul_(activations[0].curvature(a, h, slope), grad_slope)
    return [grad_a @ weights[0], grad_a.T @ x + grad_tangents.sum(1).T, _sum_to(grad_a, shifts[0]), *found]


def _sum_to(grad: Tensor, shift: Tensor) -> Tensor:
    """Return the gradient of a shift of the batch, (H,), or of each sample, (B, H)."""
    return grad.sum(0) if shift.ndim == 1 else grad


def _double_backward(
    activations: Sequence[Activation], x: Tensor, flat: Sequence[Tensor], grad_velocity: Tensor, grad_divergence: Tensor
) -> list[Tensor | None]:
    """Return the gradients of :func:`_backward` with a graph."""
    rates = reference(x, list(zip(flat[::2], flat[1::2], strict=True)), activations)
    return gradients(rates, (x, *flat), (grad_velocity, grad_divergence), create_graph=True)
