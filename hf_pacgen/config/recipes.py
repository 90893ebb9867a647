"""Recipes of noise: names for sets of ordinary settings, with their price, where they are from, and when they help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from hf_pacgen.facts import Choice

__all__ = ["NoiseRecipe", "RecipeFacts"]

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "shape": "pacgen",
        "direction": "random",
        "antithetic": False,
        "clean_part": 0.0,
        "consistency": 0.0,
        "target": "trained",
    }
)
"""What a recipe that says nothing of a setting has for it."""


@dataclass(frozen=True, kw_only=True)
class RecipeFacts:
    """What is known of a recipe."""

    own: Mapping[str, Any]  # settings in which it differs from DEFAULTS, and its scale
    cost: str  # of a micro-batch, in gradients
    source: str
    when: str

    @property
    def row(self) -> str:
        """What the guide says of it, without its name: settings, gradients, when to use it, source; for a table."""
        settings = ", ".join(f"`{name}={value!r}`".replace("'", '"') for name, value in self.own.items())
        return f"{settings or 'the defaults'} | {self.cost} | {self.when} | {self.source}"

    @property
    def fields(self) -> dict[str, Any]:
        """All settings that a recipe decides about."""
        return {**DEFAULTS, **self.own}


class NoiseRecipe(Choice):
    """A set of settings of :class:`hf_pacgen.NoiseConfig`, each of which can be overridden."""

    facts: RecipeFacts

    PACGEN = (
        "pacgen",
        RecipeFacts(
            own={},
            cost="1",
            source="Wang et al. 2018 (arXiv 1809.07402)",
            when="training from scratch on few examples; noise in the shape of the score",
        ),
    )
    ROWS = (
        "rows",
        RecipeFacts(
            own={"shape": "rows", "scale": "auto", "max_scale": 4.0},
            cost="1",
            source="row-scaled as in Li et al. 2024 (Flat-LoRA, arXiv 2409.14396), on the trained weights",
            when="fine-tuning for long, wrong labels, in any Trainer; from scratch with max_scale=0.6",
        ),
    )
    ASCENT = (
        "ascent",
        RecipeFacts(
            own={"shape": "isotropic", "direction": "previous", "scale": "auto", "max_scale": 0.6},
            cost="1",
            source="Becker, Altrock, Risse 2024 (Momentum-SAM, arXiv 2401.12033), with the last gradient alone",
            when="wrong labels and calibration: most of what sam brings at half its cost",
        ),
    )
    SAM = (
        "sam",
        RecipeFacts(
            own={"shape": "isotropic", "direction": "gradient", "scale": 0.15},
            cost="2",
            source="Foret et al. 2021 (SAM, arXiv 2010.01412); with shape='magnitude' ASAM (2102.11600)",
            when="wrong labels and calibration, where a step may take twice as long",
        ),
    )
    FLAT_LORA = (
        "flat-lora",
        RecipeFacts(
            own={"shape": "rows", "target": "frozen", "scale": 0.05},
            cost="1",
            source="Li et al. 2024 (Flat-LoRA, arXiv 2409.14396)",
            when="LoRA, whose few trained weights are flat by themselves; the merged model is to be flat",
        ),
    )
    TWO_POINT = (
        "two-point",
        RecipeFacts(
            own={"antithetic": True},
            cost="2",
            source="Zhang et al. 2023 (NSO, arXiv 2306.08553)",
            when="as pacgen, with less noise in the gradient, where a step may take twice as long",
        ),
    )
    MIXED = (
        "mixed",
        RecipeFacts(
            own={"shape": "rows", "clean_part": 0.5, "scale": 0.6},
            cost="2",
            source="the mean of the plain and the noisy gradient",
            when="rows is too much noise for the run, and less of it brings nothing",
        ),
    )
    CONSISTENCY = (
        "consistency",
        RecipeFacts(
            own={"shape": "rows", "antithetic": True, "consistency": 1.0, "scale": 0.6},
            cost="2 and a forward pass",
            source="Ni et al. 2024 (PACE, arXiv 2409.17137), with the two halves of an antithetic pair",
            when="few labels, where a step may take more than twice as long; models whose outputs have logits",
        ),
    )
