"""Keep a model's noise inside the training step: saves and evaluations find clean weights, whatever happened.

A callback hears nothing of an exception, so the noise of an interrupted pass would stay on the weights.  Hooks on the
model close that gap.  Every ``state_dict()`` and every copy is taken at clean weights, and a ``load_state_dict()`` goes
to them; and every pass asks whether the training loop that began the step is still running (whether its frame is on the
stack): if the loop is gone, so is the noise.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from torch import nn

from hf_pacgen.noise.perturbation import Perturbation
from hf_pacgen.training.hooks import Hook
from hf_pacgen.training.passes import Passes

# modules whose frames stand between the training loop and the noise
MACHINERY = ("hf_pacgen.training", "transformers.trainer_callback", "contextlib")


class Guard:
    """Lets the passes of one model's training step have noise, and nothing else.

    The model is the one that the training loop saves, without DistributedDataParallel or torch.compile.
    ``watch_forward`` is not possible inside torch.compile.
    """

    def __init__(self, model: nn.Module, noise: Perturbation, *, watch_forward: bool = True) -> None:
        self.model, self.noise = model, noise
        self.passes = Passes(model, noise, watch=watch_forward, goes_on=self._goes_on)
        self._loop: FrameType | None = None
        self._in_state_dict = 0
        self._resume = self._keeps_parameters = False
        self.loaded = False  # weights, since the last enter: then the rest of the step has no noise
        self._handles = handles = list[Any]()
        for module in model.modules():
            handles.append(module.register_state_dict_pre_hook(Hook(self._before_state_dict, self._before_copy)))
            handles.append(module.register_state_dict_post_hook(Hook(self._after_state_dict)))
            handles.append(module.register_load_state_dict_pre_hook(Hook(self._before_load)))

    def enter(self) -> None:
        """Let passes have the noise, until :meth:`leave` or until the training loop that calls is gone."""
        self._loop = _training_loop()
        self._in_state_dict = 0
        self._resume = self.loaded = False
        self.passes.begin()

    def leave(self) -> None:
        """Take the noise off."""
        self.passes.end()
        self._loop = None  # a frame keeps its variables alive

    def close(self) -> None:
        """Take the noise off for good, and the hooks with it."""
        self._leave_to_others()
        self.passes.close()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _leave_to_others(self) -> None:
        # what was written to the weights after the loop was gone stays
        self.noise.restore(written=self._loop is not None and not self._running())
        self.passes.forget()
        self._loop = None

    def _goes_on(self) -> bool:
        if not self._running():
            self._leave_to_others()
        return self._loop is not None

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
                self.noise.keep_clean(state_dict)
                self.noise.apply()

    def _before_load(self, *args: Any) -> None:
        if self._loop is not None:
            self._leave_to_others()
            self.loaded = True

    def _before_copy(self) -> None:
        if self._loop is not None and self._running():
            self.noise.restore()  # until the model's next pass in training
        elif self._loop is not None:
            self._leave_to_others()


def _training_loop() -> FrameType | None:
    """The frame of the training loop: the innermost that is no machinery of callbacks."""
    # where an event of the Trainer is handled, it is the one that called the handler of callbacks: a callback may be
    # a subclass's, or inside another
    frame: FrameType | None = sys._getframe(1)
    found, handled = None, False
    while frame is not None:
        ours = frame.f_globals.get("__name__", "").startswith(MACHINERY)
        if not ours and handled:
            return frame
        found = frame if found is None and not ours else found
        handled = handled or frame.f_code.co_name == "call_event"
        frame = frame.f_back
    return found
