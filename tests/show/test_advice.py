"""One consistent next step under a table."""

from __future__ import annotations

from hf_pacgen.show.advice import consistent

SATURATED = "It is saturated: 99.9 % of it is the size of the weights. Raise eta, gamma or epsilon to see it."
OUTWEIGHED = "ρ outweighs the rest. More lipschitz_batches make it steadier; a smaller epsilon weighs it less."


def test_the_earlier_advice_stands_and_what_was_found_stays() -> None:
    assert consistent([SATURATED, OUTWEIGHED]) == [
        SATURATED,
        "ρ outweighs the rest. More lipschitz_batches make it steadier.",
    ]
    assert consistent([OUTWEIGHED, SATURATED]) == [
        OUTWEIGHED,
        "It is saturated: 99.9 % of it is the size of the weights.",
    ]
    flags = "Use fewer --max-examples.", "Noisy. Use more draws or more --max-examples."
    assert consistent(flags) == [flags[0], "Noisy."]


def test_advice_that_agrees_is_left_as_it_is() -> None:
    notes = [SATURATED, SATURATED, "Use more passes or more data.", "Errors are unknown. Use smaller batches."]
    assert consistent(notes) == notes and consistent([]) == []
    # numbers with points, and abbreviations, are not taken apart
    odd = "The trace is 0.7947 ± 0.4 of 3.5; see e.g. the guide"
    assert consistent([odd]) == [odd]
