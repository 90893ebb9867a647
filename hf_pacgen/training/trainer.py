"""A Trainer with noise and scores."""

from __future__ import annotations

import logging
import os
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, get_last_checkpoint

from hf_pacgen.config import NoiseConfig, ScoreConfig
from hf_pacgen.config.settings import flag
from hf_pacgen.results.noisy_predictions import NoisyPredictions
from hf_pacgen.results.pacgen import PACGenResult
from hf_pacgen.training.arguments import PACGenTrainingArguments, as_config
from hf_pacgen.training.averages import Averaging, check_decay
from hf_pacgen.training.callback.callback import PACGenCallback
from hf_pacgen.training.follow import NOISE_FACTOR
from hf_pacgen.training.micro_batch import MicroBatch
from hf_pacgen.training.noisy_step import ANOTHER_NOISE, NoisyStep
from hf_pacgen.training.passes import Passes
from hf_pacgen.training.predictions import predict_noisy
from hf_pacgen.training.run_facts import (
    Candidates,
    agree_on_settings,
    describe_run,
    is_on,
    refuse_unknown_metric,
    refuse_unsupported,
    rehearse_score,
    score_on_training_data,
)
from hf_pacgen.training.scores import Scores, corrected_log
from hf_pacgen.training.trainer_loss import loss_of_trainer

logger = logging.getLogger(__name__)


class PACGenTrainer(Trainer):
    """The Trainer of transformers, with noise in every training step and PACGen scores on every evaluation.

    Each micro-batch's gradient is taken at w + u, with a new draw of u (see :class:`NoiseConfig`); the weights
    themselves are never written to and are back in place when ``training_step`` ends, however it ends (the shards of a
    model under FSDP2 are put back bit for bit from a copy).  Without noise, or with ``scale=0``, training is the plain
    Trainer's bit for bit.  Inside ``training_step`` the noise is on during the model's forward passes in training mode
    with gradients, and their backward passes; what else your ``compute_loss`` does (a generation, a pass without
    gradients, an adapter that is merged) finds clean weights.

    An evaluation gets ``eval_pacgen``, ``eval_pacgen_kl``, ... in what it returns, logs and reports.  Scores are of the
    *training* data: all of it, or a seeded subset of ``ScoreConfig.max_examples``.  Where ``metric_for_best_model`` is
    a score and the training losses of the checkpoints differ, a warning says, once, that a score cannot choose between
    them.

    Args:
        noise, score: settings; by default those of the arguments, if they are PACGenTrainingArguments.
        ema: decay of an exponential moving average of the weights, such as 0.99 (a ← d a + (1 - d) w after every
            optimizer step); it is evaluated, scored and saved, and in the model at the end.  Checkpoints keep the
            weights that are trained in a file of their own, and a resumed run goes on with both.
        evaluate_ema: False to evaluate and save the weights that are trained; the average is then to be had from
            :meth:`averaged_weights`.
        *args, **kwargs: those of ``transformers.Trainer``.

    Raises:
        ValueError: ZeRO-3 or the first FSDP with noise; noise in a PACGenCallback as well; an unfit setting.
    """

    def __init__(
        self,
        *args: Any,
        noise: NoiseConfig | dict[str, Any] | str | None = None,
        score: ScoreConfig | dict[str, Any] | None = None,
        ema: float | None = None,
        evaluate_ema: bool | None = None,
        **kwargs: Any,
    ) -> None:
        self.noise = as_config(NoiseConfig, noise, "noise")
        self.score = as_config(ScoreConfig, score, "score")
        self.ema = check_decay(ema)
        self._averaging: Averaging | None = None  # while training
        self._scores = Scores()
        # made when a training begins, or at the first step by hand
        self._noisy_step: NoisyStep | None = None
        self._passes: Passes | None = None  # of its noise
        self._learns = True  # from the gradients of this optimizer step
        self._micro_step = 0  # which micro-batch of an optimizer step is next
        self._resumed_from: str | None = None
        self._scores_of_evaluation: PACGenResult | None = None
        self._evaluations = 0
        self._candidates: Candidates | None = None  # while training
        super().__init__(*args, **kwargs)
        if isinstance(self.args, PACGenTrainingArguments):
            self.noise = self.noise or self.args.noise_config
            self.score = self.score or self.args.score_config
            self.ema = self.args.ema if self.ema is None else self.ema
            evaluate_ema = self.args.evaluate_ema if evaluate_ema is None else evaluate_ema
        self.evaluate_ema = flag(True if evaluate_ema is None else evaluate_ema, "evaluate_ema")
        callbacks = [c for c in self.callback_handler.callbacks if isinstance(c, PACGenCallback)]
        if self._has_noise:
            refuse_unsupported(self.args)
            self._refuse_pairs()
            if any(c.noise is not None for c in callbacks):
                both = "The PACGenTrainer and a PACGenCallback both have noise"
                raise ValueError(f"{both}, which would add up. Give it to one only.")
        if self.ema is not None and any(c.ema is not None for c in callbacks):
            raise ValueError("The PACGenTrainer and a PACGenCallback both have ema. Give it to one only.")
        if self.score is None and all(c.score is None for c in callbacks):
            refuse_unknown_metric(self.args)
            if self.noise is None and self.ema is None and not callbacks:
                logger.warning(
                    "This PACGenTrainer trains as the plain Trainer does: it has neither noise nor score, nor ema. "
                    "Pass noise=NoiseConfig(), score=ScoreConfig(), ema=0.99, or several of them."
                )
        self.add_callback(_Steps(self))

    # ------------------------------------------------------------------------------------------------- training

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """See ``transformers.Trainer.train``."""
        # the Trainer tells nobody where it resumes from
        given = resume_from_checkpoint
        if given is True:
            given = get_last_checkpoint(self.args.output_dir or "")
        self._resumed_from = os.fspath(given) if isinstance(given, (str, os.PathLike)) else None
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._candidates = None
            self._close_noise()
            self._close_average()

    def averaged_weights(self) -> Any:
        """``with trainer.averaged_weights():`` the model has the average of ``ema`` inside, its own weights afterwards.

        Raises:
            ValueError: there is none.
        """
        if self._averaging is None:
            raise ValueError("There is no average of the weights: pass ema=0.99, for instance, and train.")
        return self._averaging.average.on()

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The gradient of a micro-batch, taken at noisy weights."""
        noisy = self._noisy_step
        if noisy is None or noisy.config is not self.noise:  # a step by hand, or settings taken away in the middle
            noisy = (noisy or self._start_noise()) if self._has_noise else None
        if noisy is not None and self._micro_step == 0 and noisy.outdated:
            logger.warning(ANOTHER_NOISE)
            self._close_noise()
            noisy = self._start_noise()
        if noisy is None:
            return super().training_step(model, inputs, num_items_in_batch)
        passes, plain = cast(Passes, self._passes), super().training_step
        batch = MicroBatch(self, noisy, model, lambda: plain(model, inputs, num_items_in_batch), passes)
        try:
            loss = batch.gradient(self._micro_step)
            self._learns &= not (batch.has_noise and passes.missed())
        finally:
            passes.end()
            self._micro_step += 1
        noisy.observe(loss)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """See ``transformers.Trainer.log``; with the size of noise that follows the run, as ``noise_factor``."""
        if "loss" in logs and self._noisy_step is not None and self._noisy_step.follows is not None:
            logs[NOISE_FACTOR] = self._noisy_step.follows.factor
        super().log(logs, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        # every checkpoint passes here, those on SIGTERM too, which fire no event
        super()._save_optimizer_and_scheduler(output_dir)
        if self._noisy_step is not None:
            self._noisy_step.save(output_dir, writes=self.args.should_save)

    # ----------------------------------------------------------------------------------------------- evaluation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """See ``transformers.Trainer.evaluate``."""
        self._evaluations += 1  # it calls itself for each of several datasets, which share one score
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._evaluations -= 1
            if self._evaluations == 0:
                self._scores_of_evaluation = None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The plain evaluation, with the scores among its metrics."""
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        # ``predict`` comes here too, outside of any evaluation
        if self.score is not None and self._evaluations and output.metrics is not None:
            if self._scores_of_evaluation is None:
                self._scores_of_evaluation = found = self.pacgen()
                self._scores.add(cast(nn.Module, self.model), found)
                if self._candidates is not None:
                    self._candidates.add(found)
            output.metrics.update(self._scores_of_evaluation.metrics(f"{metric_key_prefix}_"))
        return output

    def pacgen(self, score: ScoreConfig | None = None) -> PACGenResult:
        """PACGen of the model on the training data; a ValueError where there is none."""
        if self.train_dataset is None:
            raise ValueError("A score is of the training data: pass train_dataset to the Trainer, or score=None.")
        loader = self._train_loader()
        return score_on_training_data(
            self.args,
            cast(nn.Module, self.model),
            score or self.score or ScoreConfig(),
            loader,
            accelerator=self.accelerator,
            loss_fn=loss_of_trainer(self),
        )

    def predict_noisy(
        self,
        test_dataset: Any = None,
        noise_scale: float | str | NoiseConfig = "auto",
        draws: int = 8,
        **options: Any,
    ) -> NoisyPredictions:
        """Predictions averaged over noise on the weights: :func:`hf_pacgen.noisy_predictions` of the Trainer's model.

        Batches are made by the Trainer's collator, in ``per_device_eval_batch_size``; ``"auto"`` finds the size of the
        noise on its ``train_dataset``, without any held-out data.

        Args:
            test_dataset: by default the ``eval_dataset``.
            noise_scale, draws, options: as for :func:`hf_pacgen.noisy_predictions`.

        Raises:
            ValueError: no data to predict on, no training data for "auto", and what the function raises.
        """
        return predict_noisy(self, test_dataset, noise_scale, draws, **options)

    @property
    def last_score(self) -> PACGenResult | None:
        """The score that an evaluation found of the weights as they are now; None where it scored other weights.

        So after ``load_best_model_at_end`` it is that of the best checkpoint, and after more training none.
        """
        return self._scores.of(cast(nn.Module, self.model))

    # ------------------------------------------------------------------------------------------------ internals

    @property
    def _has_noise(self) -> bool:
        return is_on(self.noise)

    def _refuse_pairs(self) -> None:
        # trainers of online RL count their steps, and give other inputs to the second of a pair
        kind = type(self)
        after = kind.__mro__[kind.__mro__.index(PACGenTrainer) + 1 :]
        counts = next(k for k in after if "training_step" in vars(k)) is not Trainer
        asks = None if self.noise is None else self.noise.second_gradient
        if asks is not None and counts and kind._prepare_inputs is not Trainer._prepare_inputs:
            raise ValueError(
                f"{asks} takes two gradients of every batch, and {kind.__name__} makes its batches as it trains (by a "
                "_prepare_inputs and a training_step of its own), so the two would be of different ones. Use a recipe "
                "of one gradient, such as 'rows' or 'ascent'."
            )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card of transformers, with the score of the weights as they are now, or with none."""
        if not self.is_world_process_zero() or not self.args.output_dir:
            super().create_model_card(*args, **kwargs)
            return
        # matplotlib, where it is there, takes a second to import
        from hf_pacgen.show.cards.update import remove_files, update_model_card

        score, log = self.last_score, self.state.log_history
        self.state.log_history = corrected_log(log, score)
        try:
            remove_files(self.args.output_dir)  # of a card of before, which is written anew
            super().create_model_card(*args, **kwargs)
        finally:
            self.state.log_history = log
        if score is not None:
            update_model_card(self.args.output_dir, score)

    def _train_loader(self) -> Any:
        loader = getattr(self.callback_handler, "train_dataloader", None)
        with torch.random.fork_rng(devices=[]):  # a new loader draws the seed of its sampler
            return loader if loader is not None else self.get_train_dataloader()

    def _start_noise(self, train_dataloader: Any = None) -> NoisyStep:
        run = describe_run(
            self.args,
            cast(nn.Module, self.model),  # the Trainer refuses to be without one
            optimizer=self.optimizer,
            train_dataloader=self._train_loader() if train_dataloader is None else train_dataloader,
            max_steps=self.state.max_steps,
            train_batch_size=self._train_batch_size,
            loss_fn=loss_of_trainer(self),
        )
        self._noisy_step = NoisyStep(cast(NoiseConfig, self.noise), run)
        self._passes = Passes(run.model, self._noisy_step.noise, watch=not run.compiled)
        self._noisy_step.closing.append(self._passes.close)
        self._noisy_step.ends = self._end_step
        return self._noisy_step

    def _end_step(self, step: int) -> None:
        if self._noisy_step is not None:
            self._noisy_step.before_optimizer_step(step, learns=self._learns)

    def _close_average(self) -> None:
        if self._averaging is not None:
            self._averaging.close()

    def _close_noise(self) -> None:
        if self._noisy_step is not None:
            self._noisy_step.close()
        self._noisy_step = self._passes = None


class _Steps(TrainerCallback):
    """The events of the training loop that no method of the Trainer stands for."""

    def __init__(self, trainer: PACGenTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        trainer._close_noise()  # that of steps by hand
        trainer._close_average()  # that of a batch size that was too large
        trainer._candidates = Candidates(trainer.args)
        ema = trainer.ema, trainer.evaluate_ema
        agree_on_settings(trainer.args, trainer.noise, trainer.score, ema=ema)
        if trainer.score is not None and trainer.eval_dataset is not None:  # else it scores when it is asked
            loader = kwargs["train_dataloader"]
            how: Any = {"accelerator": trainer.accelerator, "loss_fn": loss_of_trainer(trainer)}
            rehearse_score(trainer.args, cast(nn.Module, trainer.model), trainer.score, loader, **how)
        if trainer._has_noise:
            noisy = trainer._start_noise(kwargs["train_dataloader"])
            if trainer._resumed_from is not None:
                noisy.load(trainer._resumed_from)
        if trainer.ema is not None:
            how = {"evaluates": trainer.evaluate_ema, "resumed_from": trainer._resumed_from}
            trainer._averaging = Averaging(trainer, trainer.ema, **how)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._micro_step, self.trainer._learns = 0, True

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._end_step(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer._averaging is not None:
            self.trainer._averaging.after_step()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer._averaging is not None:
            self.trainer._averaging.finish()
