"""The graph of autograd: gradients where some have none, and what tensors are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from anode.errors import InputError
from anode.tableaus import Components


def gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], grads: Sequence[Tensor], create_graph: bool = False
) -> list[Tensor | None]:
    """The gradients of inputs from those of outputs; None where nothing depends on an input."""
    pairs = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if output.requires_grad]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    ends, of_ends = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(ends, wanted, of_ends, create_graph=create_graph, allow_unused=True))
    return [next(found) if tensor.requires_grad else None for tensor in inputs]


def check_listed(rates: Components, y0: Components, params: Sequence[Tensor]) -> None:
    """Raise an :class:`InputError` where rates, with a graph, depend on a leaf tensor that is neither in y0 nor params.

    It would silently get no gradient.
    """
    listed = (*y0, *params)
    known = {id(tensor) for tensor in listed}
    for node in _behind(rates, listed):
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            raise InputError(
                f"f depends on a tensor of shape {tuple(leaf.shape)} that is neither in y0 nor in params, so that it "
                'would get no gradient: list it, name the field, or pass gradient="direct"'
            )


def check_independent(params: Sequence[Tensor]) -> None:
    """Raise an :class:`InputError` where one of the params is made of another, whose gradient would count twice."""
    leaves = {id(tensor) for tensor in params if tensor.grad_fn is None}
    made = [tensor for tensor in params if tensor.grad_fn is not None]
    inner = {tensor.grad_fn for tensor in made}
    for tensor in made:
        for node in _behind([tensor], []):
            if id(getattr(node, "variable", None)) in leaves or node in inner - {tensor.grad_fn}:
                raise InputError(
                    f"a tensor of shape {tuple(tensor.shape)} among params is made of another one, or of weights of "
                    'the field: list the first alone, or pass gradient="direct"'
                )


def _behind(ends: Sequence[Tensor], listed: Sequence[Tensor]) -> Iterator[Any]:
    """The nodes of the graph that tensors are made by, as far as those of listed tensors."""
    stops = {(tensor.grad_fn, tensor.output_nr) for tensor in listed if tensor.grad_fn is not None}
    waiting, seen = [(end.grad_fn, end.output_nr) for end in ends], set()
    while waiting:
        node, nr = waiting.pop()
        if node is None or node in seen or (node, nr) in stops:
            continue
        seen.add(node)
        yield node
        waiting.extend(node.next_functions)
