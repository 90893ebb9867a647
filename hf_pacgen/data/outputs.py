"""What a model gives besides its loss: its outputs, call by call and by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["caught", "named_outputs"]

SKIPPED = ("loss", "hidden_states", "attentions", "past_key_values")
"""Outputs that no loss is made of."""


@contextmanager
def caught(model: nn.Module) -> Iterator[list[Any]]:
    """What the model gives, call by call, while inside."""
    found: list[Any] = []
    handle = model.register_forward_hook(lambda module, args, output: found.append(output))
    try:
        yield found
    finally:
        handle.remove()


def named_outputs(outputs: Any) -> dict[str, Tensor]:
    """The tensors among outputs that a loss can be made of, by name."""
    if isinstance(outputs, Tensor):
        pairs: Any = [("output", outputs)]
    elif isinstance(outputs, Mapping):
        pairs = outputs.items()
    elif isinstance(outputs, (tuple, list)):
        pairs = [(f"output {i}", value) for i, value in enumerate(outputs)]
    else:
        pairs = vars(outputs).items() if hasattr(outputs, "__dict__") else ()
    found = {}
    for name, value in pairs:
        floating = isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad
        if floating and value.ndim and name not in SKIPPED:
            found[name] = value
    return found
