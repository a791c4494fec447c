"""A model from the plain values and the names, shapes and types of the weights that a file holds.

Whoever can edit a file can give it the digest that belongs to it. So what it says is held against its own size first:
the model is built without memory, and gets some once it is known to have the weights that are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from anode.plain import check_arguments

M = TypeVar("M", bound=nn.Module)

TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # of the numbers of a model


def rebuild(build: Callable[..., M], arguments: Any, stored: Mapping[str, Tensor]) -> M:
    """The model on the ``meta`` device, where tensors have no content.

    Args:
        build: its constructor.
        arguments: of the constructor, by name.
        stored: its weights, on the ``meta`` device.

    Raises:
        ValueError: when the arguments are not those of a model with these weights.
    """
    types = {tensor.dtype for tensor in stored.values() if not _whole(tensor)}
    dtype = types.pop() if len(types) == 1 else None
    if dtype not in TYPES:
        raise ValueError("the weights are not all of one type of real numbers")
    try:
        check_arguments(build, arguments)
        with torch.device("meta"), _Few(len(stored)):
            model = build(**arguments)
        model.to(dtype)
    except Exception as error:  # what an unforeseen value sets off can be of many kinds
        raise ValueError(f"the arguments of the model do not serve: {error}") from error
    check_alike(model.state_dict(), stored)
    return model


def check_alike(wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Raise a ValueError unless stored tensors have the names, shapes and types that are wanted."""
    for name in (*wanted, *stored):
        if name not in stored:
            raise ValueError(f"{name} is missing")
        if name not in wanted:
            raise ValueError(f"{name} is not of the model")
        own, other = (f"{tuple(each[name].shape)} of {each[name].dtype}" for each in (wanted, stored))
        if own != other:
            raise ValueError(f"{name} is {other}, in the model {own}")


def _whole(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex()


class _Few(TorchFunctionMode):
    """Ends a construction of far more layers than there are weights for.

    Args:
        weights: tensors that the model should have; each takes a few operations to make and initialise.
    """

    def __init__(self, weights: int) -> None:
        super().__init__()
        self.left = 2000 + 100 * weights

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError("it has more layers than there are weights for")
        return func(*args, **(kwargs or {}))
