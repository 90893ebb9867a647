"""The peak of a process's memory in each phase of a score, found beforehand.

What a phase holds for its vectors is known by their sizes; what one pass takes beside them is traced on tensors without
elements.  The figures are those of tensors: not Python's own memory, nor what kernels and the allocator keep.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_pacgen.config import Estimator, HVPMethod, ScoreConfig
from hf_pacgen.curvature.diagonal.replicates import NUM_REPLICATES, sampled_counts
from hf_pacgen.curvature.diagonal.sums import NUM_GROUPS
from hf_pacgen.curvature.displacement import CHUNK
from hf_pacgen.curvature.hvp import traced_product
from hf_pacgen.data.contents import count_examples, labels_of, take
from hf_pacgen.data.losses import BatchLoss, LossFunction
from hf_pacgen.data.recognition import logits_of
from hf_pacgen.maths.score import CHUNK as SCORED
from hf_pacgen.model.embeddings import lone_embeddings
from hf_pacgen.model.precision import wide
from hf_pacgen.model.state import evaluation_mode, uses_checkpointing
from hf_pacgen.model.traces import StandIn, Trace

__all__ = ["PeakMemory", "Sums", "Untraceable", "sums_bytes"]

CHECKED, TERMS, LEFT = 24, 128, 50
"""Bytes for an element of a piece, of a checksum and of the score's terms, and of the piece before, which is left."""


class Untraceable(Exception):
    """The model's forward pass looks at elements, and cannot be gone through without."""


@dataclass(frozen=True)
class _Sizes:
    """Bytes of a process's parts, of ``processes`` that share them."""

    parameters: Mapping[str, Tensor]
    processes: int = 1

    def elements(self, tensor: Tensor) -> int:
        """Of the largest part of a tensor, along its first dimension."""
        if self.processes == 1 or not tensor.ndim:
            return tensor.numel()
        rows = tensor.shape[0]
        return -(-rows // self.processes) * (tensor.numel() // max(rows, 1))

    def bytes_of(self, tensors: Any) -> int:
        """Of tensors as they are."""
        return sum(self.elements(t) * t.element_size() for t in tensors)

    @property
    def own(self) -> int:
        """Of the trainable weights."""
        return self.bytes_of(self.parameters.values())

    @property
    def vector(self) -> int:
        """Of a vector of accumulators."""
        return sum(self.elements(p) * wide(p).itemsize for p in self.parameters.values())

    @property
    def largest(self) -> int:
        """Elements of the largest tensor."""
        return max((self.elements(p) for p in self.parameters.values()), default=0)


@dataclass(frozen=True)
class Sums:
    """Bytes of what an estimator sums: what processes add up, all that is held, and what of it outlives the sums."""

    added: int
    held: int
    kept: int


def sums_bytes(parameters: Mapping[str, Tensor], config: ScoreConfig, processes: int = 1) -> Sums:
    """What the estimator of a score sums, for a model whose weights ``processes`` share.

    Raises:
        ValueError: an estimator of which nothing is known here.
    """
    sizes, estimator = _Sizes(parameters, processes), Estimator(config.estimator)
    kinds = {
        Estimator.BLEND: (config.standard_error, False),
        Estimator.HUTCHINSON: (config.standard_error,),
        Estimator.GAUSS_NEWTON: (config.standard_error,),
        Estimator.EXACT: (False,),
    }
    if estimator not in kinds:
        raise ValueError(f"It is not known what the estimator {estimator!r} sums: say it here.")
    counts = sampled_counts([sizes.elements(p) for p in parameters.values()])
    item = [wide(p).itemsize for p in parameters.values()]
    sampled = sum(NUM_REPLICATES * count * size for count, size in zip(counts, item, strict=True))
    numbers = 8 * (len(parameters) * (1 + NUM_GROUPS) + NUM_GROUPS + 1)
    one = [sizes.vector * (1 + elementwise) + sampled + numbers for elementwise in kinds[estimator]]
    places = 8 * sum(counts)
    kept = sizes.vector * (1 + config.standard_error) + len(one) * (sampled + places)
    return Sums(sum(one) + 48, sum(one) + places * len(one), kept)


class PeakMemory:
    """Of one score.

    Args:
        model: on any device; it is not changed.
        batch: the largest, or one like it.
        config: settings, whose estimator is the one that will be used.
        method: of the products; None where there are none.
        loss_fn: instead of the model's own loss.
        low: whether the model computes in low precision.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        batch: Any,
        config: ScoreConfig,
        method: HVPMethod | None,
        *,
        low: bool = False,
        loss_fn: LossFunction | None = None,
    ) -> None:
        self.model, self.parameters, self.batch, self.config, self.method = model, parameters, batch, config, method
        self.loss_fn, self.estimator = loss_fn, Estimator(config.estimator)
        self.low = low
        self.alone = lone_embeddings(model, parameters)  # type: ignore[arg-type]
        self._traces: dict[tuple[Any, ...], Trace] = {}

    def by_phase(self, processes: int = 1, *, sharded: bool = False) -> dict[str, int]:
        """Bytes at the peak of each phase.

        Raises:
            Untraceable: the model's passes cannot be traced.
        """
        sizes = _Sizes(self.parameters, processes if sharded else 1)
        share = -(-count_examples(self.batch) // processes) if sharded else None
        base = sizes.bytes_of(self.model.parameters())
        buffers = [b for b in self.model.buffers() if b is not None]
        base += 2 * sum(b.numel() * b.element_size() for b in buffers)  # they are put back at the end
        vector, held = sizes.vector, sums_bytes(self.parameters, self.config, sizes.processes)
        differs = self.method is not None and self.method.facts.differences
        rows = not sharded and not (self.method is not None and self.method.facts.reads_all_rows)
        copied = {n: p for n, p in self.parameters.items() if not (rows and n in self.alone)}
        displaced = bool(self.config.lipschitz_directions) or (self.method is not None and not self.low)
        copy = sizes.bytes_of(copied.values()) if displaced else 0
        passes = self._passes(sizes, share) if sharded else self._whole()
        once, twice, drawn = passes["once"], passes["twice"], passes["drawn"]
        product = twice
        if self.method is not None and not differs:
            # the vector as it is stored, and in the precision of the weights
            given = vector + sum(p.numel() * p.element_size() for p in self.parameters.values() if p.dtype != wide(p))
            product = given + self._trace("product").peak
        found = {"checks": base + max(once, CHECKED * min(CHUNK, sizes.largest))}
        if self.method is not None:
            found["checks"] = base + self._checks(copy, vector, once, product, differs)
            if self.config.lipschitz_directions:
                found["rho"] = base + copy + max(2 * vector + product, vector + twice)
        quiet = drawn if self.estimator.facts.needs_labels else 0
        if self.estimator is Estimator.EXACT:
            work = vector + self._trace("rows").peak
        else:
            work = max(quiet, product) if self.estimator.facts.needs_products else quiet
        found["diagonal"] = base + copy + held.held + work
        terms = TERMS + LEFT * (sizes.largest > SCORED)
        found["result"] = base + copy + held.kept + terms * min(SCORED, sizes.largest)
        return found

    def flops(self) -> tuple[int, int, int]:
        """Of a forward pass, a gradient and a product by autograd of one batch.

        Raises:
            Untraceable: the model's passes cannot be traced.
        """
        product = self.method is not None and not self.method.facts.differences
        kinds = ("forward", "once", "product" if product else "once")
        forward, once, other = (self._trace(kind).flops for kind in kinds)
        return forward, once, other

    def _checks(self, copy: int, vector: int, once: int, product: int, differs: bool) -> int:
        if not self.low:
            return copy + max(2 * vector + once, 4 * vector, 0 if differs else 2 * vector + product)
        # once in float32, frozen weights too, with products beside
        floats = [t for t in (*self.model.parameters(), *self.model.buffers()) if t.is_floating_point()]
        wider = 4 * sum(t.numel() for t in floats if t.element_size() < 4)
        own = 4 * sum(p.numel() for p in self.parameters.values())
        gradient, second = (self._trace(kind, dtype=torch.float32).peak for kind in ("once", "product"))
        return max(wider + own + max(2 * own + gradient, 4 * own, 3 * own + second), product)

    def _whole(self) -> dict[str, int]:
        drawn = self._trace("drawn").peak if self.estimator.facts.needs_labels else 0
        return {"once": self._trace("once").peak, "twice": self._trace("twice").peak, "drawn": drawn}

    def _passes(self, sizes: _Sizes, share: int | None) -> dict[str, int]:
        """Peaks where blocks of weights are gathered one after another, and given back after use."""
        inside = self._trace("fleeting", share=share).peak
        blocks, rest = self.units()
        # of a block its weights, those of the next, its gradients and the same once more on their way
        gathered = (
            rest
            + 4 * max(blocks, default=0)
            + sum(p.numel() * p.element_size() for p in self._outside().values() if p.requires_grad)
        )
        once = inside + gathered + sizes.own
        return {"once": once, "twice": once, "drawn": once}

    def units(self) -> tuple[list[int], int]:
        """Bytes of the blocks that ``fully_shard`` takes one by one, as accelerate chooses them, and of the rest."""
        blocks = [sum(p.numel() * p.element_size() for p in m.parameters()) for m in self._blocks()]
        return blocks, sum(p.numel() * p.element_size() for p in self._outside().values())

    def _blocks(self) -> list[nn.Module]:
        names = set(getattr(self.model, "_no_split_modules", None) or ())
        return [m for m in self.model.modules() if type(m).__name__ in names]

    def _outside(self) -> dict[int, Tensor]:
        inside = {id(p) for m in self._blocks() for p in m.parameters()}
        return {id(p): p for p in self.model.parameters() if id(p) not in inside}

    # ------------------------------------------------------------------------------------------------- traces

    @cached_property
    def _twins(self) -> dict[torch.dtype | None, StandIn]:
        return {}

    def _trace(self, kind: str, *, share: int | None = None, dtype: torch.dtype | None = None) -> Trace:
        key = (kind, share, dtype)
        if key not in self._traces:
            with _in_words():
                if dtype not in self._twins:
                    self._twins[dtype] = StandIn(self.model, dtype)
                    evaluation_mode(self._twins[dtype].model, checkpointing=uses_checkpointing(self.model))
                self._traces[key] = self._work(kind, self._twins[dtype], share, dtype)
        return self._traces[key]

    def _work(self, kind: str, twin: StandIn, share: int | None, dtype: torch.dtype | None) -> Trace:
        size = count_examples(self.batch)
        batch = twin.batch(self.batch if share is None else take(self.batch, range(min(share, size)), size))

        def loss() -> Tensor:
            return self._loss(twin.model, batch)

        def gradient(times: int) -> Callable[[], None]:
            def work() -> None:
                for _ in range(times):
                    loss().backward()

            return work

        if kind == "forward":
            with torch.no_grad():
                return twin.trace(loss)
        if kind == "once":
            return twin.trace(gradient(1))
        if kind == "fleeting":
            return twin.trace(gradient(1), fleeting=True)
        if kind == "twice":
            with twin.sparse_embeddings(self.alone):
                return twin.trace(gradient(2))
        if kind == "drawn":
            with twin.sparse_embeddings(self.alone):
                return twin.trace(lambda: self._drawn(twin.model, batch).backward())
        if kind == "rows":
            return twin.trace(lambda: _one_row(loss(), list(twin.parameters.values())))
        if kind == "product":
            vector = twin.like(twin.parameters)
            method = self.method if self.method is not None and not self.method.facts.differences else None
            method = method if dtype is None and method is not None else HVPMethod.REVERSE_OVER_REVERSE
            work = traced_product(method, twin.model, twin.parameters, lambda: BatchLoss(loss(), 1.0), vector)
            return twin.trace(work)
        raise ValueError(f"There is no work called {kind!r} to trace.")

    def _loss(self, model: nn.Module, batch: Any) -> Tensor:
        if self.loss_fn is not None:
            return self.loss_fn(model, batch)[0]
        outputs = model(**batch)
        loss, labels = outputs["loss"] if isinstance(outputs, Mapping) else outputs[0], labels_of(batch)
        logits = logits_of(outputs, labels)
        if logits is not None:  # the loss is compared with that of the logits
            with torch.no_grad():
                _entropy(logits, labels)
        return loss * 2.0

    def _drawn(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss on labels drawn from the outputs, as far as these are logits."""
        if self.loss_fn is not None:
            return self._loss(model, batch)
        outputs, labels = model(**batch), labels_of(batch)
        logits = logits_of(outputs, labels)
        if logits is None:
            return outputs["loss"] if isinstance(outputs, Mapping) else outputs[0]
        with torch.no_grad():
            _entropy(logits, labels)
        del outputs
        return _entropy(logits, labels)


def _entropy(logits: Tensor, labels: Tensor) -> Tensor:
    # scores of labels that count are picked out, which makes another copy
    scores = logits.reshape(-1, logits.shape[-1]).to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    drawn = torch.multinomial(scores.detach().softmax(-1), 1).squeeze(-1)
    return functional.cross_entropy(scores, drawn, reduction="sum")


def _one_row(total: Tensor, parameters: list[Tensor]) -> None:
    gradients = torch.autograd.grad(total, parameters, create_graph=True, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and gradient.requires_grad and gradient.numel():
            torch.autograd.grad(gradient.reshape(-1)[0], parameter, retain_graph=True, allow_unused=True)


@contextmanager
def _in_words() -> Iterator[None]:
    # torch logs what it does not know of such tensors, with its stack
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.disabled
    log.disabled = True
    try:
        yield
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError, LookupError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Untraceable(said[:160]) from error
    finally:
        log.disabled = before
