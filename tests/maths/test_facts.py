"""A made-up member of a closed choice needs its facts, and then everything works with it."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_pacgen import NoiseConfig, PACGenCallback, perturbed
from hf_pacgen.config import CertificateConfig, CurvatureSource, NoiseDraw, NoiseShape
from hf_pacgen.config.noise import ShapeFacts, SourceFacts
from hf_pacgen.maths.distributions import Noise, NoiseDistribution
from hf_pacgen.maths.facts import Choice
from hf_pacgen.noise.curvature_tracker import CurvatureTracker
from hf_pacgen.noise.perturbation import Perturbation
from hf_pacgen.training.callback.callback import ScoreOn

CHOICES: list[type[Choice]] = [NoiseDistribution, NoiseShape, CurvatureSource, NoiseDraw, ScoreOn]


def added(kind: type[Choice], monkeypatch: pytest.MonkeyPatch, facts: Any) -> Any:
    """A member that a choice has for the time of a test."""
    member = str.__new__(kind, "made_up")
    member._name_, member._value_, member.facts = "MADE_UP", "made_up", facts
    monkeypatch.setitem(kind._value2member_map_, "made_up", member)
    monkeypatch.setitem(kind._member_map_, "MADE_UP", member)
    monkeypatch.setattr(kind, "_member_names_", [*kind._member_names_, "MADE_UP"])
    return member


@pytest.mark.parametrize("kind", CHOICES, ids=lambda kind: kind.__name__)
def test_a_member_without_facts_is_refused_where_its_class_is_made(kind: type[Choice]) -> None:
    body = "\n".join(f"    {member.name} = {member.value!r}, None" for member in kind)
    exec(f"class Same(Choice):\n{body}", {"Choice": Choice})
    with pytest.raises(TypeError, match="Larger has a member 'made_up' without its facts: write NAME = 'made_up', fa"):
        exec(f"class Larger(Choice):\n{body}\n    MADE_UP = 'made_up'", {"Choice": Choice})


@pytest.mark.parametrize("kind", CHOICES, ids=lambda kind: kind.__name__)
def test_members_are_strings_and_survive_copies(kind: type[Choice]) -> None:
    for member in kind:
        assert member == member.value and kind(member.value) is member
        assert copy.deepcopy(member) is member and pickle.loads(pickle.dumps(member)) is member


@dataclass(frozen=True, eq=False)
class Coin(Noise):
    """u = ±σ."""

    scale: Tensor
    level_ratio, needs_box, within_level, from_words = 1.0, False, True, False

    def _from_unit(self, unit: Tensor) -> Tensor:
        return unit.sign() * self.scale.to(unit)

    def second_moment(self) -> Tensor:
        """σ²."""
        return self.scale.double().square()

    def entropy(self) -> Tensor:
        """log 2 (of a discrete distribution)."""
        return torch.full_like(self.scale.double(), 2.0).log()


def test_a_new_distribution_draws_its_own_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    member = added(NoiseDistribution, monkeypatch, Coin)
    assert NoiseConfig(distribution=member).distribution is member
    with pytest.raises(ValueError, match="epsilon is 0, so weights of 0 have no noise"):
        CertificateConfig(distribution=member, epsilon=0)
    layer = nn.Linear(3, 3)
    before = layer.weight.detach().clone()
    with perturbed(layer, 0.25, distribution="made_up", seed=0):
        torch.testing.assert_close((layer.weight - before).abs(), torch.full((3, 3), 0.25))
    noise = Perturbation({"w": torch.ones(4)}, distribution=member)
    assert noise.second_moment(torch.ones(4), torch.full((4,), 2.0)).tolist() == [4.0] * 4


def test_a_distribution_that_lacks_a_fact_is_refused_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(Noise):
        needs_box = False
        within_level = True

        def _from_unit(self, unit: Tensor) -> Tensor:
            return unit

    added(NoiseDistribution, monkeypatch, Half)
    noise = Perturbation({"w": torch.ones(4)}, distribution="made_up")
    with pytest.raises(AttributeError, match="from_words"):
        noise.draw(lambda block, weights: torch.ones_like(weights), 0)
    with pytest.raises(AttributeError, match="level_ratio"):
        CurvatureTracker(NoiseConfig(), noise, eta=1.0)
    with pytest.raises(TypeError, match="abstract"):
        Half.at_level(1.0, None)


def test_a_new_shape_has_its_own_level(monkeypatch: pytest.MonkeyPatch) -> None:
    def root(weights: Tensor, *, scale: float, gamma: float) -> Tensor:
        return weights.abs().sqrt() * scale * gamma

    member = added(NoiseShape, monkeypatch, ShapeFacts(root, 0.5, "epsilon"))
    with pytest.raises(ValueError, match=r"shape='made_up' with scale=0.5 needs epsilon of at least 0.5"):
        NoiseConfig(shape=member)
    config = NoiseConfig(shape=member, epsilon=0.5)
    noise = Perturbation({"w": torch.tensor([4.0])})
    tracker = CurvatureTracker(config, noise, eta=1.0)
    assert tracker.scale(noise.layout.blocks[0], torch.tensor([4.0])).tolist() == pytest.approx([0.1])
    assert not member.uses_curvature and not tracker.sums


@pytest.mark.parametrize("facts", [{}, {"from_products": True, "from_batches": True}])
def test_a_curvature_comes_from_one_place(facts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="A curvature comes from products, from the optimizer or from batches; got"):
        SourceFacts(every=1, **facts)


def test_a_new_source_and_a_new_draw_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    source = added(CurvatureSource, monkeypatch, SourceFacts(from_products=True, every=7))
    draw = added(NoiseDraw, monkeypatch, lambda micro_step: micro_step // 2)
    config = NoiseConfig(curvature=source, draw=draw)
    assert config.curvature_every == 7 and [config.draw.facts(i) for i in range(4)] == [0, 0, 1, 1]


def test_a_callback_scores_on_no_event_that_it_does_not_hear_of(monkeypatch: pytest.MonkeyPatch) -> None:
    added(ScoreOn, monkeypatch, "on_full_moon")
    with pytest.raises(ValueError, match="score_on='made_up' is the event on_full_moon, at which a PACGenCallback doe"):
        PACGenCallback(score={}, score_on="made_up")
