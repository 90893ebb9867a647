"""Sums over batches from which a Hessian diagonal and its uncertainty are made.

Everything here is a sum, so it adds over batches, passes and processes; nothing is a mean until the last moment.  The
size does not depend on the number of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from hf_pacgen.curvature.diagonal.replicates import NUM_REPLICATES, Replicates
from hf_pacgen.curvature.displacement import Direction, Rows, chunks
from hf_pacgen.curvature.weight_space import Vector, WeightSpace
from hf_pacgen.maths.student import interval_stderr
from hf_pacgen.model.embeddings import dense, pick_rows

__all__ = ["NUM_GROUPS", "DiagonalSums", "pooled_trace"]

NUM_GROUPS = 64
"""Batches are dealt to this many groups, whose spread gives the standard error of a trace."""
SHIFT = 29
"""Groups that a pass is shifted by, or a batch would always meet the same others; few batches fill many groups."""


class DiagonalSums:
    """Weighted sums of one estimator's per-batch diagonals d_b (each a mean over the batch's n_b units).

    Attributes:
        total: Σ n_b d_b by parameter name.
        squares: Σ n_b ‖d_b‖² for every parameter tensor, shape (tensors,).
        elementwise: Σ n_b d_b² by parameter name, where standard errors of entries are wanted.
        traces: Σ n_b Σ_i d_b,i for every group of batches and tensor, shape (groups, tensors).
        units, units_squared: Σ n_b for every group, and Σ n_b².
        replicates: Σ n_b d_b of some weights, for every one of fewer groups.
        sizes: entries of every tensor, over all shards.
    """

    def __init__(self, space: WeightSpace, *, elementwise: bool = False) -> None:
        self.space, self.names = space, list(space.weights)
        self.total = space.zeros()
        self.elementwise = space.zeros() if elementwise else None
        self.squares = torch.zeros(len(self.names), dtype=torch.float64)
        self.traces = torch.zeros(NUM_GROUPS, len(self.names), dtype=torch.float64)
        self.units = torch.zeros(NUM_GROUPS, dtype=torch.float64)
        self.units_squared = torch.zeros(1, dtype=torch.float64)
        self.replicates = Replicates(space)
        counts = (p.numel() for p in space.objective.parameters.values())
        self.sizes = torch.tensor([max(1, count) for count in counts], dtype=torch.float64)

    def add_probe(self, group: int, product: Mapping[str, Tensor], probe: Direction, units: float, rows: Rows) -> bool:
        """Add n_b d_b = z ⊙ H_b z of a batch's summed loss; returns whether all numbers were finite.

        ``rows`` are the only rows of some matrices in which the product is not 0.
        """

        def along(name: str, place: int | Tensor, part: Tensor) -> Tensor:
            return part.mul_(
                probe.rows(name, place, part) if isinstance(place, Tensor) else probe.piece(name, place, part)
            )

        return self._add(group, product, units, rows, along)

    def add_gradient(self, group: int, gradient: Mapping[str, Tensor], units: float, rows: Rows) -> bool:
        """Add n_b d_b = G_b ⊙ G_b, with G_b the gradient of a batch's loss summed over sampled labels."""
        return self._add(group, gradient, units, rows, lambda name, place, part: part.square_())

    def add_diagonal(self, group: int, diagonal: Mapping[str, Tensor], units: float) -> bool:
        """Add n_b d_b, the diagonal of H_b of a batch's summed loss."""
        return self._add(group, diagonal, units, {}, lambda name, place, part: part)

    def _add(
        self,
        group: int,
        given: Mapping[str, Tensor],
        units: float,
        rows: Rows,
        made: Callable[[str, int | Tensor, Tensor], Tensor],
    ) -> bool:
        """Add what ``made`` makes of each piece, in its place."""
        found: dict[str, Tensor] = {}
        for name, place, part, total, second in self._pieces(given, rows):
            part = made(name, place, part)
            total.add_(part)
            self.replicates.add(group, name, place, part)
            if second is not None:
                second.addcmul_(part, part, value=1 / units)
            here = torch.stack([part.sum(), torch.linalg.vector_norm(part).square()])
            found[name] = found[name] + here if name in found else here
        return self._count(group, found, units)

    def _pieces(
        self, given: Mapping[str, Tensor], rows: Rows
    ) -> Iterator[tuple[str, int | Tensor, Tensor, Tensor, Tensor | None]]:
        """Name, place (a flat index, or rows), the part of what is given, and its sums, to be changed in place.

        What is given may be overwritten.
        """
        sums = [self.total] if self.elementwise is None else [self.total, self.elementwise]
        for name in self.names:
            if name in given and name in rows:
                only = rows[name]
                picked = [total[name].index_select(0, only) for total in sums]
                part = pick_rows(given[name], only).to(picked[0].dtype)
                yield name, only, part, picked[0], picked[1] if len(picked) > 1 else None
                for total, changed in zip(sums, picked, strict=True):
                    total[name].index_copy_(0, only, changed)
            elif name in given:
                for start, (part, *pieces) in chunks(dense(given[name]), *(total[name] for total in sums)):
                    part = part.to(pieces[0].dtype)
                    yield name, start, part, pieces[0], pieces[1] if len(pieces) > 1 else None

    def group(self, index: int, sweep: int) -> int:
        """The group of a batch in a pass."""
        # of a subset the choice of examples counts too: passes over one batch are no further batches
        return index if self.space.objective.batches.is_subset else index + SHIFT * sweep

    def _count(self, group: int, found: Mapping[str, Tensor], units: float) -> bool:
        nothing = torch.zeros(2, dtype=torch.float64)
        table = torch.stack([found[name].double().cpu() if name in found else nothing for name in self.names])
        table = self.space.total(table)  # so that all processes of a sharded model find the same, an infinity too
        self.traces[group % NUM_GROUPS] += table[:, 0]
        self.squares += table[:, 1] / units
        self.units[group % NUM_GROUPS] += units
        self.units_squared += units**2
        return bool(table.isfinite().all())

    def tensors(self) -> Vector:
        """All sums by name, to be reduced or saved."""
        named = {f"total.{name}": tensor for name, tensor in self.total.items()}
        if self.elementwise is not None:
            named |= {f"elementwise.{name}": tensor for name, tensor in self.elementwise.items()}
        named |= {f"sampled.{name}": tensor for name, tensor in self.replicates.sums.items()}
        statistics = ("squares", "traces", "units", "units_squared")
        return named | {name: getattr(self, name) for name in statistics}

    @property
    def num_units(self) -> float:
        """Σ n_b, over batches and passes."""
        return float(self.units.sum())

    @property
    def replicate_units(self) -> Tensor:
        """Σ n_b for every group of ``replicates``."""
        return self.units.view(-1, NUM_REPLICATES).sum(0)

    @property
    def effective_number(self) -> float:
        """(Σ n_b)²/Σ n_b², the number of batches that would weigh as much if all were equal."""
        return self.num_units**2 / float(self.units_squared)

    def mean_(self) -> Vector:
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

    def elementwise_stderr_(self) -> Vector | None:
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


def pooled_trace(sums: DiagonalSums) -> tuple[float, float | None]:
    """The trace, and its standard error from the spread between groups of batches, widened where these are few.

    Returns:
        None for the error where a single group shows no spread.
    """
    traces, total = sums.traces.sum(1), sums.num_units
    value = float(traces.sum()) / total
    occupied = sums.units > 0
    groups = int(occupied.sum())
    if groups < 2:
        return value, None
    residual = (traces[occupied] - sums.units[occupied] * value) / total
    return value, interval_stderr(float((residual.square().sum() * groups / (groups - 1)).sqrt()), groups - 1)
