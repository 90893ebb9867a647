"""The forward and backward passes of one micro-batch: one at noisy weights, or two whose gradients add up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from hf_pacgen.training.consistency import Consistency, replaced_loss
from hf_pacgen.training.noisy_step import NoisyStep
from hf_pacgen.training.passes import Passes


@dataclass
class MicroBatch:
    """A micro-batch of a Trainer, of which ``one_pass`` takes gradients at the weights as they are.

    Where there are two passes, both have the same dropout, and the random state afterwards is that of one pass.
    """

    trainer: Trainer
    noisy: NoisyStep
    model: nn.Module  # as the Trainer wraps it
    one_pass: Callable[[], Tensor]  # forward and backward; gives the loss
    passes: Passes  # which put the noise on the weights for it
    has_noise: bool = False  # once a pass was to have some

    def gradient(self, micro_step: int) -> Tensor:
        """Add the gradient that the settings of the noise ask for to those of before; gives the loss of it."""
        config, step = self.noisy.config, self.trainer.state.global_step
        if config.direction.facts.from_own_gradient:
            return self._ascent(self.noisy.prepare(step, micro_step))
        if not self.noisy.draw(step, micro_step):
            return self.one_pass()
        self._begin()
        if config.antithetic:
            return self._pair()
        return self._mixed(config.clean_part) if config.clean_part else self.one_pass()

    def _ascent(self, factor: float) -> Tensor:
        """The gradient at w + u, with u along that at w of this micro-batch, over all processes."""
        if factor:
            with self._unreduced(), self._dropout_again(), self.noisy.first_gradient():
                self.one_pass()
            if self.noisy.ascend(factor):
                self._begin()
        return self.one_pass()

    def _begin(self) -> None:
        self.has_noise = True
        self.passes.begin()

    def _turn(self) -> None:
        """From now on the noise is -u."""
        self.passes.end()
        self.noisy.mirror()
        self.passes.begin()

    @contextmanager
    def _noise_throughout(self) -> Iterator[None]:
        # a pass without gradients would be taken for one that does not train
        self.passes.end()
        self.noisy.noise.apply()
        try:
            yield
        finally:
            self.noisy.noise.restore()

    def _pair(self) -> Tensor:
        """The mean of the gradients at w + u and w - u."""
        if self.noisy.config.consistency:
            return self._consistent_pair(self.noisy.config.consistency)
        with _loss_times(0.5, self.trainer):
            # the first gradient of a pair needs no reduction over processes: the second's takes it along
            with self._unreduced(), self._dropout_again():
                first = self.one_pass()
            self._turn()
            second = self.one_pass()
            self.noisy.after_pair()
        return first + second

    def _consistent_pair(self, weight: float) -> Tensor:
        """The same of the mean loss and ``weight`` · D, D the divergence between the outputs at w + u and w - u.

        D(a, b) is symmetric, so its gradient is that in a with b fixed and that in b with a fixed: each pass needs the
        outputs of the other as numbers only.  So one forward pass more is enough, and one graph at a time.
        """
        passes = Consistency(self.trainer, weight, self._dropout_again)
        with passes.against_a_first_look(self._noise_throughout, self._turn), self._unreduced(), self._dropout_again():
            first = self.one_pass()
        self._turn()
        with passes.against_the_last():
            second = self.one_pass()
        self.noisy.after_pair()
        return first + second

    def _mixed(self, clean: float) -> Tensor:
        """A part of the gradient at w, the rest at w + u."""
        with self._unreduced(), self._dropout_again(), _loss_times(1 - clean, self.trainer):
            first = self.one_pass()
        self.passes.end()
        with _loss_times(clean, self.trainer):
            return first + self.one_pass()

    def _unreduced(self) -> Any:
        # of shards there would be no gradient yet
        apart = self.trainer.args.world_size > 1 and not self.noisy.noise.divided
        return self.trainer.accelerator.no_sync(self.model) if apart else nullcontext()

    def _dropout_again(self) -> Any:
        # on the way out of the fork the random state is as before
        device = self.trainer.args.device
        return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _loss_times(factor: float, trainer: Trainer) -> Any:
    def weighted(compute_loss: Any, *args: Any, **kwargs: Any) -> Any:
        result = compute_loss(*args, **kwargs)
        return (result[0] * factor, *result[1:]) if isinstance(result, tuple) else result * factor

    return replaced_loss(trainer, weighted)
