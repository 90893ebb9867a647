"""Settings: one frozen, keyword-only dataclass per concern.

Every field carries its help text (the command line shows the same words), and
every check on a value happens in ``__post_init__``, so that a settings object
that exists is a valid one.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

__all__ = ["Estimator", "HVPMethod", "ScoreConfig"]


class Estimator(str, Enum):
    """How the Hessian diagonal is estimated."""

    BLEND = "blend"
    HUTCHINSON = "hutchinson"
    GAUSS_NEWTON = "gauss_newton"
    EXACT = "exact"


class HVPMethod(str, Enum):
    """How a Hessian-vector product is computed."""

    AUTO = "auto"
    REVERSE_OVER_REVERSE = "reverse_over_reverse"
    FORWARD_OVER_REVERSE = "forward_over_reverse"
    FINITE_DIFFERENCE = "finite_difference"


E = TypeVar("E", bound=Enum)


def option(default: Any, help: str) -> Any:
    """A dataclass field with its help text (read by ``HfArgumentParser``)."""
    return field(default=default, metadata={"help": help})


def choice(kind: type[E], value: str | E, name: str) -> E:
    """Turn a string into a member of a closed choice, or say which there are."""
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(repr(member.value) for member in kind)
        raise ValueError(f"{name} must be one of {known}; got {value!r}.") from None


def inverse_temperature(value: float | str) -> float | str:
    """Check η: a positive number, or ``"n"`` for the size of the training set."""
    if isinstance(value, str) and value.strip().lower() == "n":
        return "n"
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0) or isinstance(value, bool):
        raise ValueError(f"eta must be a positive number, or 'n' for the number of training examples; got {value!r}.")
    return number


def check_number(config: object, name: str, *, minimum: float, integer: bool = False, strict: bool = False) -> None:
    """Raise unless the field ``name`` is a finite number of at least ``minimum``."""
    value = getattr(config, name)
    kind = "an integer" if integer else "a finite number"
    right_type = isinstance(value, int) if integer else isinstance(value, (int, float))
    in_range = right_type and math.isfinite(value) and (value > minimum if strict else value >= minimum)
    if isinstance(value, bool) or not in_range:
        bound = "greater than" if strict else "of at least"
        raise ValueError(f"{name} must be {kind} {bound} {minimum}; got {value!r}.")


class Config:
    """What the settings share: a plain dictionary that is stored beside results."""

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-able values."""
        values = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Any:
        """The settings from ``to_dict()``; an unknown key is an error that names it."""
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"{cls.__name__} has no setting {', '.join(map(repr, unknown))}; it has {', '.join(sorted(known))}."
            )
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Config):
    """Settings of :func:`hf_pacgen.pacgen`.

    ``gamma`` and ``epsilon`` are γ and ε of N_i = γ|w_i| + ε, ``eta`` is η of K(η)
    (Wang et al. 2018, arXiv 1809.07402).

    >>> ScoreConfig(estimator="hutchinson", passes=4).to_dict()["estimator"]
    'hutchinson'
    """

    gamma: float = option(0.1, "γ of the neighborhood N_i = γ|w_i| + ε in which the Hessian's smoothness is measured.")
    epsilon: float = option(0.1, "ε of the neighborhood N_i = γ|w_i| + ε.")
    eta: float | str = option("n", "η of K(η): a positive number, or 'n' for the size of the training set.")
    estimator: Estimator = option(
        Estimator.BLEND,
        "Estimator of the Hessian diagonal: 'blend' (Gauss-Newton corrected by Hutchinson where that is significant), "
        "'hutchinson' (unbiased, noisy), 'gauss_newton' (quiet, one gradient a batch, biased), 'exact' (small models).",
    )
    hvp: HVPMethod = option(
        HVPMethod.AUTO,
        "Hessian-vector product: 'auto' takes finite differences of gradients where weights and compute are float32 "
        "or float64, and reverse_over_reverse otherwise.",
    )
    passes: int = option(1, "Number of times the estimator goes over the data, each time with new probes.")
    lipschitz_directions: int = option(
        2, "Number of random displacements u from which ρ is estimated; 0 takes ρ from --rho instead."
    )
    lipschitz_iterations: int = option(4, "Lanczos steps for the norm of H(w+u) - H(w), for each displacement u.")
    lipschitz_batches: int = option(1, "Number of batches on which ρ is estimated.")
    rho: float = option(0.0, "ρ, the Lipschitz constant of the Hessian; used when lipschitz_directions is 0.")
    max_examples: int | None = option(
        None, "Score at most this many examples: a seeded random subset of a dataset, the first of any other data."
    )
    num_training_examples: int | None = option(
        None, "Size of the training set, for eta='n'. By default the number of examples in the data given."
    )
    standard_error: bool = option(
        False, "Keep the standard error of every entry of the Hessian diagonal (one more parameter-sized buffer)."
    )
    displacement: float | None = option(
        None,
        "Norm of the displacement ‖h z‖ of a finite difference. By default a fraction of ‖w‖ that suits the dtype.",
    )
    seed: int = option(0, "Seed of the probes, the sampled labels, the displacements u and the subset.")

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "estimator", choice(Estimator, self.estimator, "estimator"))
        set_field(self, "hvp", choice(HVPMethod, self.hvp, "hvp"))
        set_field(self, "eta", inverse_temperature(self.eta))
        for name in ("gamma", "epsilon", "rho"):
            check_number(self, name, minimum=0)
        if self.gamma == 0 and self.epsilon == 0:
            raise ValueError(
                "gamma and epsilon are both 0, so every neighborhood N_i = gamma*|w_i| + epsilon is empty; "
                "make at least one of them positive."
            )
        check_number(self, "passes", minimum=1, integer=True)
        check_number(self, "lipschitz_directions", minimum=0, integer=True)
        for name in ("lipschitz_iterations", "lipschitz_batches"):
            check_number(self, name, minimum=1, integer=True)
        for name in ("max_examples", "num_training_examples"):
            if getattr(self, name) is not None:
                check_number(self, name, minimum=1, integer=True)
        if self.displacement is not None:
            check_number(self, "displacement", minimum=0, strict=True)
        check_number(self, "seed", minimum=0, integer=True)
        if self.rho and self.lipschitz_directions:
            raise ValueError(
                f"rho={self.rho} was given together with lipschitz_directions={self.lipschitz_directions}; "
                "set lipschitz_directions=0 to use your rho, or leave rho at 0 to have it estimated."
            )
