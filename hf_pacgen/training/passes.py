"""Noise that is on the weights for the training's own passes, and off for all that happens between them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from hf_pacgen.noise.perturbation import Perturbation
from hf_pacgen.training.hooks import Hook

logger = logging.getLogger(__name__)

# how deep in the model a module may be called by itself and still have, or be spared, the noise
WATCHED_DEPTH = 3
UNSEEN = (
    "A gradient was taken without noise: the loss came from no forward pass, in training mode and with gradients, of "
    "the model or of a module near its top. From the next step on the noise stays on the weights for all of a training "
    "step: read, merge or copy them outside of it."
)


class Passes:
    """Puts a drawn noise on the weights of a model for forward passes that train, and for their backward passes.

    A forward pass trains if the model is in training mode and gradients are enabled.  Every other one, and all code
    before, between and after passes (a rollout, ``merge_adapter()``, weights sent to another engine), finds the weights
    clean.  What autograd kept of a forward pass may be the parameter itself, and checkpointing runs parts of the model
    again: so the noise comes back as soon as a gradient reaches an output, and goes when that backward pass ends.

    Between its forward and its backward pass the noise stays on in two cases: a module inside the model was called by
    itself, as others of its weights may be multiplied by hand then; and shards, which are gathered between the two.

    Args:
        watch: the model's hooks are run; otherwise the noise is on from :meth:`begin` to :meth:`end`.
        goes_on: whether the training that began a step still runs; if not, it has taken off the noise.
    """

    def __init__(
        self, model: nn.Module, noise: Perturbation, *, watch: bool = True, goes_on: Callable[[], bool] = lambda: True
    ) -> None:
        self.model, self.noise = model, noise
        self.throughout = not watch
        self.taken = False  # a backward pass at the noise, since the step began
        self._goes_on = goes_on
        self._armed = False
        self._outermost: nn.Module | None = None  # that is in a forward pass
        self._trains = self._in_backward = self._was_clean = False
        self._thread = threading.get_ident()
        self._handles = list[Any]()
        for name, module in model.named_modules() if watch else ():
            # generate() of an adapter, for one, calls the model inside and not the one around it
            if name.count(".") < WATCHED_DEPTH:
                # before the hook with which FSDP2 gathers the weights
                self._handles.append(module.register_forward_pre_hook(Hook(self._before_forward), prepend=True))
                self._handles.append(module.register_forward_hook(Hook(self._after_forward), always_call=True))

    def begin(self) -> None:
        """From now on passes that train have the noise that was drawn."""
        self.forget()
        self._armed, self.taken, self._was_clean = True, False, False
        self._thread = threading.get_ident()
        if self.throughout:
            self.noise.apply()

    def end(self) -> None:
        """Take the noise off."""
        self.forget()
        self.noise.restore()

    def forget(self) -> None:
        """Put no more noise on, whatever pass is under way."""
        self._armed = self._in_backward = False
        self._outermost = None

    def close(self) -> None:
        """Remove the hooks."""
        self.forget()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def missed(self) -> bool:
        """Whether the step has gradients, and none of them was taken at the noise; then that is so no more."""
        if self.throughout or self.taken or all(p.grad is None for p in self.model.parameters()):
            return False
        logger.warning(UNSEEN)
        self.throughout = True
        return True

    def _gone(self) -> bool:
        # another thread, in which a device goes backward, has other frames
        return threading.get_ident() == self._thread and not self._goes_on()

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        if not self._armed or torch.compiler.is_compiling():
            return
        # an interrupt runs no hook, so the pass that is under way may be one that was broken off
        if self._gone() or self._in_backward or (self._outermost is not None and module is not self.model):
            return
        self._outermost, self._trains = module, self.model.training and torch.is_grad_enabled()
        if not self._trains:
            self._was_clean |= self.model.training
            self.noise.restore()
            return
        if self._was_clean and torch._C._current_graph_task_id() != -1:
            raise ValueError(
                "Noise cannot be trained with where a backward pass runs the model again, after a first pass without "
                "gradients, which has no noise (a loss that caches gradients, or a reentrant checkpoint around the "
                "whole model). Use a loss that takes its gradient in one pass, checkpoint with use_reentrant=False, or "
                "train without noise."
            )
        if not self.noise.applied:
            self.noise.apply()

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        if module is not self._outermost:
            return
        self._outermost = None
        if not self._trains or not self._armed:
            return
        found = [t for t in _tensors(output) if t.grad_fn is not None]
        for tensor in found:
            tensor.register_hook(self._before_backward)
        whole = module is self.model and not self.noise.divided
        if output is None or (found and whole and not self.throughout):  # None after an exception
            self.noise.restore()

    def _before_backward(self, gradient: Tensor) -> None:
        if not self._armed or self._in_backward or self._gone():
            return
        self._in_backward = self.taken = True
        if not self.noise.applied:
            self.noise.apply()
        Variable._execution_engine.queue_callback(self._after_backward)

    def _after_backward(self) -> None:
        if self._in_backward:
            self._in_backward = False
            if not self.throughout:
                self.noise.restore()


def _tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _tensors(entry, depth)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _tensors(entry, depth)
    elif hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)) and depth < 3:
        # dataclasses, and caches of keys and values
        for entry in list(vars(value).values()):
            yield from _tensors(entry, depth + 1)
