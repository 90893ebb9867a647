"""What a pass through a model would take, found without doing it: its operations run on tensors that have no elements.

Every operation is gone through on torch's fake tensors, which have shapes and no memory, and the bytes that would be
alive at each moment are added up.  So the peak is that of the real pass, to what kernels take inside for themselves.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["LiveMemory", "StandIn", "Trace"]


STEP = 1.01
"""How far memory grows until cycles are looked for again."""


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of the tensors made inside that are alive, and the most there were.

    Attributes:
        live, peak: bytes, of storages; ``known`` tensors, which were there before, do not count.

    With ``collecting``, what only reference cycles hold does not count: recomputed layers leave such cycles, and when
    Python finds them is chance.
    """

    def __init__(self, known: Iterable[Tensor] = (), *, collecting: bool = False) -> None:
        super().__init__()
        self._next: float | None = 0.0 if collecting else None
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in known:
            self._sizes[tensor.untyped_storage()._cdata] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                for part in [leaf] if leaf.layout is torch.strided else [leaf._values(), leaf._indices()]:
                    self._note(part)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            weakref.finalize(storage, self._forget, key)
            if self._next is not None and self.live > self._next:
                gc.collect()
                self._next = max(self._next, STEP * self.live)
            self.peak = max(self.peak, self.live)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


@dataclass(frozen=True)
class Trace:
    """Of one piece of work: ``peak`` bytes beyond the weights, and floating-point operations."""

    peak: int
    flops: int


class StandIn:
    """A model's twin without elements, on which work is traced.

    Args:
        model: on any device, also meta; it is not changed.
        dtype: of all floating-point weights, if another.

    Attributes:
        model: the twin.  parameters: its trainable ones, by name.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        self._mode = FakeTensorMode()
        self._dtype = dtype
        self._given: list[Tensor] = []
        with self._mode:
            # deepcopy takes for each weight what stands in its place, and copies no element
            twins: dict[int, Any] = {}
            for weight in model.parameters():
                twins[id(weight)] = nn.Parameter(self._empty(weight), requires_grad=weight.requires_grad)
            for buffer in model.buffers():
                twins[id(buffer)] = self._empty(buffer)
            for weight in model.parameters():
                if weight.grad is not None:
                    twins[id(weight.grad)] = None
            self.model = copy.deepcopy(model, twins)
        for module in self.model.modules():
            if type(module) is nn.Embedding:
                module.padding_idx = None  # its rows would have to be looked at
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def batch(self, batch: Any) -> Any:
        """A batch without elements."""
        with self._mode:
            found = tree_map(lambda leaf: self._empty(leaf) if isinstance(leaf, Tensor) else leaf, batch)
        self._given = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        return found

    def like(self, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Further tensors without elements, shaped like others, that were there before the work."""
        with self._mode:
            return {name: torch.empty(t.shape, dtype=dtype or t.dtype, device="cpu") for name, t in tensors.items()}

    def trace(self, work: Callable[[], Any], *, fleeting: bool = False) -> Trace:
        """What some work on the twin takes; ``fleeting`` gives gradients back as soon as they are there."""
        known = [*self.model.parameters(), *self.model.buffers(), *self._given]
        with self._mode, self._fleeting() if fleeting else nullcontext(), FlopCounterMode(display=False) as flops:
            try:
                with _frozen(), LiveMemory(known, collecting=True) as memory:
                    work()
            finally:
                for parameter in self.parameters.values():
                    parameter.grad = None
        return Trace(memory.peak, flops.get_total_flops())

    @contextmanager
    def sparse_embeddings(self, names: Mapping[str, Any]) -> Iterator[None]:
        """Embeddings of these names have gradients of the rows that they look up alone, while inside."""
        layers = [m for n, m in self.model.named_modules() if f"{n}.weight" in names and type(m) is nn.Embedding]
        for layer in layers:
            layer.sparse = True
        try:
            yield
        finally:
            for layer in layers:
                layer.sparse = False

    @contextmanager
    def _fleeting(self) -> Iterator[None]:
        def drop(parameter: Tensor) -> None:
            parameter.grad = None

        handles = [p.register_post_accumulate_grad_hook(drop) for p in self.parameters.values()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _empty(self, like: Tensor) -> Tensor:
        # on the CPU, whose fused attention keeps what that of a GPU keeps; of the meta device it would be another
        dtype = self._dtype if self._dtype is not None and like.is_floating_point() else like.dtype
        return torch.empty(like.shape, dtype=dtype, device="cpu")


@contextmanager
def _frozen() -> Iterator[None]:
    """Cycles are looked for among what is made inside alone, which is quick."""
    gc.collect()
    ours = gc.get_freeze_count() == 0
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()
