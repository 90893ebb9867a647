"""Every form of K(η) that the sweep compares, from weights, diagonals of the Hessian and ρ, in float64.

With a_i = η (H_ii/3 + ρ√m N_i/9) and a half-width N_i of the box in which ρ is measured,

    K = Σ log((|w_i| + N_i)/N_i)  +  Σ max(0, ½ log(N_i² η H_ii/3))  +  Σ [max(0, ½ log(N_i² a_i)) - the term before]
        weights                      hessian                            lipschitz

and ``kl_excess`` is the sum of the last two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import load_file

GAMMA = 0.1
ABSOLUTE = (0.1, 0.03, 0.01)
RELATIVE = (0.1, 0.3, 1.0)
"""ε as a part of the root mean square of each weight tensor."""


def absolute(epsilon: float) -> Callable[[Any], Any]:
    """N_i = γ|w_i| + ε."""
    return lambda w: GAMMA * abs(w) + epsilon


def relative(part: float) -> Callable[[Any], Any]:
    """N_i = γ|w_i| + part · (root mean square of the tensor)."""
    return lambda w: GAMMA * abs(w) + part * (w**2).mean() ** 0.5


BOXES: dict[str, Callable[[Any], Any]] = {
    **{f"{epsilon:g}": absolute(epsilon) for epsilon in ABSOLUTE},
    "0": absolute(0.0),
    **{f"{part:g} rms": relative(part) for part in RELATIVE},
}
"""Half-widths N_i of a weight tensor, by their ε."""

REPEATED = {"0.1": "max of 2", "0.3 rms": "median", "1 rms": "median"}
"""ε of the scores that are repeated with other seeds, and how ρ is made of its displacements."""
Array = numpy.ndarray[Any, Any]


@dataclass(frozen=True)
class Pieces:
    """Of one run: tensors by name, in float64."""

    weights: dict[str, Array]
    hutchinson: dict[str, Array]
    blend: dict[str, Array]
    gauss_newton: dict[str, Array]
    gradients: dict[str, Array]

    @classmethod
    def read(cls, path: Path) -> Pieces:
        """From ``pieces.safetensors``; the blend of both diagonals is made here, as the package makes it."""
        parts: dict[str, dict[str, Array]] = {key: {} for key in "whsgc"}
        for name, values in load_file(path).items():
            parts[name[0]][name[2:]] = values.astype(numpy.float64)
        blended = {}
        for name, h in parts["h"].items():
            g, variance = parts["g"][name], parts["s"][name] ** 2
            distance = ((h - g) ** 2).sum()
            share = max(0.0, 1 - variance.sum() / distance) if distance else 0.0
            blended[name] = g + share * (h - g)
        return cls(parts["w"], parts["h"], blended, parts["g"], parts["c"])


def kl_parts(weights: Array, half: Array, diagonal: Array, bend: float, eta: float) -> tuple[float, float, float]:
    """The three parts of K(η) of a tensor, in nats; ``bend`` is ρ√m.  An empty box has its limit as ε → 0."""
    inside = half > 0
    w, n, h = abs(weights[inside]), half[inside], numpy.maximum(diagonal[inside], 0.0)
    with numpy.errstate(divide="ignore"):
        hessian = numpy.maximum(0.5 * numpy.log(n**2 * eta * h / 3), 0.0)
        both = numpy.maximum(0.5 * numpy.log(n**2 * eta * (h / 3 + bend * n / 9)), 0.0)
    empty = float(numpy.log((1 + GAMMA) / GAMMA)) * int((~inside).sum())
    return float(numpy.log((w + n) / n).sum()) + empty, float(hessian.sum()), float((both - hessian).sum())


def score(weights: Array, half: Array, diagonal: Array, bend: float) -> float:
    """Ψ of a tensor, in nats."""
    inside = half > 0
    w, n, h = abs(weights[inside]), half[inside], diagonal[inside]
    root = numpy.sqrt(numpy.maximum(h + bend * n, 0.0))
    return float(numpy.log((w + n) * numpy.maximum(root, 1 / n)).sum())


def forms(pieces: Pieces, ratios: dict[str, list[float]], examples: int) -> dict[str, float]:
    """All forms by name; ``ratios`` are ‖H(w + u) - H(w)‖/‖u‖ of the displacements in a box."""
    m = sum(w.size for w in pieces.weights.values())
    found: dict[str, float] = {"m": m}
    eta = float(examples)
    for box, values in ratios.items():
        for label, rho in {"max of 2": max(values[:2]), "median": float(numpy.median(values))}.items():
            found[f"rho[{box}, {label}]"] = rho
            sums, psi = numpy.zeros(3), 0.0
            for name, w in pieces.weights.items():
                half = BOXES[box](w)
                sums += kl_parts(w, half, pieces.blend[name], rho * m**0.5, eta)
                psi += score(w, half, pieces.blend[name], rho * m**0.5)
            key = f"[{box}, {label}]"
            found[f"K/m{key}"], found[f"Psi/m{key}"] = sums.sum() / m, psi / m
            found[f"kl_excess/m{key}"] = sums[1:].sum() / m
            found[f"share of the Hessian{key}"] = sums[1] / sums[1:].sum() if sums[1:].sum() else 0.0
            found[f"weights/m[{box}]"], found[f"hessian/m[{box}]"] = sums[0] / m, sums[1] / m
    for key, diagonal in {"": pieces.blend, " of Gauss-Newton": pieces.gauss_newton}.items():
        curvature = squares = 0.0
        for name, w in pieces.weights.items():
            # N_i = γ|w_i|: neither ρ nor ε
            curvature += 0.5 * numpy.log1p(eta * numpy.maximum(diagonal[name], 0) * (GAMMA * w) ** 2 / 3).sum()
            squares += (diagonal[name] * w**2).sum()
        found[f"kl_curvature/m{key}"], found[f"sum H w^2{key}"] = curvature / m, squares
    trace = sum(h.sum() for h in pieces.hutchinson.values())
    fisher = sum(c.sum() for c in pieces.gradients.values())
    found["takeuchi[Tr C/Tr H]"] = fisher / trace
    damping = max(trace, 1e-12) / m
    found["takeuchi[sum C/(H + mean H)]"] = sum(
        float((pieces.gradients[n] / (numpy.maximum(d, 0) + damping)).sum()) for n, d in pieces.blend.items()
    )
    found["trace of Gauss-Newton"] = sum(g.sum() for g in pieces.gauss_newton.values())
    return {name: float(value) for name, value in found.items()}


def deviations(pieces: Pieces, repeated: dict[str, list[list[float]]], examples: int) -> dict[str, float]:
    """Standard deviations of scores over the seeds of ρ's displacements."""
    found = {}
    for box, rows in repeated.items():
        for form in ("K/m", "kl_excess/m"):
            name = f"{form}[{box}, {REPEATED[box]}]"
            values = [forms(pieces, {box: ratios}, examples)[name] for ratios in rows]
            found[f"deviation over seeds of {name}"] = float(numpy.std(values, ddof=1))
    return found
