"""A few weights, whose diagonals are kept by groups of batches: from their spread come the errors of the score.

K(η) is no linear function of the diagonal, and its terms share the noise of the probes: that is seen only by computing
it again without some of the batches, which would take a copy of the diagonal for every group.  Some weights of each
tensor are enough to see how far it moves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_pacgen.curvature.weight_space import Vector, WeightSpace
from hf_pacgen.maths.counter_rng import stream_key
from hf_pacgen.model.precision import wide

__all__ = ["NUM_REPLICATES", "Replicates", "sampled_counts"]

NUM_REPLICATES = 8
"""Groups that batches are dealt to."""
SAMPLED = 1 << 17
"""Weights that are looked at, about, over all tensors; of a smaller model all."""
FEWEST = 256
"""Weights that are looked at in a tensor that has so many."""


class Replicates:
    """Σ n_b d_b of some weights for every group of batches.

    Attributes:
        places: flat indices by parameter name, ascending.
        sums: Σ n_b d_b there, shape (groups, weights), by name.
        scales: how many weights each of them stands for, by name.
    """

    def __init__(self, space: WeightSpace) -> None:
        counts = sampled_counts([weights.numel() for weights in space.weights.values()])
        self.places: dict[str, Tensor] = {}
        self.sums: Vector = {}
        self.scales: dict[str, float] = {}
        for count, (name, weights) in zip(counts, space.weights.items(), strict=True):
            size = weights.numel()
            # one at random in each of as many equal stretches
            generator = torch.Generator().manual_seed(stream_key("sampled weights", name) & (2**63 - 1))
            shift = torch.rand(count, generator=generator, dtype=torch.float64)
            places = ((torch.arange(count) + shift) * (size / max(count, 1))).long().clamp_(max=max(size - 1, 0))
            self.places[name] = places.to(weights.device)
            self.scales[name] = size / max(count, 1)
            self.sums[name] = torch.zeros(NUM_REPLICATES, count, dtype=wide(weights), device=weights.device)

    def add(self, group: int, name: str, place: int | Tensor, part: Tensor) -> None:
        """Add a piece of n_b d_b: the elements from the flat index ``place`` on, or the rows ``place`` of a matrix."""
        wanted, into = self.places[name], self.sums[name][group % NUM_REPLICATES]
        if isinstance(place, Tensor):
            columns = part.shape[1]
            order = place.argsort()
            row = wanted // columns
            found = torch.searchsorted(place[order], row).clamp_(max=max(len(place) - 1, 0))
            here = (place[order][found] == row).nonzero().squeeze(1) if len(place) else row[:0]
            into[here] += part[order[found[here]], wanted[here] % columns]
            return
        start, stop = torch.searchsorted(wanted, torch.tensor([place, place + part.numel()], device=wanted.device))
        into[start:stop] += part.reshape(-1)[wanted[start:stop] - place]

    def weights(self, name: str, whole: Tensor) -> Tensor:
        """The weights that are looked at, of a whole tensor."""
        return whole.detach().reshape(-1)[self.places[name]]


def sampled_counts(sizes: list[int]) -> list[int]:
    """How many weights are looked at of tensors of these sizes."""
    most = max(FEWEST, _cap(sizes))
    return [min(size, most) for size in sizes]


def _cap(sizes: list[int]) -> int:
    # the largest number of weights a tensor at which all tensors together have no more than SAMPLED
    left, cap = SAMPLED, 0
    for done, size in enumerate(ordered := sorted(sizes)):
        cap = left // (len(ordered) - done)
        if size > cap:
            return cap
        left -= size
    return max(sizes, default=0)
