"""Likelihoods whose negative logarithm is a loss of a model's outputs: their slopes, and targets drawn from them.

With z the outputs of a unit, y its target and ℓ(z, y) = -log p(y | z) up to a constant, E_ŷ ∂ℓ(z, ŷ) ∂ℓ(z, ŷ)ᵀ over
targets drawn from the model itself is ∂²ℓ/∂z²: gradients on drawn targets give the Gauss-Newton matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional

from hf_pacgen.facts import Choice

__all__ = ["Likelihood", "LikelihoodFacts"]


@dataclass(frozen=True, kw_only=True)
class LikelihoodFacts:
    """A likelihood of one unit.

    Attributes:
        loss: ℓ(z, y) of every unit; the third argument is how much of the target is spread over all classes.
        slope: ∂ℓ/∂z.
        draw: targets ŷ from the model itself.
        classes: whether a unit has a row of outputs, one for each class; else an output is a unit by itself.
        outputs, targets: their names, where a model gives several.
    """

    loss: Callable[[Tensor, Tensor, float], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]
    draw: Callable[[Tensor, Generator], Tensor]
    classes: bool
    outputs: tuple[str, ...] = ("logits",)
    targets: tuple[str, ...] = ()


def _softmax_loss(z: Tensor, y: Tensor, smoothing: float) -> Tensor:
    return functional.cross_entropy(z, y, reduction="none", label_smoothing=smoothing)


def _softmax_slope(z: Tensor, y: Tensor) -> Tensor:
    return z.softmax(-1) - functional.one_hot(y, z.shape[-1])


def _softmax_draw(z: Tensor, generator: Generator) -> Tensor:
    return torch.multinomial(z.softmax(-1), 1, generator=generator).squeeze(-1)


def _gaussian_draw(z: Tensor, generator: Generator) -> Tensor:
    # the matrix needs no more than E (z - ŷ)² = 1, and of all such residuals signs scatter its estimate least
    return z + (2.0 * torch.randint(0, 2, z.shape, generator=generator, device=z.device) - 1).to(z)


_BY_CLASS: dict[str, Any] = {"loss": _softmax_loss, "slope": _softmax_slope, "draw": _softmax_draw, "classes": True}


class Likelihood(Choice):
    """Of which likelihood a loss is the negative logarithm."""

    facts: LikelihoodFacts

    # a class for every unit, be it an example, a token or the next token
    SOFTMAX = "softmax", LikelihoodFacts(**_BY_CLASS)
    # yes or no for every output by itself: binary and multi-label cross-entropy
    BERNOULLI = (
        "bernoulli",
        LikelihoodFacts(
            loss=lambda z, y, _: functional.binary_cross_entropy_with_logits(z, y, reduction="none"),
            slope=lambda z, y: z.sigmoid() - y,
            draw=lambda z, generator: torch.bernoulli(z.sigmoid(), generator=generator),
            classes=False,
        ),
    )
    # (z - y)²/2, a Gaussian of variance 1
    GAUSSIAN = (
        "gaussian",
        LikelihoodFacts(
            loss=lambda z, y, _: (z - y).square() / 2,
            slope=lambda z, y: z - y,
            draw=_gaussian_draw,
            classes=False,
        ),
    )
    # two softmaxes over the places of a text: where an answer begins and where it ends
    SPANS = (
        "spans",
        LikelihoodFacts(
            **_BY_CLASS,
            outputs=("start_logits", "end_logits"),
            targets=("start_positions", "end_positions"),
        ),
    )
