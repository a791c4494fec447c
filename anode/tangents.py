"""Perceptrons with their tangents: velocity and divergence of any depth from one stacked product a layer.

The D tangents dh/dx_i of a hidden layer go through the next one beside h itself, as one product with a stack of
(1 + D) B rows. So do the gradients in the backward pass, which :class:`_Stacked` writes out, in place where it can: a
quarter faster than automatic differentiation of the plain rule, which is its reference in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anode.activations import Activation
from anode.gradients import gradients
from anode.layers import Map, affine


def with_tangents(x: Tensor, maps: Sequence[Map], activations: Sequence[Activation]) -> tuple[Tensor, Tensor]:
    """The velocity (B, D) and the divergence (B,) of layers with activations between them.

    Args:
        x: points (B, D).
        maps: the affine maps of two layers or more, D to D in all.
        activations: of all layers but the last.
    """
    flat = [tensor for layer in maps for tensor in layer]
    mixed = torch.is_autocast_enabled(x.device.type)  # the backward rule knows one type
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or mixed or _transformed(x, *flat):
        return plainly(x, maps, activations)
    return _Stacked.apply(activations, x, *flat)


def plainly(x: Tensor, maps: Sequence[Map], activations: Sequence[Activation]) -> tuple[Tensor, Tensor]:
    """The same by operations that can be differentiated and transformed at will."""
    (weight, shift), *inner = maps[:-1]
    h, slope = activations[0].with_slope(affine(x, weight, shift))
    tangents = weight.T.unsqueeze(1)  # (D, 1, H) before the activation, the same for all samples
    for activation, (weight, shift) in zip(activations[1:], inner, strict=True):
        stack = torch.cat([h.unsqueeze(0), slope * tangents])  # (1 + D, B, H)
        product = stack @ weight.T
        tangents = product[1:]
        h, slope = activation.with_slope(product[0] + shift)
    last, shift = maps[-1]
    return affine(h, last, shift), (slope * _contracted(tangents, last)).sum(1)


def _contracted(tangents: Tensor, weight: Tensor) -> Tensor:
    """The sum over i of tangent i (D, B, H) times row i of a weight (D, H)."""
    return (tangents * weight.unsqueeze(1)).sum(0)


def _transformed(*tensors: Tensor) -> bool:
    """Whether some transform of ``torch.func`` looks on, for which there is no public question."""
    return any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors)


class _Stacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activations: Sequence[Activation], x: Tensor, *flat: Tensor) -> tuple[Tensor, Tensor]:
        weights, shifts = flat[::2], flat[1::2]
        a, tangents = affine(x, weights[0], shifts[0]), weights[0].T.unsqueeze(1)
        h, slope = activations[0].with_slope(a)
        kept = [a, h, slope]
        for activation, weight, shift in zip(activations[1:], weights[1:-1], shifts[1:-1], strict=True):
            stack = x.new_empty(1 + len(tangents), *h.shape)
            stack[0] = h
            torch.mul(slope, tangents, out=stack[1:])
            product = stack @ weight.T
            a, tangents = product[0].add_(shift), product[1:]
            h, slope = activation.with_slope(a)
            kept += [stack, product, h, slope]
        contracted = _contracted(tangents, weights[-1])
        ctx.activations, ctx.layers = activations, len(flat)
        ctx.save_for_backward(x, *flat, *kept, contracted)
        return affine(h, weights[-1], shifts[-1]), (slope * contracted).sum(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        flat = saved[: ctx.layers]
        if torch.is_grad_enabled():  # for gradients of gradients; what was kept has no graph
            return None, *_again(ctx.activations, x, flat, *grads)
        return None, *_gradients(ctx.activations, x, flat, saved[ctx.layers :], *grads)


def _gradients(
    activations: Sequence[Activation],
    x: Tensor,
    flat: Sequence[Tensor],
    kept: Sequence[Tensor],
    of_velocity: Tensor,
    of_divergence: Tensor,
) -> list[Tensor]:
    """Those of x and of every weight and shift."""
    weights, shifts = flat[::2], flat[1::2]
    (first_a, first_h, first_slope), (*inner, contracted) = kept[:3], kept[3:]
    layers = [(first_h, first_a, weights[0].T.unsqueeze(1), first_h, first_slope)]  # no stack enters the first
    for stack, product, h, slope in zip(*[iter(inner)] * 4, strict=True):
        layers.append((stack, product[0], product[1:], h, slope))

    _, _, tangents, h, slope = layers[-1]
    share = of_divergence.unsqueeze(1)
    of_h, of_slope = of_velocity @ weights[-1], share * contracted
    of_tangents = (share * slope) * weights[-1].unsqueeze(1)  # before the activation
    of_last = of_velocity.T @ h + ((share * slope) * tangents).sum(1)
    found = [of_last, _summed(of_velocity, shifts[-1])]
    for i in reversed(range(1, len(layers))):
        stack, a, _, h, slope = layers[i]
        both = x.new_empty(1 + len(of_tangents), *a.shape)  # gradients before the activation
        torch.mul(slope, of_h, out=both[0]).addcmul_(activations[i].curvature(a, h, slope), of_slope)
        both[1:] = of_tangents
        found = [_product(both, stack), _summed(both[0], shifts[i]), *found]
        back = both @ weights[i]
        _, _, tangents, _, slope = layers[i - 1]
        of_h, of_slope, of_tangents = back[0], (back[1:] * tangents).sum(0), slope * back[1:]
    _, a, _, h, slope = layers[0]
    of_a = (slope * of_h).addcmul_(activations[0].curvature(a, h, slope), of_slope)
    return [of_a @ weights[0], of_a.T @ x + of_tangents.sum(1).T, _summed(of_a, shifts[0]), *found]


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The sum over all rows of both stacks, (M, B, H1) and (M, B, H2), of their outer products, (H1, H2)."""
    return left.flatten(0, 1).T @ right.flatten(0, 1)


def _summed(of_shift: Tensor, shift: Tensor) -> Tensor:
    """The gradient of a shift, of the batch or of each sample."""
    return of_shift.sum(0) if shift.ndim == 1 else of_shift


def _again(
    activations: Sequence[Activation], x: Tensor, flat: Sequence[Tensor], of_velocity: Tensor, of_divergence: Tensor
) -> list[Tensor | None]:
    """The same gradients with a graph of their own."""
    rates = plainly(x, list(zip(flat[::2], flat[1::2], strict=True)), activations)
    return gradients(rates, (x, *flat), (of_velocity, of_divergence), create_graph=True)
