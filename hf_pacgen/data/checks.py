"""What a run has checked on its first batches, and what a person should know of it."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Checks"]


@dataclass
class Checks:
    """Collected by the objective of one run, from whoever looks at it: its data, its loss, its weights, its products.

    Attributes:
        found: what each check found, in a sentence or a number in words, by the name of the check.
        notes: sentences on what limits the numbers, or was taken for granted; each once, in the order found.
    """

    found: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, sentence: str) -> None:
        """What a check found; the same check again replaces it."""
        self.found[name] = sentence

    def note(self, sentence: str) -> None:
        """A sentence for the result's ``notes``."""
        if sentence not in self.notes:
            self.notes.append(sentence)
