"""``plan()``: what a score will take, before it is run."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from hf_pacgen.config import Estimator, HVPMethod, ScoreConfig
from hf_pacgen.config.settings import count
from hf_pacgen.curvature.hvp import choose_method
from hf_pacgen.curvature.pass_counts import (
    Passes,
    diagonal_passes,
    products_of,
    rho_passes,
    sweeps_of,
    usual_checks,
)
from hf_pacgen.curvature.peak_memory import PeakMemory, Untraceable, sums_bytes
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.data.batches import Batches
from hf_pacgen.data.contents import batch_tensors
from hf_pacgen.distributed.shards import is_sharded, refuse_partitioned
from hf_pacgen.distributed.wire import gathered, reduced
from hf_pacgen.measures.rehearsal import Rehearsal, rehearse
from hf_pacgen.measures.session import DataOptions, measure
from hf_pacgen.model.parameters import trainable_parameters
from hf_pacgen.model.state import unwrap
from hf_pacgen.results.plan import Plan

__all__ = ["plan"]

LOOKED_AT = 64
"""Batches whose sizes are looked at."""
FULL = 0.95
"""Part of a device's memory that a rehearsal may be expected to fill."""


@measure
def plan(
    model: nn.Module,
    data: Any,
    *,
    config: ScoreConfig = ScoreConfig(),
    processes: int | Sequence[int] = 1,
    timed: bool = True,
    **options: Unpack[DataOptions],
) -> Plan:
    """What :func:`pacgen` with the same arguments will take: passes, memory, bytes on the wire and time.

    The memory of a pass is found by going through it on tensors without elements, so nothing is allocated for it, and
    the model may be on the meta device: made of a configuration, of any size.  Its loss is taken for a cross-entropy
    then, and there is no time.  Of any other model the checks of the first batch, one displacement of ρ and that batch
    are done for once (about 30 gradients of a batch with the defaults), where the memory for it is there.

    Args:
        model, data, config: as for :func:`pacgen`.
        processes: how many there are to be, or several such numbers: each with the weights ``copied`` to all processes
            (DDP, or any launch with an accelerator) and, of more than one, ``sharded`` over them (FSDP2: the blocks
            that transformers names, and the rest).
        timed: whether the one batch is done; without, passes of the checks are the usual ones, and there is no time.
        loss_fn, collate_fn, batch_size, progress: as for :func:`pacgen`; it plans in one process, so no accelerator.

    Returns:
        A :class:`Plan`; its ``status`` says in sentences what is not known.

    Raises:
        ValueError: what the score would refuse, as far as it shows; a sharded model, an accelerator of several
            processes.
        TypeError: ``model`` is no module, data of a kind that cannot be scored, or an option that there is not.

    >>> layer = nn.Linear(4, 2)
    >>> loss = lambda model, batch: (model(batch).square().sum(), len(batch))
    >>> found = plan(layer, [torch.ones(3, 4)], loss_fn=loss, progress=False, config=ScoreConfig(passes=1))
    >>> found.num_parameters, found.passes["diagonal"]
    (10, {'forwards': 5, 'backwards': 6})
    """
    accelerator = options.pop("accelerator", None)
    if accelerator is not None and accelerator.num_processes > 1:
        raise ValueError(
            f"plan() was called with an accelerator of {accelerator.num_processes} processes: expected one, which "
            "plans for any number. Leave the accelerator out, and give processes=."
        )
    counts = [count(n, "processes") for n in ([processes] if isinstance(processes, int) else processes)]
    model = unwrap(model)
    refuse_partitioned(model)
    if any(map(is_sharded, model.parameters())):
        raise ValueError(
            "The model is sharded by fully_shard already: expected a whole one, on the meta device if it is large. "
            "Plan before it is sharded, with processes=."
        )
    parameters: Mapping[str, Tensor] = trainable_parameters(model, bare=True)
    sample = _sample(model, data, config, options)
    made = _Planned(model, parameters, sample, config, options.get("loss_fn"))
    if any(p.is_meta for p in model.parameters()):
        made.notes.append(
            "The model has no weights (it is on the meta device), so there is no time, and its loss was taken for a "
            "cross-entropy whose gradient does not jump."
        )
    elif timed:
        made.rehearse(data, options)
    return made.plan(counts)


@dataclass(frozen=True)
class _Sample:
    """The batches, as far as they were looked at: their number, a largest one, elements of each, and of the mean."""

    number: int
    examples: int
    largest: Any
    elements: int
    mean: float
    fetch: float
    all_seen: bool


def _sample(model: nn.Module, data: Any, config: ScoreConfig, options: Mapping[str, Any]) -> _Sample:
    kept = {name: options[name] for name in ("collate_fn", "batch_size") if options.get(name) is not None}
    batches = Batches(data, model=model, max_examples=config.max_examples, seed=config.seed, **kept)
    try:
        number = batches.count()
        began = time.perf_counter()
        found = list(batches.sample(LOOKED_AT)) if number is not None else list(batches.every())
        fetch = (time.perf_counter() - began) / max(len(found), 1)
        if not found:
            raise ValueError("The data is empty: expected at least one batch, got none.")
        sizes = [sum(t.numel() for t in batch_tensors(batch)) for _, batch in found]
        examples = [batches.examples_in(index, batch) for index, batch in found]
        number = len(found) if number is None else number
        largest = found[sizes.index(max(sizes))][1]
        total = sum(examples) if number == len(found) else round(statistics.mean(examples) * number)
        if batches.indices is not None:
            total = sum(map(len, batches.indices))
        return _Sample(number, total, largest, max(sizes), statistics.mean(sizes), fetch, number == len(found))
    finally:
        batches.close()


class _Planned:
    """The figures as they come together."""

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, Tensor], sample: _Sample, config: ScoreConfig, loss_fn: Any
    ) -> None:
        self.model, self.parameters, self.sample, self.config = model, parameters, sample, config
        self.loss_fn, self.notes = loss_fn, list[str]()
        floats = [p for p in model.parameters() if p.is_floating_point()]
        self.low = any(p.element_size() < 4 for p in floats)
        self.estimator = Estimator(config.estimator)
        self.found: Rehearsal | None = None
        self.method = self._method(sharded=False)
        self._known: dict[Any, dict[str, Any]] = {}
        limit = self.estimator.facts.most_parameters
        if limit is not None and sum(p.numel() for p in parameters.values()) > limit:
            raise ValueError(
                f"estimator={self.estimator.value!r} takes at most {limit} trainable parameters, and the model has "
                f"{sum(p.numel() for p in parameters.values())}. Use 'blend' or 'hutchinson', or freeze weights."
            )
        if not sample.all_seen:
            self.notes.append(
                f"{LOOKED_AT} of {sample.number:,} batches were looked at: a larger one takes more memory."
            )

    def rehearse(self, data: Any, options: Any) -> None:
        """Do one batch, if it fits."""
        peak = self._memory().get("peak")
        room = _room(next(iter(self.parameters.values())).device)
        if peak is not None and room is not None and peak > FULL * room:
            self.notes.append(
                f"The device has {room / 1e9:.1f} GB of memory for the {peak / 1e9:.1f} GB of a score, so no batch was "
                "timed."
            )
            return
        try:
            self.found = found = rehearse(self.model, data, self.config, options)
        except torch.OutOfMemoryError:
            self.notes.append("The device ran out of memory in the batch that was to be timed, so there is no time.")
            return
        self.estimator, self.method, self.low = found.estimator, found.method, found.low
        self.notes.extend(found.notes)

    def plan(self, counts: Sequence[int]) -> Plan:
        """All figures."""
        config, number, found = self._settled(), self.sample.number, self.found
        if found is None:
            checks = usual_checks(config, self.method, low_precision=self.low)
            diagonal, repeats = diagonal_passes(config, self.method, number, self._elements()), Passes()
            if self.method is not None and self.method.facts.differences and config.lipschitz_directions:
                self.notes.append("Steps of ρ that prove too long are repeated, which is known once a batch was timed.")
        else:
            exact = self.estimator is Estimator.EXACT
            checks, diagonal = found.checks.passes, found.diagonal(self.config, number)
            diagonal = diagonal_passes(config, self.method, number, self._elements()) if exact else diagonal
            repeats = found.repeats(self.config, number)
        rho = rho_passes(config, self.method, number, counted=self.loss_fn is not None)
        phases = {"checks": checks, "rho": rho, "repeats": repeats, "diagonal": diagonal}
        total = checks + rho + repeats + diagonal
        memory = self._memory()
        if max(counts) > 1:
            self.notes.append(
                "Of sharded weights, memory and bytes sent are those of fully_shard on the blocks that the model names "
                "(_no_split_modules) and on the rest, one block after another; they were compared with two processes "
                "on a CPU (it was up to a third more), not on a GPU. Their time is not given: it depends on the wire."
            )
        layouts = [self._layout(p, sharded, phases, memory) for p in counts for sharded in (False, True)[: 1 + (p > 1)]]
        buffers = [b for b in self.model.buffers() if b is not None]
        weights = list(self.model.parameters())
        first = None if found is None else self._seconds(1)
        return Plan(
            num_parameters=self._elements(),
            num_all_parameters=sum(p.numel() for p in weights),
            num_buffers=sum(b.numel() for b in buffers),
            trainable_bytes=_bytes(self.parameters.values()),
            parameter_bytes=_bytes(weights),
            buffer_bytes=_bytes(buffers),
            num_batches=number,
            num_examples=self.sample.examples,
            sweeps=sweeps_of(config, number),
            estimator=self.estimator.value,
            hvp_method=None if self.method is None else self.method.value,
            num_hvps=sum(self._products()),
            passes={name: passes.to_dict() for name, passes in phases.items()},
            forwards=total.forwards,
            backwards=total.backwards,
            flops=self._flops(total),
            layouts=tuple(layouts),
            seconds=first,
            status=tuple(dict.fromkeys(self.notes)),
            config=self.config.to_dict(),
        )

    # --------------------------------------------------------------------------------------------------- parts

    def _elements(self) -> int:
        return sum(p.numel() for p in self.parameters.values())

    def _settled(self) -> ScoreConfig:
        return dataclasses.replace(self.config, estimator=self.estimator, likelihood=None)

    def _products(self) -> tuple[int, int]:
        config = self._settled()
        return products_of(config, self.sample.number, sweeps_of(config, self.sample.number))

    def _method(self, *, sharded: bool) -> HVPMethod | None:
        if not (self.estimator.facts.needs_products or self.config.lipschitz_directions):
            return None
        known = self.found is not None and not sharded
        if known and self.found is not None:
            return self.found.method
        objective = SimpleNamespace(parameters=self.parameters, low_precision=self.low)
        bare = SimpleNamespace(resolved={}, objective=objective, has_second_derivatives=not sharded)
        return choose_method(cast(WeightSpace, bare), self.config.hvp)

    def _of(self, method: HVPMethod | None) -> PeakMemory:
        sample, config = self.sample, self._settled()
        own = self.loss_fn if callable(self.loss_fn) else None
        return PeakMemory(self.model, self.parameters, sample.largest, config, method, low=self.low, loss_fn=own)

    def _memory(self) -> dict[str, Any]:
        """What was traced: the peak, that of each phase, and floating-point operations; empty where it cannot be."""
        key = self.method, self.estimator, self.low
        if key in self._known:
            return self._known[key]
        try:
            traced = self._of(self.method)
            phases = traced.by_phase()
            self._known[key] = {"peak": max(phases.values()), "phases": phases, "flops": traced.flops()}
        except Untraceable as error:
            self._known[key] = {}
            self.notes.append(
                "The peak of memory is not given, nor floating-point operations: the model cannot be gone through on "
                f"tensors without elements ({error})."
            )
        return self._known[key]

    def _flops(self, total: Passes) -> float | None:
        traced = self._memory()
        if not traced:
            return None
        forward, once, product = traced["flops"]
        scale = self.sample.mean / self.sample.elements
        by_derivatives = self.method is not None and not self.method.facts.differences
        products = sum(self._products()) if by_derivatives and self.estimator is not Estimator.EXACT else 0
        each = Passes(1, 1 if self.method is HVPMethod.FORWARD_OVER_REVERSE else 2)
        plain = total - each * products
        return scale * (
            products * product + max(plain.forwards, 0) * forward + max(plain.backwards, 0) * (once - forward)
        )

    def _seconds(self, processes: int) -> float | None:
        if self.found is None:
            return None
        scale = self.sample.mean / max(self.found.elements, 1)
        return self.found.seconds(
            self.config, self.sample.number, processes=processes, scale=scale, fetch=self.sample.fetch
        )

    def _layout(
        self, processes: int, sharded: bool, phases: Mapping[str, Passes], memory: Mapping[str, Any]
    ) -> dict[str, Any]:
        layout: dict[str, Any] = {"processes": processes, "weights": "sharded" if sharded else "copied"}
        if sharded:
            try:
                method = self._method(sharded=True)
                if self.estimator is Estimator.EXACT:
                    raise ValueError("estimator='exact' needs second derivatives, which a sharded model has not.")
            except ValueError as error:
                return layout | {"refused": str(error)}
            total = self._sharded_passes(method, phases)
            traced = self._of(method)
            found = traced.by_phase(processes, sharded=True) if memory else None
            wire = self._sharded_wire(traced, total, processes)
            seconds = None
        else:
            total = phases["checks"] + _share(phases["rho"] + phases["repeats"], processes, self.config)
            total += Passes(*(-(-n // processes) for n in dataclasses.astuple(phases["diagonal"])))
            found = memory.get("phases")
            wire = reduced(sums_bytes(self.parameters, self._settled()).added, processes)
            seconds = self._seconds(processes)
        peak = None if found is None else max(found.values())
        return layout | {
            "forwards": total.forwards,
            "backwards": total.backwards,
            "peak_bytes": peak,
            "peak_in": None if found is None else max(found, key=lambda name: found[name]),
            "memory": found,
            "wire_bytes": wire,
            "seconds": seconds,
        }

    def _sharded_passes(self, method: HVPMethod | None, phases: Mapping[str, Passes]) -> Passes:
        """All processes go through all batches; products may be of another method than those of a whole model."""
        config, number = self._settled(), self.sample.number
        if method is self.method:
            total = Passes()
            for passes in phases.values():
                total += passes
            return total
        checks = usual_checks(config, method, low_precision=False)
        return checks + rho_passes(config, method, number) + diagonal_passes(config, method, number, 0)

    def _sharded_wire(self, traced: PeakMemory, total: Passes, processes: int) -> int:
        """Weights are gathered for each pass, the rest beside the blocks once for both, and gradients dealt out."""
        blocks, rest = traced.units()
        forward, backward = gathered(sum(blocks) + rest, processes), gathered(sum(blocks), processes)
        gradients = gathered(_bytes(self.parameters.values()), processes)
        return total.forwards * forward + total.backwards * (backward + gradients)


def _share(passes: Passes, processes: int, config: ScoreConfig) -> Passes:
    """Of ρ, of a process with the most displacements."""
    directions = config.lipschitz_directions
    if not directions:
        return Passes()
    mine = -(-directions // processes)
    return Passes(*(n * mine // directions for n in dataclasses.astuple(passes)))


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _room(device: torch.device) -> int | None:
    """Bytes that a device has for tensors; None where that is not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_allocated(device)
    if device.type == "cpu" and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
