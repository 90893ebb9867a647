"""Sums over batches from which a Hessian diagonal and its uncertainty are made.

Everything here is a sum, so it adds over batches, passes and processes; nothing is a mean until
:mod:`hf_pacgen.curvature.diagonal` divides.  The size does not depend on the number of batches.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_pacgen.distributed.shards import Shards, local
from hf_pacgen.model.displacement import Direction, Rows, chunks
from hf_pacgen.model.parameters import dense, pick_rows

__all__ = ["DiagonalSums", "NUM_GROUPS", "zeros_like"]

NUM_GROUPS = 64
"""Batches are dealt to this many groups, whose spread gives the standard error of a trace."""


class DiagonalSums:
    """Weighted sums of one estimator's per-batch diagonals d_b (each a mean over the batch's n_b units).

    Attributes:
        total: Σ n_b d_b by parameter name.
        squares: Σ n_b ‖d_b‖² for every parameter tensor, shape (tensors,).
        elementwise: Σ n_b d_b² by parameter name, where standard errors of entries are wanted.
        traces: Σ n_b Σ_i d_b,i for every group of batches and tensor, shape (groups, tensors).
        units, units_squared: Σ n_b for every group, and Σ n_b².
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], *, elementwise: bool = False, shards: Shards | None = None
    ) -> None:
        self.names, self.shards = list(parameters), shards
        self.total = {name: zeros_like(parameter) for name, parameter in parameters.items()}
        self.elementwise = {name: zeros_like(p) for name, p in parameters.items()} if elementwise else None
        self.squares = torch.zeros(len(self.names), dtype=torch.float64)
        self.traces = torch.zeros(NUM_GROUPS, len(self.names), dtype=torch.float64)
        self.units = torch.zeros(NUM_GROUPS, dtype=torch.float64)
        self.units_squared = torch.zeros(1, dtype=torch.float64)

    def add_probe(
        self, group: int, product: Mapping[str, Tensor], probe: Direction, units: float, rows: Rows | None = None
    ) -> bool:
        """Add n_b d_b = z ⊙ H_b z of a batch's summed loss; returns whether all numbers were finite.

        ``rows`` are the only rows of some matrices in which the product is not 0.
        """
        statistics = []
        for name in self.names:
            trace = square = torch.zeros(())
            only = rows.get(name) if rows else None
            if name in product and only is not None:
                total = self.total[name]
                part = pick_rows(product[name], only).to(total.dtype)
                part.mul_(probe.rows(name, only, part))
                total.index_add_(0, only, part)
                if self.elementwise is not None:
                    self.elementwise[name].index_add_(0, only, part.square(), alpha=1 / units)
                trace, square = part.sum(), torch.linalg.vector_norm(part).square()
            elif name in product:
                for start, (part, total, *rest) in chunks(*self._buffers(name, product[name])):
                    part = part.to(total.dtype).mul_(probe.piece(name, start, part))
                    total.add_(part)
                    if rest:
                        rest[0].addcmul_(part, part, value=1 / units)
                    trace = trace + part.sum()
                    square = square + torch.linalg.vector_norm(part).square()
            statistics.append(torch.stack([trace, square]))
        return self._count(group, statistics, units)

    def add_gradient(self, group: int, gradient: Mapping[str, Tensor], units: float, rows: Rows | None = None) -> bool:
        """Add n_b d_b = G_b ⊙ G_b, with G_b the gradient of a batch's loss summed over sampled labels.

        ``squares`` stays 0: nothing needs the spread of these by tensor.
        """
        statistics = []
        for name in self.names:
            trace = torch.zeros(())
            only = rows.get(name) if rows else None
            if name in gradient and only is not None:
                part = pick_rows(gradient[name], only).to(self.total[name].dtype)
                self.total[name].index_add_(0, only, part.square())
                if self.elementwise is not None:
                    self.elementwise[name].index_add_(0, only, part.square().square(), alpha=1 / units)
                trace = torch.linalg.vector_norm(part).square()
            elif name in gradient:
                for _, (part, total, *rest) in chunks(*self._buffers(name, gradient[name])):
                    part = part.to(total.dtype)
                    total.addcmul_(part, part)
                    if rest:
                        rest[0].addcmul_(part.square(), part.square(), value=1 / units)
                    trace = trace + torch.linalg.vector_norm(part).square()
            statistics.append(torch.stack([trace, torch.zeros_like(trace)]))
        return self._count(group, statistics, units)

    def tensors(self) -> dict[str, Tensor]:
        """All sums by name, to be reduced or saved."""
        named = {f"total.{name}": tensor for name, tensor in self.total.items()}
        if self.elementwise is not None:
            named |= {f"elementwise.{name}": tensor for name, tensor in self.elementwise.items()}
        statistics = ("squares", "traces", "units", "units_squared")
        return named | {name: getattr(self, name) for name in statistics}

    @property
    def num_units(self) -> float:
        """Σ n_b, over batches and passes."""
        return float(self.units.sum())

    @property
    def effective_number(self) -> float:
        """(Σ n_b)²/Σ n_b², the number of batches that would weigh as much if all were equal."""
        return self.num_units**2 / float(self.units_squared)

    def mean_(self) -> dict[str, Tensor]:
        """The pooled diagonal Σ n_b d_b / Σ n_b, in place of the totals."""
        for tensor in self.total.values():
            tensor.div_(self.num_units)
        return self.total

    def mean_variance(self, mean_square: Tensor) -> Tensor | None:
        """Variance of the pooled diagonal's entries, summed over each tensor, from the spread between batches.

        Args:
            mean_square: ‖pooled diagonal‖² of every tensor.

        Returns:
            Shape (tensors,), or None where a single batch shows no spread.
        """
        share = 1 / self.effective_number
        if share > 1 - 1e-12:
            return None
        spread = (self.squares / self.num_units - mean_square).clamp_(min=0)
        return spread * share / (1 - share)

    def elementwise_stderr_(self) -> dict[str, Tensor] | None:
        """Standard error of every entry, in place of the elementwise sums; call after :meth:`mean_`."""
        share = 1 / self.effective_number
        if self.elementwise is None:
            return None
        for name, second in self.elementwise.items():
            if share > 1 - 1e-12:
                second.fill_(torch.nan)
                continue
            for _, (moment, mean) in chunks(second, self.total[name]):
                moment.div_(self.num_units).addcmul_(mean, mean, value=-1).clamp_(min=0)
                moment.mul_(share / (1 - share)).sqrt_()
        return self.elementwise

    def _buffers(self, name: str, update: Tensor) -> tuple[Tensor, ...]:
        extra = () if self.elementwise is None else (self.elementwise[name],)
        return (dense(update), self.total[name], *extra)

    def _count(self, group: int, statistics: list[Tensor], units: float) -> bool:
        rows = torch.stack([row.double().cpu() for row in statistics])
        if self.shards is not None:
            rows = self.shards.sum_(rows)  # so that all processes find the same, an infinity too
        self.traces[group % NUM_GROUPS] += rows[:, 0]
        self.squares += rows[:, 1] / units
        self.units[group % NUM_GROUPS] += units
        self.units_squared += units**2
        return bool(rows.isfinite().all())


def zeros_like(parameter: Tensor) -> Tensor:
    """An accumulator for a parameter, or for its shard: its shape and device, at least float32, contiguous."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return torch.zeros_like(local(parameter), dtype=dtype, requires_grad=False, memory_format=torch.contiguous_format)
