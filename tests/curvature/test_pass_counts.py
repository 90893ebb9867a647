"""Passes that are known beforehand."""

from __future__ import annotations

import facts_of_choices
import pytest
import torch
from torch import nn

from hf_pacgen.config import Estimator, HVPMethod, ScoreConfig
from hf_pacgen.curvature.pass_counts import (
    PassCounter,
    Passes,
    diagonal_passes,
    product_passes,
    products_of,
    rho_passes,
    sweeps_of,
    usual_checks,
)

DIFFERENCE, REVERSE = HVPMethod.FINITE_DIFFERENCE, HVPMethod.REVERSE_OVER_REVERSE


def test_passes_add_up() -> None:
    found = (Passes(1, 2) + Passes(3, 1)) * 2 - Passes(1, 1)
    assert found == Passes(7, 5) and found.cost == 17 and found.to_dict() == {"forwards": 7, "backwards": 5}


def test_the_defaults_over_a_hundred_batches() -> None:
    config = ScoreConfig()
    assert sweeps_of(config, 100) == 1 and sweeps_of(config, 3) == 3
    # a product of two gradients, and one gradient on drawn labels
    assert diagonal_passes(config, DIFFERENCE, 100, 10) == Passes(300, 300)
    # four displacements, of two gradients and two steps of two products
    assert rho_passes(config, DIFFERENCE, 100) == Passes(4 * (2 + 8), 4 * (2 + 8))
    assert products_of(config, 100, 1) == (16, 100)
    assert usual_checks(config, DIFFERENCE, low_precision=False) == Passes(10, 4)


def test_every_estimator_and_method() -> None:
    for method in HVPMethod:
        if not method.facts.chooses:
            assert product_passes(method).forwards in (1, 2)
    for estimator in Estimator:
        config = ScoreConfig(estimator=estimator, lipschitz_directions=0)
        assert diagonal_passes(config, DIFFERENCE, 2, 5).forwards >= 2
        assert rho_passes(config, DIFFERENCE, 2) == Passes()
    assert diagonal_passes(ScoreConfig(estimator="exact"), None, 2, 5) == Passes(2, 12)
    assert usual_checks(ScoreConfig(estimator="exact"), REVERSE, low_precision=False) == Passes(2 + 1 + 16, 1 + 10)
    assert rho_passes(ScoreConfig(lipschitz_batches=3), REVERSE, 2, counted=True) == Passes(4 * (4 + 2 + 8), 4 * 20)


def test_what_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LookupError, match=r"no count of passes for .*AUTO.*: a new method needs its line in PRODUCT"):
        product_passes(HVPMethod.AUTO)
    member = facts_of_choices.added(Estimator, monkeypatch, Estimator.BLEND.facts)
    with pytest.raises(ValueError, match="no count of passes for the estimator"):
        diagonal_passes(ScoreConfig(estimator=member), DIFFERENCE, 1, 1)


def test_a_counter_sees_both_ways_through_a_model() -> None:
    model, counter = nn.Linear(2, 1), None
    counter = PassCounter(model)
    with counter.watching():
        model(torch.ones(1, 2))
        gradients = torch.autograd.grad(model(torch.ones(1, 2)).square().sum(), model.weight, create_graph=True)
        gradients[0].sum().backward()
    assert counter.passes == Passes(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    assert counter.passes == Passes(2, 2)
