"""Keep a model's noise inside the training step: saves and evaluations find clean weights, whatever happened.

A callback hears nothing of an exception, so the noise of an interrupted step would stay on the weights.  Two kinds
of hooks on the model close that gap.  Every ``state_dict()`` is taken at clean weights; and every forward pass asks
whether the training loop that began the step is still running (whether its frame is on the stack) and whether the
model is in training mode: if the loop is gone, so is the noise.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
from torch import nn

from hf_pacgen.noise.twins import Perturbation
from hf_pacgen.sharding import is_sharded

__all__ = ["Guard"]

MACHINERY = ("hf_pacgen.training", "transformers.trainer_callback", "contextlib")
"""Modules whose frames stand between the training loop and the noise."""


class Guard:
    """Switches the noise of one model on for a training step and off for everything else.

    Args:
        model: the model as the training loop saves it (without DistributedDataParallel or torch.compile).
        noise: what is switched.
        watch_forward: whether to look at forward passes; not possible inside torch.compile.
    """

    def __init__(self, model: nn.Module, noise: Perturbation, *, watch_forward: bool = True) -> None:
        self.model, self.noise = model, noise
        self._loop: FrameType | None = None
        self._in_state_dict = 0
        self._resume = self._keeps_parameters = False
        self._handles: list[Any] = []
        for module in model.modules():
            self._handles.append(module.register_state_dict_pre_hook(Hook(self._before_state_dict)))
            self._handles.append(module.register_state_dict_post_hook(Hook(self._after_state_dict)))
        if watch_forward:
            # before the hook with which FSDP2 gathers the weights
            self._handles.append(model.register_forward_pre_hook(Hook(self._before_forward), prepend=True))
            self._handles.append(model.register_forward_hook(Hook(self._after_forward), always_call=True))

    def enter(self) -> None:
        """Put the noise on, until :meth:`leave` or until the caller's training loop is gone."""
        self._loop = _training_loop()
        self._in_state_dict = 0
        self._resume = False
        self.noise.apply()

    def leave(self) -> None:
        """Take the noise off."""
        self.noise.restore()
        self._loop = None  # a frame keeps its variables alive

    def close(self) -> None:
        """Take the noise off for good, and the hooks with it."""
        self.leave()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _running(self) -> bool:
        frame: FrameType | None = sys._getframe()
        while frame is not None and self._loop is not None:
            if frame is self._loop:
                return True
            frame = frame.f_back
        return False

    def _before_state_dict(self, module: nn.Module, prefix: str, keep_vars: bool) -> None:
        if self._in_state_dict == 0:
            self._resume, self._keeps_parameters = self.noise.applied, keep_vars
        self._in_state_dict += 1
        self.noise.restore()

    def _after_state_dict(self, module: nn.Module, state_dict: Any, prefix: str, local_metadata: Any) -> None:
        self._in_state_dict = max(self._in_state_dict - 1, 0)
        if self._in_state_dict == 0 and self._resume:
            self._resume = False
            if self._running() and not self._keeps_parameters:
                # the state dict refers to the clean weights themselves; noise writes to them if they are shards only
                for key, value in list(state_dict.items()):
                    if is_sharded(value):
                        state_dict[key] = value.clone()
                self.noise.apply()

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        if self._loop is None or module is not self.model or torch.compiler.is_compiling():
            return
        if not self._running():
            self.leave()
        elif module.training and not self.noise.applied:
            self.noise.apply()
        elif not module.training and self.noise.applied:
            self.noise.restore()
            self._resume = True

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._resume and module is self.model and self._in_state_dict == 0:
            self._resume = False
            if self._running():
                self.noise.apply()


class Hook:
    """A hook that a copied or pickled model leaves behind."""

    def __init__(self, call: Any = None) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return None if self._call is None else self._call(*args)

    def __deepcopy__(self, memo: Any) -> Hook:
        return Hook()

    def __reduce__(self) -> tuple[Any, ...]:
        return Hook, ()


def _training_loop() -> FrameType | None:
    """The innermost frame that belongs to the training loop and not to the machinery of callbacks."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(MACHINERY):
        frame = frame.f_back
    return frame
