"""Pictures of the score: its modules, and the Hessian diagonal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_pacgen.results.diagonal import DiagonalEstimate
from hf_pacgen.results.pacgen import PARTS, PACGenResult
from hf_pacgen.show.plots.style import BLUE, GRAY, ORANGE, compact, finish, new_axes
from hf_pacgen.show.wording import number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_LABEL = 44  # characters of a module's name
CHUNK = 1 << 22


def plot_by_module(
    result: PACGenResult, *, top_modules: int = 12, per_parameter: bool = True, ax: Axes | None = None
) -> Axes:
    """Horizontal bars of K(η), in nats, of the modules with the largest share of it, stacked from its three parts.

    What the other modules have together is the last bar.

    Args:
        result: of :func:`hf_pacgen.pacgen`.
        top_modules: how many modules have bars of their own, at least 1.
        per_parameter: over the number of parameters of each module, so that its size does not rule the picture; False
            for bars that add up to K(η).

    Raises:
        ValueError: ``top_modules`` is not positive, or the result has no modules.
    """
    if top_modules < 1:
        raise ValueError(f"top_modules must be at least 1; got {top_modules}.")
    if not result.by_module:
        raise ValueError("The result lists no modules: expected one that pacgen() returned. Score the model again.")
    known = all(f"kl_{part}" in module for part in PARTS for module in result.by_module.values())
    # release 0.1 did not write the parts
    parts = {f"kl_{part}": says for part, says in PARTS.items()} if known else {"kl_complexity": "K(η), in one"}
    names, rows = zip(*_ranked(result, list(parts), top_modules, per_parameter), strict=True)
    ax = ax or new_axes(1.5 + 0.3 * len(names))
    complexity, places = result.facts()["kl_complexity"], range(len(names))
    left = [0.0] * len(names)
    for index, (says, color) in enumerate(zip(parts.values(), (GRAY, BLUE, ORANGE), strict=False)):
        widths = [row[index] for row in rows]
        ax.barh(places, widths, left=left, height=0.62, color=color, label=says)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, total in zip(places, left, strict=True):
        ax.text(total, place, f" {compact(total)}", va="center", fontsize=8, color="#333333")
    ax.set_xlim(0, 1.14 * max(left) or 1.0)  # leaves room for the numbers beside the bars
    ax.set_yticks(places, [_shorten(name) for name in names], fontsize=8.5)
    ax.set_ylim(len(names) - 0.4, -0.6)  # the largest on top
    finish(
        ax,
        f"What K(η) at η = {number(result.eta)} is made of, by module",
        x=f"{complexity.unit}{' per parameter' * per_parameter} ({complexity.better} is better)",
        grid="x",
    )
    return ax


def _ranked(
    result: PACGenResult, parts: list[str], count: int, per_parameter: bool
) -> Iterator[tuple[str, tuple[float, ...]]]:
    def widths(modules: list[dict[str, float]]) -> tuple[float, ...]:
        by = sum(module["num_parameters"] for module in modules) if per_parameter else 1
        # what ρ adds can come out at -0.000...1
        return tuple(max(0.0, sum(m[part] for m in modules) / by) for part in parts)

    ranked, rest = result.ranked_modules(count)
    for name, values in ranked:
        yield name, widths([values])
    if rest:
        yield f"{len(rest)} other module{'s' if len(rest) > 1 else ''}", widths(rest)


def plot_hessian_diagonal(
    diagonal: DiagonalEstimate | Tensor | Mapping[str, Tensor], *, bins: int = 60, ax: Axes | None = None
) -> Axes:
    """Histogram of |H_ii| on a logarithmic axis, positive and negative curvature apart.

    Curvatures span many powers of ten, so bins are equally wide in log10 |H_ii|; entries that are exactly 0 have no
    place there and are counted in the title.

    Args:
        diagonal: of :func:`hf_pacgen.hessian_diagonal`, or tensors.
        bins: number of bins.

    Raises:
        ValueError: ``bins`` is not positive, there are no entries, or one is not finite.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1; got {bins}.")
    values = diagonal.values if isinstance(diagonal, DiagonalEstimate) else diagonal
    tensors = [values] if isinstance(values, Tensor) else list(values.values())
    low, high, zeros, counts = _log_histogram(tensors, bins)
    ax = ax or new_axes(4.2)
    edges = [10 ** (low + (high - low) * i / bins) for i in range(bins + 1)]
    total = sum(tensor.numel() for tensor in tensors)
    for name, sign, color, filled in (("positive", 1, BLUE, True), ("negative", -1, ORANGE, False)):
        heights = counts[sign]
        label = f"{name} curvature: {_share(int(heights.sum()), total)}"
        # the negative as an outline, so that it is seen in front of the positive
        ax.stairs(heights.tolist(), edges, fill=filled, color=color, alpha=0.75 if filled else 1, lw=1.6, label=label)
    trace = sum(tensor.sum(dtype=torch.float64).item() for tensor in tensors)
    undrawn = f"; {_share(zeros, total)} are exactly 0 and not drawn" if zeros else ""
    ax.set_xscale("log")
    finish(
        ax,
        f"Hessian diagonal of {total:,} weights\ntrace {number(trace)}{undrawn}",
        x="|$H_{ii}$|, absolute curvature of the training loss along a weight",
        y="weights in a bin",
    )
    return ax


def _log_histogram(tensors: list[Tensor], bins: int) -> tuple[float, float, int, dict[int, Tensor]]:
    # range of log10 |H_ii|, the number of zeros, and those of the entries in the range's bins by their sign
    low, high, zeros, total = math.inf, -math.inf, 0, 0
    for part in _parts(tensors):
        if not bool(part.isfinite().all()):
            raise ValueError(
                "The Hessian diagonal contains NaN or infinity: expected finite numbers. Estimate it again."
            )
        size = part.abs()[part != 0]
        # log10 of these is no number; the title counts them
        zeros, total = zeros + part.numel() - size.numel(), total + part.numel()
        if size.numel():
            low, high = min(low, size.min().log10().item()), max(high, size.max().log10().item())
    if total == 0:
        raise ValueError("The Hessian diagonal has no entries: expected at least one tensor with numbers.")
    if zeros == total:
        low, high = -1.0, 1.0
    if high - low < 1e-3:  # a single value is a bar of visible width
        low, high = low - 0.5, high + 0.5
    counts = {sign: torch.zeros(bins, dtype=torch.float64) for sign in (1, -1)}
    for part in _parts(tensors):  # a second time over the data is cheaper than a copy of its logarithms
        for sign, count in counts.items():
            exponents = (part[part.sign() == sign]).abs().log10_().clamp_(low, high)
            count += torch.histc(exponents, bins=bins, min=low, max=high)
    return low, high, zeros, counts


def _parts(tensors: list[Tensor]) -> Iterator[Tensor]:
    # a few million entries at a time, in float64, so that a large model costs no second copy
    for tensor in tensors:
        for part in tensor.detach().reshape(-1).split(CHUNK):
            yield part.double().cpu()


def _share(count: int, total: int) -> str:
    return f"{count:,} ({percent(count / total)})"


def _shorten(name: str) -> str:
    return name if len(name) <= MAX_LABEL else "..." + name[3 - MAX_LABEL :]  # the last parts tell modules apart
