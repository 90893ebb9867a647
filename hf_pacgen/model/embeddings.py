"""Embeddings, of which a batch reads a few rows: the loss of the batch does not depend on the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy
import torch
from torch import Tensor, nn

__all__ = ["EmbeddingRows", "ReadElsewhere", "dense", "padding_rows", "pick_rows", "whole_embeddings"]

_whole: ContextVar[bool] = ContextVar("whole embeddings", default=False)


class ReadElsewhere(ValueError):
    """A later batch reads an embedding's matrix otherwise than by its layer, which the first one did not."""


@contextmanager
def whole_embeddings() -> Iterator[None]:
    """Treat every embedding as a whole matrix, while inside."""
    token = _whole.set(True)
    try:
        yield
    finally:
        _whole.reset(token)


class EmbeddingRows:
    """Which rows of its embeddings a model reads, found at the lookup by hooks.

    Attributes:
        alone: embedding layers, by the name of their weights, whose matrix nothing but the lookup reads.  All others
            are treated as whole matrices.
        on_read: called with the name and the indices just before some rows are read.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        # code that torch.compile made has neither hooks nor sparse gradients
        compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())
        self.alone = {} if compiled or _whole.get() else lone_embeddings(model, parameters)
        self.on_read: Callable[[str, Tensor], None] | None = None
        self._lookups: list[Any] = [m for m in model.modules() if _may_be_sparse(m)] if not compiled else []
        self._touched: dict[str, list[Tensor]] = {}
        self._rows: dict[str, Tensor] = {}
        self._calls: dict[str, int] = {}
        self.watched = False
        """Whether lookups are noted and ``alone`` is settled."""
        self._confirmed: set[int] = set()
        self._rows_of: int | None = None
        """The batch of the last forward pass, whose rows ``_rows`` are."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note which rows are read, while inside."""

        def note(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                indices = (args[0] if args else kwargs["input"]).detach()
                self._touched.setdefault(name, []).append(indices)
                if self.on_read is not None:
                    self.on_read(name, indices)

            return hook

        handles = [m.register_forward_pre_hook(note(name), with_kwargs=True) for name, m in self.alone.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def sparse_gradients(self) -> Iterator[None]:
        """Losses taken inside have sparse gradients for embeddings: no time and memory for rows that are not read."""
        before = [(module, module.sparse) for module in self._lookups]
        try:
            for module in self._lookups:
                module.sparse = True
            yield
        finally:
            for module, sparse in before:
                module.sparse = sparse

    @contextmanager
    def reading(self, index: int) -> Iterator[None]:
        """One forward pass of batch ``index``."""
        self._touched.clear()
        self._rows_of = None
        yield
        self._rows = {name: torch.cat([t.reshape(-1) for t in read]).unique() for name, read in self._touched.items()}
        self._calls = {name: len(read) for name, read in self._touched.items()}
        self._rows_of = index

    def confirm(self, total: Tensor, index: int) -> None:
        """Look, once for every batch, whether its loss depends on the embeddings by the lookups alone.

        Raises:
            ReadElsewhere: it does not.
        """
        plain = total.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(total)
        if not self.watched or not plain or index in self._confirmed or index != self._rows_of:
            return
        self._confirmed.add(index)
        for name, module in self.alone.items():
            if not only_looked_up(module.weight, total, self._calls.get(name, 0)):
                raise ReadElsewhere(
                    f"Batch {index} reads the embedding {name!r} otherwise than by its layer, and the first batch did "
                    "not: its rows cannot be told. Give every process batches that use the model in the same way, or "
                    "measure it in one process."
                )

    def forget(self) -> None:
        """The last forward pass was of no batch: an example, for instance."""
        self._rows_of = None

    def of(self, index: int) -> dict[str, Tensor]:
        """By name, the rows (ascending) that batch ``index`` reads, if it was the last in the model."""
        return self._rows if self._rows_of == index else {}

    def keep_alone(self, total: Tensor) -> None:
        """Keep as ``alone`` what a loss, just taken, shows to be read by the lookup only."""
        self.watched = True
        for name, module in list(self.alone.items()):
            if name not in self._rows or not only_looked_up(module.weight, total, self._calls.get(name, 0)):
                del self.alone[name]


def owners_of(model: nn.Module) -> dict[int, int]:
    """How many modules own a parameter, by its id."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return owners


def lone_embeddings(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Embedding]:
    """Embedding layers, by the name of their weights, whose matrix no other module owns."""
    owners = owners_of(model)
    found: dict[str, nn.Embedding] = {}
    for module_name, module in model.named_modules():
        name = f"{module_name}.weight" if module_name else "weight"
        if type(module) is not nn.Embedding or name not in parameters or owners[id(module.weight)] > 1:
            continue
        # rows of the counter-based streams start at words of 64 elements; other kinds of weights have other rows
        if module.embedding_dim % 64 == 0 and module.max_norm is None and type(module.weight) is nn.Parameter:
            found[name] = module
    return found


def _may_be_sparse(module: nn.Module) -> bool:
    """Whether a module is a trainable embedding whose gradient may be sparse, also one that shares its matrix.

    A matrix that is used elsewhere still gets a dense gradient, but no second dense one for the lookup.
    """
    if type(module) is not nn.Embedding or type(module.weight) is not nn.Parameter:
        return False
    # PyTorch cannot add sparse gradients in float16 on a CPU
    addable = module.weight.dtype != torch.float16 or module.weight.device.type != "cpu"
    return module.weight.requires_grad and not module.scale_grad_by_freq and addable


def only_looked_up(weight: Tensor, total: Tensor, calls: int) -> bool:
    """Whether all that a scalar depends on of an embedding's matrix went through its layer's ``calls``, by the graph.

    ``functional.embedding`` on the matrix looks the same as the layer in the graph: more lookups than calls tell it.
    What a reentrant checkpoint reads is not in the graph, so behind one nothing is known.
    """
    nodes, seen, lookups = [total.grad_fn], set(), 0
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__.startswith("CheckpointFunction"):
            return False
        for parent, _ in node.next_functions:
            if getattr(parent, "variable", None) is weight:
                if not type(node).__name__.startswith("EmbeddingBackward"):
                    return False
                lookups += 1
            nodes.append(parent)
    return lookups <= calls


def padding_rows(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, tuple[int, int]]:
    """First and last (exclusive) element of the row of an embedding's padding, which gets no gradient, by name.

    A matrix that another module owns too may get one there.
    """
    owners = owners_of(model)
    names, found = {id(parameter): name for name, parameter in parameters.items()}, {}
    for module in model.modules():
        if not isinstance(module, nn.Embedding) or module.padding_idx is None or owners[id(module.weight)] > 1:
            continue
        if id(module.weight) in names:
            first = module.padding_idx * module.embedding_dim
            found[names[id(module.weight)]] = first, first + module.embedding_dim
    return found


def dense(gradient: Tensor) -> Tensor:
    """A gradient of dense layout."""
    if not gradient.is_sparse:
        return gradient
    if gradient.device.type != "cpu" or gradient.dtype not in (torch.float32, torch.float64):
        return gradient.to_dense()
    # numpy's zeros are memory that is not touched before it is read: most rows of an embedding never are
    gradient = gradient.coalesce()
    out = torch.from_numpy(numpy.zeros(gradient.shape, dtype=str(gradient.dtype).removeprefix("torch.")))
    return out.index_copy_(0, gradient.indices()[0], gradient.values())


def pick_rows(gradient: Tensor, rows: Tensor) -> Tensor:
    """Some rows of a matrix's gradient; ``rows`` ascend, and hold all that are there if the gradient is sparse."""
    if not gradient.is_sparse:
        return gradient.index_select(0, rows)
    gradient = gradient.coalesce()
    values = gradient.values()
    picked = values.new_zeros(len(rows), values.shape[1])
    return picked.index_copy_(0, torch.searchsorted(rows, gradient.indices()[0]), values)
