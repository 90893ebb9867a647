"""Numbers of any kind as tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor

from hf_pacgen.errors import InputError


def to_tensors(values: Any, name: str) -> dict[str, Tensor]:
    """Tensors by name from a tensor, an array, a list of numbers, a list of tensors, or any of these by name.

    What has no name of its own goes under ``"weights"``, and the tensors of a list under their numbers; whole numbers
    become float64.  What is not real numbers, has rows of different lengths or is empty is an InputError.

    >>> to_tensors([1, 2], "weights")
    {'weights': tensor([1., 2.], dtype=torch.float64)}
    """
    if isinstance(values, Mapping):
        by_name = dict(values)
    elif isinstance(values, (list, tuple)) and any(isinstance(v, (Tensor, numpy.ndarray)) and v.ndim for v in values):
        by_name = dict(enumerate(values))
    else:
        by_name = {"weights": values}
    tensors = {str(key): _to_tensor(value, name) for key, value in by_name.items()}
    if sum(tensor.numel() for tensor in tensors.values()) == 0:
        raise InputError(f"{name} has no numbers in it: expected a tensor, an array or a list, or these by name.")
    return tensors


def _to_tensor(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        try:
            # numpy.array copies, for torch warns of memory it may not write to
            value = torch.from_numpy(numpy.array(value))
        except (TypeError, ValueError) as error:  # strings and other objects, or rows of different lengths
            raise InputError(
                f"{name} must be a tensor, an array or a list of numbers, or these by name; "
                f"got {type(value).__name__} which cannot be made into one ({str(error).splitlines()[0]})."
            ) from None
    if value.is_complex() or value.dtype is torch.bool:
        raise InputError(f"{name} must hold real numbers; got {value.dtype}. Convert it first.")
    return value if value.is_floating_point() else value.double()


def to_number(value: Any, name: str) -> float:
    """A finite number of any library as a float; an InputError if it is none."""
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError, RuntimeError):  # a tensor of several elements raises RuntimeError
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{name} must be a finite number; got {value!r}.")
    return number
