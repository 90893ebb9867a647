"""DeepSpeed's ZeRO stages 1 and 2: when their optimizer steps, and the gradients that it alone has.

Their weights are whole on every process, as views of one flat buffer that a step writes to.  Noise that lets the
parameters point to other memory for a while is no part of that buffer.  But accelerate lets the engine step at the end
of its ``backward()``, inside of the Trainer's ``training_step``: so noise has to leave when that step begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["LazyGradients", "ZeroStep", "engine_module", "zero_optimizer"]


def engine_module(model: nn.Module) -> nn.Module | None:
    """The model inside a DeepSpeedEngine; None for any other module."""
    is_engine = any(kind.__name__ == "DeepSpeedEngine" for kind in type(model).__mro__)
    return model.module if is_engine else None  # type: ignore[return-value]


def zero_optimizer(optimizer: Any) -> Any:
    """DeepSpeed's own optimizer inside accelerate's wrapper; None where DeepSpeed has no part in the run.

    Raises:
        ValueError: DeepSpeed without ZeRO.
    """
    if type(optimizer).__name__ != "DeepSpeedOptimizerWrapper":
        return None
    inner = optimizer.optimizer
    if not type(inner).__module__.startswith("deepspeed.runtime.zero"):
        raise ValueError(
            "Noise under DeepSpeed needs ZeRO, whose optimizer keeps the averaged gradients; got "
            f"{type(inner).__name__}. Set zero_optimization: {{'stage': 1}} or 2 in the DeepSpeed configuration, or "
            "train without DeepSpeed."
        )
    return inner


class ZeroStep:
    """Calls ``before`` whenever a ZeRO optimizer begins its step, until :meth:`close`."""

    def __init__(self, optimizer: Any, before: Callable[[], None]) -> None:
        self._optimizer, self._own = optimizer, vars(optimizer).get("step")
        step = optimizer.step

        def begin(*args: Any, **kwargs: Any) -> Any:
            before()
            return step(*args, **kwargs)

        # on the instance, since the engine looks the method up at every step
        optimizer.step = begin

    @property
    def loss_scale(self) -> float:
        """By how much the gradients are larger than those of the loss."""
        return float(getattr(self._optimizer, "loss_scale", 1.0))

    def gradient(self, parameter: Tensor) -> Tensor | None:
        """The gradient of all processes, gathered from their parts, which all must call for together; in float32."""
        gather = getattr(parameter, "get_full_hp_grad", None)
        return None if gather is None else gather()

    def close(self) -> None:
        """Leave the optimizer as it was."""
        if self._own is None:
            vars(self._optimizer).pop("step", None)
        else:
            self._optimizer.step = self._own


class LazyGradients(Mapping[str, Tensor | None]):
    """Gradients by name that are gathered when they are looked up, the last one kept.

    Blocks of one weight follow each other, so every gradient is gathered once, and none that no block asks for.
    """

    def __init__(self, names: Mapping[str, Any], gather: Callable[[str], Tensor | None]) -> None:
        self._names, self._gather = names, gather
        self._last: tuple[str, Tensor | None] | None = None

    def __getitem__(self, name: str) -> Tensor | None:
        if self._last is None or self._last[0] != name:
            self._last = None  # its memory, before the next is asked for
            self._last = name, self._gather(name)
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
