"""What every measure of a model begins with: processes that agree, an inspected objective, a model left as it was."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, ParamSpec, TypedDict, TypeVar

from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm

from hf_pacgen.curvature.checks import require_dependence
from hf_pacgen.curvature.run_identity import BUFFERS, agree, arguments, identity, qualified_name
from hf_pacgen.data.batches import Batches
from hf_pacgen.data.collation import AsTheTrainer
from hf_pacgen.data.objective import LossFunction, Objective
from hf_pacgen.data.own_loss import OwnLoss
from hf_pacgen.data.sharded_objective import ShardedObjective
from hf_pacgen.distributed.processes import Processes, rank_and_size
from hf_pacgen.distributed.shards import Shards
from hf_pacgen.measures.origin import with_origin
from hf_pacgen.model.dequantized import dequantized
from hf_pacgen.model.embeddings import ReadElsewhere, whole_embeddings
from hf_pacgen.model.state import preserved, unwrap, without_generation_caches
from hf_pacgen.model.storage import tied

P = ParamSpec("P")
R = TypeVar("R")


class DataOptions(TypedDict, total=False):
    """Options of every measure; :func:`hf_pacgen.pacgen` explains them."""

    loss_fn: LossFunction | OwnLoss | None
    collate_fn: Callable[[list[Any]], Any] | None
    batch_size: int
    accelerator: Accelerator | None
    progress: bool


class Tick:
    """Called after every batch: moves the bar on, and stops early where another process has failed."""

    def __init__(self, batches: Batches, progress: bool) -> None:
        self.batches, self._progress = batches, progress and batches.processes.is_main
        self.bar: Any = None  # made at the first stage, or a measure without stages would show an empty one
        self.then: Callable[[], object] = lambda: None  # done after every batch as well

    def stage(self, what: str, *, passes: int | None = None) -> None:
        """Count from 0 again, up to the batches of ``passes`` passes where both numbers are known."""
        if self.bar is None:
            self.bar = tqdm(disable=not self._progress, leave=False, unit=" batches")
        count = None if passes is None else self.batches.count()
        self.bar.reset(total=None if passes is None or count is None else count * passes)
        self.bar.set_description_str(what)

    def advance(self) -> None:
        """Move the bar on, and no more: for work that is not inside ``processes.together()``."""
        if self.bar is not None:
            self.bar.update()

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()

    def __call__(self) -> None:
        self.advance()
        self.batches.processes.check()
        self.then()


def processes_of(model: Any, accelerator: Accelerator | None) -> Processes:
    """Those that measure a model together: the accelerator's, else those that hold its shards, else this one."""
    parameters = model.parameters() if accelerator is None and isinstance(model, nn.Module) else ()
    shard: Any = next((p for p in parameters if hasattr(p, "device_mesh")), None)
    rank, size = rank_and_size() if shard is not None else (0, 0)
    if shard is None or size != shard.device_mesh.size():  # a part of all is refused later
        return Processes(accelerator)
    return Processes.sharing(rank, size, shard.device)


@contextmanager
def session(
    model: nn.Module,
    data: Any,
    config: Any = None,
    *,
    stage: str = "",
    passes: int | None = None,
    whole: bool = False,
    confirm: bool = True,
    derivatives: bool = False,
    weights: bool = True,
    compare: bool = True,
    max_examples: int | None = None,
    seed: int = 0,
    loss_fn: LossFunction | OwnLoss | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 8,
    accelerator: Accelerator | None = None,
    progress: bool = True,
) -> Iterator[tuple[Objective, Tick]]:
    """An inspected objective; on the way out the model, the random state and the data are as before.

    Args:
        config: any settings with ``max_examples`` and ``seed``, which are given by themselves where there are none.
        stage, passes: what the bar shows at first; see :meth:`Tick.stage`.
        whole: whether the measure needs all of the weights in every process.
        confirm: whether the loss is taken twice at once, to see that it is deterministic.
        derivatives: whether second derivatives are wanted: quantized layers then multiply by dequantized weights.
        weights: whether the weights are measured, on which the loss must depend then.
        compare: whether the first batches are taken twice, to see that every pass gives the same.
    """
    if config is not None:
        max_examples, seed = config.max_examples, config.seed
    model, everyone = unwrap(model), processes_of(model, accelerator)
    if collate_fn is not None and loss_fn is None:  # a loss of one's own may read columns that the model does not
        collate_fn = AsTheTrainer(collate_fn, model)
    with everyone.together():
        sharded = Shards(model)
    if sharded.active and whole:
        raise ValueError(
            "The model is sharded over processes by fully_shard: expected a whole one, because only the score and "
            "its parts are made for shards. Gather the weights into one process."
        )
    # processes that share the weights all go through the same batches
    processes = everyone.as_one() if sharded.active else everyone
    scope: Any = {"max_examples": max_examples, "seed": seed, "processes": processes}
    with ExitStack() as stack:
        stack.enter_context(_backward_in_words())
        stack.enter_context(sharded.as_found() if sharded.active else nullcontext())
        stack.enter_context(preserved(model))
        stack.enter_context(without_generation_caches(model))
        with everyone.together():
            stack.enter_context(tied(model))
        with everyone.together():
            batches = Batches(data, model=model, batch_size=batch_size, collate_fn=collate_fn, **scope)
            stack.callback(batches.close)
            found, note = batches.compare_passes() if compare else ("", None)
            # the checksums of a large model take a while, and one process has nobody to compare them with
            mine = identity(model, batches, config, qualified_name(loss_fn)) if everyone.size > 1 else {}
        # before the inspection, whose forward passes are collectives where the model is sharded
        agree(everyone, {group: values for group, values in mine.items() if group != BUFFERS})
        tick = Tick(batches, progress)
        stack.callback(tick.close)
        with processes.together():
            objective = (
                ShardedObjective(model, batches, sharded, loss_fn=loss_fn)
                if sharded.active
                else Objective(model, batches, loss_fn=loss_fn)
            )
            if found:
                objective.guard.add("the data over two passes", found)
            if note is not None:
                objective.guard.note(note)
            count = stack.enter_context(dequantized(model)) if derivatives else 0
            _inspect(objective, batches, count, confirm=confirm, weights=weights)
        if stage:
            tick.stage(stage, passes=passes)
        with objective.rows.watching():
            yield objective, tick


def _inspect(objective: Objective, batches: Batches, quantized: int, *, confirm: bool, weights: bool) -> None:
    """Look at the loss, and say what was made of the model and of the data."""
    if quantized:
        objective.guard.note(
            f"{quantized} quantized layers were computed from their dequantized weights in float32: the kernels of "
            "bitsandbytes have no second derivative."
        )
    objective.inspect(confirm=confirm)
    if weights:
        require_dependence(objective)
    # a loss that depends on the batching is that of the training only in batches like those of the training
    size = objective.own.batch_size
    if objective.depends_on_batching and size is not None and batches.recut(size):
        objective.guard.note(f"The batches were taken as in training: {size} shuffled examples each.")


def measure(function: Callable[P, R]) -> Callable[P, R]:
    """A public measure, which begins when all processes have the same arguments, a model and the right settings.

    The arguments are compared as the caller gave them, before the first other collective; so what the function itself
    refuses, it refuses on every process.  ``help()`` shows the options that the function takes as ``**options``.
    """
    bare = inspect.signature(function)
    # the function's own, then the options that it hands on to session(), whose defaults count
    own = [p for p in bare.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    shared = [p for name, p in inspect.signature(session).parameters.items() if name in DataOptions.__annotations__]
    signature = bare.replace(parameters=[*own, *shared])
    # the default is what tells which settings belong to the measure
    kind = type(bare.parameters["config"].default) if "config" in bare.parameters else None

    @functools.wraps(function)
    def begin(*args: P.args, **kwargs: P.kwargs) -> R:
        model: Any = args[0] if args else kwargs.get("model")
        accelerator: Any = kwargs.get("accelerator")
        processes = processes_of(model, accelerator)
        with processes.together():
            given = _bind(function.__name__, signature, args, kwargs)
            mine = arguments(function.__name__, given) if processes.size > 1 else {}
        agree(processes, mine)
        # only now: what one process refuses by itself, the others would wait for
        _require_model(given["model"])
        if kind is not None and not isinstance(given["config"], kind):
            remedy = f"{kind.__name__}({'**config' if isinstance(given['config'], Mapping) else '...'})"
            came = type(given["config"]).__name__
            raise TypeError(f"config must be a {kind.__name__}; got {came}. Pass config={remedy}.")
        try:
            return with_origin(function(*args, **kwargs), given["model"], _data_of(given))
        except ReadElsewhere:
            if processes.size > 1:  # the others have not seen that batch
                raise
        with whole_embeddings():
            return with_origin(function(*args, **kwargs), given["model"], _data_of(given))

    begin.__signature__ = signature  # type: ignore[attr-defined]
    return begin


@contextmanager
def _backward_in_words() -> Iterator[None]:
    """Says in words what of a model's own code does not let its gradient be taken."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        found = next((why for text, why in NO_GRADIENT.items() if text in str(error)), None)
        if found is None:
            raise
        raise ValueError(
            f"The gradient of the model's loss cannot be taken in evaluation mode: its forward pass {found} (it says: "
            f"{str(error).strip().splitlines()[0][:160]}). Change that in the model's code."
        ) from error


NO_GRADIENT = {
    "backward through the graph a second time": "keeps tensors of an earlier pass, whose graph is gone",
    "modified by an inplace operation": "writes into tensors that its gradient needs",
    "model.train()": "has a backward pass of its own for training mode alone, as the reversible layers of Reformer",
}


def _bind(name: str, signature: inspect.Signature, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:  # Python's own message does not say what the options are
        unknown = [key for key in kwargs if key not in signature.parameters]
        near = difflib.get_close_matches(unknown[0], signature.parameters, 1) if unknown else []
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise TypeError(f"{name}() {error}. It takes {', '.join(signature.parameters)}.{hint}") from None
    bound.apply_defaults()
    return bound.arguments


def _data_of(given: Mapping[str, Any]) -> Any:
    return given.get("data", given.get("held_out"))


def _require_model(model: Any) -> None:
    if isinstance(model, nn.Module):
        return
    what = type(model).__name__
    if isinstance(model, (str, os.PathLike)):
        remedy = "Load it with from_pretrained(), or score it by its name with the command 'hf-pacgen score'"
    elif isinstance(getattr(model, "model", None), nn.Module):
        remedy = f"Pass {'trainer.model' if 'Trainer' in what else 'the model inside, its attribute model'}"
    else:
        remedy = "Pass a PreTrainedModel, a PEFT model, or another torch.nn.Module"
    raise TypeError(f"model must be a loaded model, a torch.nn.Module; got {what}. {remedy}.")
