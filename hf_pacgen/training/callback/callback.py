"""Noise and scores in any Trainer."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from typing import Any, cast

from torch import nn
from transformers import TrainerCallback, TrainingArguments

from hf_pacgen.config import NoiseConfig, ScoreConfig
from hf_pacgen.config.settings import choice, flag
from hf_pacgen.data.own_loss import OwnLoss
from hf_pacgen.facts import Choice
from hf_pacgen.results.pacgen import PACGenResult
from hf_pacgen.training.arguments import as_config
from hf_pacgen.training.averages import AVERAGE_FILE, Averaging, check_decay
from hf_pacgen.training.callback.guard import Guard
from hf_pacgen.training.follow import NOISE_FACTOR, listen
from hf_pacgen.training.noise_state import NOISE_FILE
from hf_pacgen.training.noisy_step import ANOTHER_NOISE, NoisyStep
from hf_pacgen.training.run_facts import (
    Candidates,
    agree_on_settings,
    describe_run,
    is_on,
    refuse_unsupported,
    rehearse_score,
    score_on_training_data,
)
from hf_pacgen.training.scores import Scores
from hf_pacgen.training.trainer_loss import find_trainer, loss_of_trainer

logger = logging.getLogger(__name__)


class ScoreOn(Choice):
    """When a callback scores the model; a member's facts are the event of the Trainer."""

    facts: str

    EVALUATE = "evaluate", "on_evaluate"
    EPOCH = "epoch", "on_epoch_end"
    END = "end", "on_train_end"


class PACGenCallback(TrainerCallback):
    """Train with noise, and score the model, in a Trainer that knows nothing of it.

    The noise is drawn once for an optimizer step: it is on the weights during the forward passes of training (in
    training mode, with gradients) and their backward passes, and off for everything else: rollouts, adapters that are
    merged, weights that are read or saved.  After an exception inside a pass the model finds its clean weights when it
    is used (a forward pass, a save) or when training starts again; code that reads the parameters themselves first has
    to use :class:`~hf_pacgen.training.trainer.PACGenTrainer`.

    Scores are of the *training* data.  On an evaluation they join its metrics (``eval_pacgen``, ...), so they reach
    what ``evaluate()`` returns; the Trainer has logged by then, so they get a line of their own in ``log_history``, and
    no reporter sees them.  The PACGenTrainer's reach reporters too.  Where ``metric_for_best_model`` is a score and the
    training losses of the checkpoints differ, a warning says, once, that a score cannot choose between them.

    Args:
        noise, score: settings, or None.
        score_on: "evaluate", "epoch" or "end".
        ema, evaluate_ema: as for :class:`~hf_pacgen.training.trainer.PACGenTrainer`: a moving average of the weights.
    """

    def __init__(
        self,
        noise: NoiseConfig | dict[str, Any] | str | None = None,
        score: ScoreConfig | dict[str, Any] | None = None,
        score_on: ScoreOn | str = ScoreOn.EVALUATE,
        ema: float | None = None,
        evaluate_ema: bool = True,
    ) -> None:
        self.noise = as_config(NoiseConfig, noise, "noise")
        self.score = as_config(ScoreConfig, score, "score")
        self.ema, self.evaluate_ema = check_decay(ema), flag(evaluate_ema, "evaluate_ema")
        self._averaging: Averaging | None = None  # while training
        self.score_on = choice(ScoreOn, score_on, "score_on")
        if self.score_on.facts not in vars(PACGenCallback):
            raise ValueError(
                f"score_on={self.score_on.value!r} is the event {self.score_on.facts}, at which a PACGenCallback does "
                "not score. Choose another, or let it hear of the event."
            )
        if self.noise is None and self.score is None and self.ema is None:
            logger.warning(
                "This PACGenCallback does nothing: it has neither noise nor score, nor ema. Pass noise=NoiseConfig(), "
                "score=ScoreConfig(), ema=0.99, or several of them, to an instance of it."
            )
        if self.noise is not None and (asks := self.noise.second_gradient) is not None:
            raise ValueError(
                f"{asks} takes two gradients of every batch, which a callback cannot ask for. Use PACGenTrainer, or a "
                "recipe of one gradient, such as 'rows' or 'ascent'."
            )
        self.noisy_step: NoisyStep | None = None
        self._guard: Guard | None = None
        self._candidates: Candidates | None = None  # while training
        self._scored = Scores()
        self._model: nn.Module | None = None

    @property
    def last_score(self) -> PACGenResult | None:
        """The score that was found of the weights as they are now; None where other weights were scored.

        So after ``load_best_model_at_end`` it is that of the best checkpoint, and after more training none.
        """
        return self._scored.of(self._model)

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse what cannot work before anything is set up."""
        if is_on(self.noise):
            refuse_unsupported(args)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the noise up, and take over the state of a checkpoint."""
        self._close()
        self._candidates, self._model = Candidates(args), kwargs.get("model")
        how: Any = {"score_on": self.score_on.value, "ema": (self.ema, self.evaluate_ema)}
        agree_on_settings(args, self.noise, self.score, **how)
        loader, model = kwargs.get("train_dataloader"), kwargs.get("model")
        if self.score is not None and loader is not None and model is not None:
            rehearse_score(args, model, self.score, loader, loss_fn=_loss_of(model))
        before = _resumed_from(args, state.global_step, model) if state.global_step else None
        if is_on(self.noise):
            refuse_unsupported(args)
            self._start(args, state, **kwargs)
            if before is not None and self.noisy_step is not None:
                self.noisy_step.load(before)
        if self.ema is not None and model is not None:
            trainer = find_trainer(model)
            if trainer is None:
                raise ValueError(
                    "ema is evaluated and saved by the Trainer, and this PACGenCallback could not find it. Let a "
                    "transformers Trainer call it, or train without ema."
                )
            self._averaging = Averaging(trainer, self.ema, evaluates=self.evaluate_ema, resumed_from=before)

    def _start(self, args: Any, state: Any, **kwargs: Any) -> None:
        run = describe_run(
            args,
            kwargs["model"],
            optimizer=kwargs["optimizer"],
            train_dataloader=kwargs["train_dataloader"],
            max_steps=state.max_steps,
            train_batch_size=getattr(state, "train_batch_size", None),
            loss_fn=_loss_of(kwargs["model"]),
        )
        self.noisy_step = NoisyStep(cast(NoiseConfig, self.noise), run)
        # compiled models run no hooks
        if (follows := self.noisy_step.follows) is not None:
            self.noisy_step.closing.append(listen(find_trainer(kwargs["model"]), follows))
        self._guard = Guard(run.model, self.noisy_step.noise, watch_forward=not run.compiled)
        self.noisy_step.closing.append(self._guard.close)
        self.noisy_step.ends = self._end_step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the step's noise on the weights."""
        if self.noisy_step is not None and self._guard is not None:
            self._guard.leave()  # a step that was broken off has left its noise
            self._guard.loaded = False  # also where the step will have none
            if self.noisy_step.outdated:
                logger.warning(ANOTHER_NOISE)
                self._close()
                self._start(args, state, **kwargs)
            if self.noisy_step.draw(state.global_step):
                self._guard.enter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the noise off, and learn about the curvature."""
        self._end_step(state.global_step)

    def _end_step(self, step: int) -> None:
        if self.noisy_step is not None and self._guard is not None:
            self._guard.leave()
            # weights that were loaded in the middle of a step are not those that its noise was drawn for
            learns = not (self._guard.loaded or (self.noisy_step.drawn and self._guard.passes.missed()))
            self.noisy_step.before_optimizer_step(step, learns=learns)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the weights into their average."""
        if self._averaging is not None:
            self._averaging.after_step()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the size of noise that follows the run to the log's entry; no reporter sees it."""
        follows = None if self.noisy_step is None else self.noisy_step.follows
        if follows is not None and state.log_history and "loss" in state.log_history[-1]:
            state.log_history[-1][NOISE_FACTOR] = follows.factor

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the noise state into the checkpoint."""
        if self.noisy_step is not None:
            folder = _checkpoint(args, state.global_step, kwargs.get("model"))
            is_there = os.path.isdir(folder)
            if args.should_save and not is_there:
                logger.warning(
                    "The noise state was not saved: expected the checkpoint in %s, and there is none. A training that "
                    "is resumed from this step starts the running curvature anew; PACGenTrainer saves it wherever "
                    "checkpoints go.",
                    folder,
                )
            self.noisy_step.save(folder, writes=args.should_save and is_there)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Add the scores to the metrics of an evaluation."""
        if self.score_on.facts == "on_evaluate":
            metrics = {} if metrics is None else metrics
            # one dataset of several has its name in the prefix, which no argument tells
            prefixes = [key.removesuffix("_runtime") for key in metrics if key.endswith("_runtime")]
            metrics.update(self._scores(args, state, prefixes[0] if prefixes else "eval", **kwargs))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score at the end of an epoch."""
        if self.score_on.facts == "on_epoch_end":
            self._scores(args, state, "train", **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score at the end of the training, and take everything out of the model but the average."""
        if self._averaging is not None:
            self._averaging.finish()
        if self.score_on.facts == "on_train_end":
            self._scores(args, state, "train", **kwargs)
        self._candidates = None
        self._close()

    def _scores(self, args: Any, state: Any, prefix: str, **kwargs: Any) -> dict[str, float]:
        model: nn.Module | None = kwargs.get("model")
        loader = kwargs.get("train_dataloader")
        if self.score is None or model is None:
            return {}
        self._model = model
        if loader is None:
            logger.warning("No PACGen score: the callback knows the training data only once training has begun.")
            return {}
        loss = _loss_of(model)
        result = score_on_training_data(args, model, self.score, loader, loss_fn=loss)
        if loss is None:
            result = dataclasses.replace(result, status=(*result.status, UNKNOWN_LOSS))
        self._scored.add(model, result)
        if self._candidates is not None and self.score_on is ScoreOn.EVALUATE:
            self._candidates.add(result)
        scores = result.metrics(f"{prefix}_")
        # the Trainer has logged by now, and logs nothing at the end of an epoch
        entry = {"epoch": state.epoch, **scores, "step": state.global_step}
        state.log_history.append({key: value for key, value in entry.items() if value is not None})
        return scores

    def _close(self) -> None:
        if self.noisy_step is not None:
            self.noisy_step.close()
        if self._averaging is not None:
            self._averaging.close()
        self.noisy_step = self._guard = self._averaging = None


UNKNOWN_LOSS = (
    "The loss is the model's own: this PACGenCallback could not find the Trainer, whose loss may be another (class "
    "weights, label smoothing, a compute_loss of its own). Let a transformers Trainer call it, or use pacgen(loss_fn=)."
)


def _loss_of(model: nn.Module) -> OwnLoss | None:
    """The loss of the Trainer whose event this is; None, with a warning, where there is no such Trainer."""
    trainer = find_trainer(model)
    if trainer is None:
        logger.warning(UNKNOWN_LOSS)
    return None if trainer is None else loss_of_trainer(trainer)


def _checkpoint(args: TrainingArguments, step: int, model: nn.Module | None) -> str:
    """The folder of a checkpoint, as the Trainer has it: that of a trial has one of its own in between."""
    trainer = None if model is None else find_trainer(model)
    folder = None if trainer is None else trainer._get_output_dir(getattr(trainer, "_trial", None))
    return os.path.join(folder or args.output_dir or "", f"checkpoint-{step}")


def _resumed_from(args: TrainingArguments, step: int, model: nn.Module | None) -> str:
    """The checkpoint a run goes on from."""
    # callbacks are not told: it is read from the frame of ``train``, or else looked for where it should be
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "transformers.trainer":
            given = frame.f_locals.get("resume_from_checkpoint")
            if isinstance(given, (str, os.PathLike)):
                return os.fspath(given)
        frame = frame.f_back  # type: ignore[assignment]
    given = args.resume_from_checkpoint
    if isinstance(given, str) and any(os.path.isfile(os.path.join(given, name)) for name in (NOISE_FILE, AVERAGE_FILE)):
        return given
    return _checkpoint(args, step, model)
