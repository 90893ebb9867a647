"""Settings of a spectrum: what they refuse, and which eigenvalues are at which end."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_pacgen.config import SpectrumConfig, SpectrumEnd


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"which": "middle"}, "which must be one of 'largest', 'smallest', 'magnitude'; got 'middle'"),
        ({"hvp": "guess"}, "hvp must be one of 'auto'"),
        ({"iterations": 0}, "iterations must be an integer of at least 1; got 0"),
        ({"tolerance": 0}, "tolerance must be a finite number greater than 0; got 0"),
        ({"probes": -1}, "probes must be an integer of at least 0; got -1"),
        ({"keep_vectors": 1}, "keep_vectors must be True or False; got 1"),
        ({"displacement": 0}, "displacement must be a finite number greater than 0; got 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SpectrumConfig(**settings)


def test_the_best_of_each_end() -> None:
    values = torch.tensor([-3.0, 1.0, 2.0])
    best = {end: values[end.facts(values).argmax()].item() for end in SpectrumEnd}
    assert best == {SpectrumEnd.LARGEST: 2.0, SpectrumEnd.SMALLEST: -3.0, SpectrumEnd.MAGNITUDE: -3.0}
