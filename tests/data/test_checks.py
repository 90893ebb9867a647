"""What a run has checked, collected."""

from __future__ import annotations

import tiny

from hf_pacgen.data.batches import Batches
from hf_pacgen.data.objective import Objective


def test_a_sentence_is_kept_once_and_a_check_is_replaced() -> None:
    model = tiny.make("bert")
    objective = Objective(model, Batches([tiny.examples("bert", 4)], model=model))
    objective.guard.note("One thing.")
    objective.guard.note("Another.")
    objective.guard.note("One thing.")
    objective.guard.add("a product", "agrees")
    objective.guard.add("a product", "differs")
    assert objective.notes == ["One thing.", "Another."] and objective.checks == {"a product": "differs"}
