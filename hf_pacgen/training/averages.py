"""The exponential moving average of the weights along a training: what is evaluated, saved, and left at its end."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import Trainer

from hf_pacgen.config.settings import number
from hf_pacgen.distributed.shards import is_sharded
from hf_pacgen.errors import refusing
from hf_pacgen.files import write_atomically
from hf_pacgen.model.state import unwrap
from hf_pacgen.model.storage import independent

__all__ = ["AVERAGE_FILE", "Averaging", "WeightAverage", "check_decay"]

AVERAGE_FILE = "pacgen_average.safetensors"  # in a checkpoint: the average, and the weights that are trained
AVERAGE, TRAINED = "average.", "trained."
DAMAGED = (SafetensorError, AttributeError, KeyError, TypeError, ValueError)

logger = logging.getLogger(__name__)


def check_decay(value: Any, name: str = "ema") -> float | None:
    """The decay d of an average, or None.

    Raises:
        ValueError: it is no number of [0, 1).
    """
    if value is None:
        return None
    decay = float(number(value, name, minimum=0))
    if decay >= 1:
        raise ValueError(f"{name} is the decay of an average, a number of at least 0 and less than 1; got {value!r}.")
    return decay


class WeightAverage:
    """a ← d a + (1 - d) w after every optimizer step, for every trainable weight w; after the first step a = w.

    The average is kept in float32 at least, whatever the weights are.  The arithmetic is that of
    ``torch.optim.swa_utils``.

    Raises:
        ValueError: weights that are sharded over processes.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self.model = unwrap(model)
        self.weights = self._trainable()
        for name, weight in self.weights.items():
            if is_sharded(weight) or hasattr(weight, "ds_id"):
                raise ValueError(
                    f"ema averages whole weights, and {name!r} is sharded over processes ({type(weight).__name__}). "
                    "Train with DistributedDataParallel or DeepSpeed ZeRO-1 or 2, or without ema."
                )
        self.average = {name: self._wide(weight).clone() for name, weight in self.weights.items()}
        self._update = get_ema_multi_avg_fn(decay)
        self.on_model = False

    def _trainable(self) -> dict[str, nn.Parameter]:
        return independent({n: p for n, p in self.model.named_parameters() if p.requires_grad})

    def _follow(self) -> None:
        """Take in weights that are trained from this step on; those that no longer are stay."""
        for name, weight in self._trainable().items():
            if name not in self.weights:
                self.weights[name], self.average[name] = weight, self._wide(weight).clone()

    @staticmethod
    def _wide(weight: Tensor) -> Tensor:
        return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an optimizer step."""
        self._follow()
        now = [self._wide(weight) for weight in self.weights.values()]
        averages = list(self.average.values())
        if self.count:
            self._update(averages, now, self.count)  # type: ignore[no-untyped-call]
        else:
            torch._foreach_copy_(averages, now)
        self.count += 1

    @contextmanager
    def on(self) -> Iterator[None]:
        """The model has the average inside, and its own weights afterwards, bit for bit; nothing before the first step.

        What loads other weights inside loses them.
        """
        if self.on_model or not self.count:
            yield
            return
        kept = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.on_model = True
        try:
            self.put()
            yield
        finally:
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(kept[name])
            self.on_model = False

    @torch.no_grad()
    def put(self) -> None:
        """Write the average to the model's weights, rounded to their type."""
        for name, weight in self.weights.items() if self.count else ():
            weight.copy_(self.average[name])

    # --------------------------------------------------------------------------------------------- checkpoints

    def save(self, folder: str | os.PathLike[str], trained: dict[str, Tensor]) -> None:
        """Write the average, and the weights that are ``trained``, into a checkpoint."""
        tensors = {AVERAGE + name: value for name, value in self.average.items()}
        tensors |= {TRAINED + name: value for name, value in trained.items()}
        whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        content = safetensors.torch.save(whole, {"state": json.dumps({"count": self.count, "decay": self.decay})})
        write_atomically(Path(folder) / AVERAGE_FILE, lambda file: file.write(content))

    @torch.no_grad()
    def load(self, folder: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint: its average, and in the model the weights that were trained.

        Raises:
            ValueError: the file is damaged, or of other weights.
        """
        path = Path(folder) / AVERAGE_FILE
        if not path.is_file():
            logger.warning("%s has no %s: the average of the weights starts anew.", folder, AVERAGE_FILE)
            return
        remedy = "Resume from another checkpoint, or remove the file to start the average anew."
        with refusing(f"{path} cannot be read", f"The file is cut short or damaged. {remedy}", kind=DAMAGED):
            with safe_open(path, framework="pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                count = int(json.loads(file.metadata()["state"])["count"])
        shapes = {prefix + name: w.shape for prefix in (AVERAGE, TRAINED) for name, w in self.weights.items()}
        if {name: value.shape for name, value in found.items()} != shapes:
            odd = sorted(found.keys() ^ shapes.keys())
            raise ValueError(
                f"{path} is the average of other trainable weights (different: {odd[:4] or 'shapes'}). {remedy}"
            )
        for name, weight in self.weights.items():
            self.average[name].copy_(found[AVERAGE + name])
            weight.copy_(found[TRAINED + name])
        self.count = count


class Averaging:
    """An average in a Trainer's run: with ``evaluates`` it is what evaluations see, and what checkpoints are of.

    Args:
        resumed_from: the checkpoint that the run goes on from.
    """

    def __init__(
        self, trainer: Trainer, decay: float, *, evaluates: bool, resumed_from: str | os.PathLike[str] | None
    ) -> None:
        self.trainer, self.evaluates = trainer, evaluates
        self.average = WeightAverage(cast(nn.Module, trainer.model), decay)
        if resumed_from is not None:
            self.average.load(resumed_from)
        self._undo: list[Callable[[], None]] = []
        # no event of the Trainer comes before an evaluation or a save
        self._around("evaluate", self._evaluate)
        self._around("_save_checkpoint", self._checkpoint)
        self._around("_save_optimizer_and_scheduler", self._write)
        self._trained: dict[str, Tensor] | None = None

    def after_step(self) -> None:
        """Take in the weights after an optimizer step."""
        self.average.update()

    def finish(self) -> None:
        """At the end of a training: leave the average in the model, unless the best checkpoint was loaded into it."""
        best = self.trainer.args.load_best_model_at_end and self.trainer.state.best_model_checkpoint is not None
        if self.evaluates and not best:
            self.average.put()
        self.close()

    def close(self) -> None:
        """Leave the Trainer as it was."""
        for undo in self._undo:
            undo()
        self._undo = []

    def _around(self, name: str, around: Callable[..., Any]) -> None:
        method, own = getattr(self.trainer, name), vars(self.trainer).get(name)

        def called(*args: Any, **kwargs: Any) -> Any:
            return around(method, *args, **kwargs)

        def undo() -> None:
            delattr(self.trainer, name)
            if own is not None:
                setattr(self.trainer, name, own)

        setattr(self.trainer, name, called)
        self._undo.append(undo)

    def _evaluate(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.evaluates:
            return method(*args, **kwargs)
        with self.average.on():
            return method(*args, **kwargs)

    def _checkpoint(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._trained = {name: weight.detach().clone() for name, weight in self.average.weights.items()}
        try:
            return self._evaluate(method, *args, **kwargs)
        finally:
            self._trained = None

    def _write(self, method: Callable[..., Any], output_dir: str) -> Any:
        found = method(output_dir)
        if self._trained is not None and self.trainer.args.should_save:
            self.average.save(output_dir, self._trained)
        return found
