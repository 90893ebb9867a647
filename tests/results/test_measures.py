"""What ``compare`` says of a solution."""

from __future__ import annotations

from hf_pacgen.results.measures import MEASURES, Measures
from hf_pacgen.results.pacgen import PACGenResult
from hf_pacgen.results.relative_sharpness import RelativeSharpness


def test_what_other_results_have_too_is_called_as_there_with_its_error_beside_it() -> None:
    facts = Measures.facts()
    for name in ("score", "kl_complexity", "kl_excess", "kl_curvature", "hessian_trace", "hessian_lipschitz"):
        assert facts[name] is PACGenResult.facts()[name] and f"{name}_stderr" in facts
    assert facts["relative_sharpness"] is RelativeSharpness.facts()["relative_sharpness"]
    assert not any(facts[name].legacy for name in MEASURES)
