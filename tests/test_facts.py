"""A member of a closed choice without its facts is refused, and with them everything works with it."""

from __future__ import annotations

import copy
import importlib
import json
import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import tiny
import torch
from facts_of_choices import added
from torch import Tensor, nn

from hf_pacgen import NoiseConfig, PACGenCallback, hessian_vector_product, perturbed
from hf_pacgen.command_line.inputs.tasks import Task, trained_task
from hf_pacgen.config import (
    CertificateConfig,
    CurvatureSource,
    Estimator,
    HVPMethod,
    Likelihood,
    NoiseDirection,
    NoiseDraw,
    NoiseRecipe,
    NoiseShape,
    NoiseTarget,
    PriorGroups,
    SpectrumEnd,
)
from hf_pacgen.config.noise import DirectionFacts, ShapeFacts, SourceFacts
from hf_pacgen.config.score import HVPFacts
from hf_pacgen.curvature.hvp import choose_method
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.data.likelihoods import readings
from hf_pacgen.data.losses import LossKind, scored_units
from hf_pacgen.facts import Choice
from hf_pacgen.maths.bounded_losses import Answers, PromisedLoss
from hf_pacgen.maths.certified_bound import Bound, certified_bound
from hf_pacgen.maths.distributions import Noise, NoiseDistribution
from hf_pacgen.maths.score import EpsilonScale, half_width
from hf_pacgen.noise.curvature_tracker import CurvatureTracker
from hf_pacgen.noise.directions import Held
from hf_pacgen.noise.perturbation import Perturbation
from hf_pacgen.promises.how import How, train_and_promise
from hf_pacgen.promises.losses import Form, losses_of
from hf_pacgen.training.callback.callback import ScoreOn

CHOICES: list[type[Choice]] = [
    Bound,
    CurvatureSource,
    EpsilonScale,
    Estimator,
    Form,
    Held,
    How,
    HVPMethod,
    Likelihood,
    LossKind,
    NoiseDirection,
    NoiseDistribution,
    NoiseDraw,
    NoiseRecipe,
    NoiseShape,
    NoiseTarget,
    PriorGroups,
    PromisedLoss,
    ScoreOn,
    SpectrumEnd,
    Task,
]


def subclasses(kind: type[Choice]) -> set[type[Choice]]:
    made = {kind for kind in kind.__subclasses__() if kind.__module__.startswith("hf_pacgen")}
    return {kind for kind in made if not kind.__module__.endswith("_changed")}  # left by the test below


@pytest.mark.parametrize("kind", CHOICES, ids=lambda kind: kind.__name__)
def test_a_member_without_facts_is_refused_at_import(kind: type[Choice], monkeypatch: pytest.MonkeyPatch) -> None:
    """The module's own text, with one more member."""
    module = importlib.import_module(kind.__module__)
    text = Path(str(module.__file__)).read_text(encoding="utf-8")
    first = re.search(rf"class {kind.__name__}\(Choice\):\n(.|\n)*?(?=    [A-Z_]+ = )", text)
    assert first is not None
    text = text.replace(first[0], f'{first[0]}    MADE_UP = "made_up"\n')
    changed = ModuleType(f"{kind.__module__}_changed")
    monkeypatch.setitem(sys.modules, changed.__name__, changed)  # dataclasses look their module up
    with pytest.raises(
        TypeError, match=f"{kind.__name__} has a member 'made_up' without its facts: write NAME = 'made_up', facts"
    ):
        exec(compile(text, str(module.__file__), "exec"), vars(changed))


ANSWERS = Answers(logits=torch.zeros(2, 1, 2), labels=torch.zeros(2, 1).long(), counted=torch.ones(2, 1).bool())
USES: dict[type[Choice], Callable[[Any], Any]] = {
    Bound: lambda bound: certified_bound(0.1, 1.0, 100, delta=0.05, bound=bound),
    CurvatureSource: lambda source: NoiseConfig(curvature=source),
    EpsilonScale: lambda scale: half_width(0.1, scale, 1.0),
    Form: lambda form: losses_of(ANSWERS, PromisedLoss.ZERO_ONE, form),
    Estimator: lambda estimator: estimator.facts.needs_labels,
    Held: lambda held: held.facts,
    How: lambda how: train_and_promise(
        nn.Linear(1, 1), torch.utils.data.TensorDataset(torch.ones(4, 1)), print, how=how
    ),
    HVPMethod: lambda method: choose_method(cast(WeightSpace, None), method),
    Likelihood: lambda likelihood: next(readings(likelihood, (), causal=False)),
    LossKind: lambda kind: scored_units(torch.zeros(2, 2), torch.zeros(2).long(), kind),
    NoiseDistribution: lambda distribution: NoiseConfig(distribution=distribution),
    NoiseDirection: lambda direction: NoiseConfig(direction=direction),
    NoiseDraw: lambda draw: draw.facts(0),
    NoiseRecipe: lambda recipe: NoiseConfig(recipe=recipe),
    NoiseShape: lambda shape: NoiseConfig(shape=shape),
    NoiseTarget: lambda target: NoiseConfig(target=target),
    PromisedLoss: lambda loss: losses_of(ANSWERS, loss, Form.CLASS),
    PriorGroups: lambda groups: groups.facts("layer.weight"),
    ScoreOn: lambda event: PACGenCallback(score={}, score_on=event),
    SpectrumEnd: lambda end: end.facts(1.0),
    Task: lambda task: trained_task(nn.Identity()),
}


@pytest.mark.parametrize("kind", CHOICES, ids=lambda kind: kind.__name__)
def test_a_member_without_facts_raises_where_it_is_used(kind: type[Choice], monkeypatch: pytest.MonkeyPatch) -> None:
    member = added(kind, monkeypatch)
    with pytest.raises(AttributeError, match=f"'{kind.__name__}' object has no attribute 'facts'"):
        USES[kind](member)


@pytest.mark.parametrize("kind", CHOICES, ids=lambda kind: kind.__name__)
def test_members_are_strings_and_survive_copies(kind: type[Choice]) -> None:
    for member in kind:
        assert member == member.value and kind(member.value) is member and kind(member) is member
        assert json.dumps(member) == json.dumps(member.value) and "".join([member]) == member.value
        assert copy.copy(member) is copy.deepcopy(member) is member and pickle.loads(pickle.dumps(member)) is member


@pytest.mark.parametrize("kind", CHOICES, ids=lambda kind: kind.__name__)
def test_a_value_that_no_member_has_is_refused_with_those_there_are(kind: type[Choice]) -> None:
    with pytest.raises(ValueError, match=rf"[a-z]+ must be one of '{re.escape(next(iter(kind)).value)}'.*; got 'x'"):
        kind("x")


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


@pytest.mark.parametrize("facts", [{}, {"by_chance": True, "from_last_step": True}])
def test_a_direction_comes_from_one_place(facts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="A direction is by chance, from the last step or from the own gradient; got"):
        DirectionFacts(**facts)


def test_a_new_source_and_a_new_draw_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    source = added(CurvatureSource, monkeypatch, SourceFacts(from_products=True, every=7))
    draw = added(NoiseDraw, monkeypatch, lambda micro_step: micro_step // 2)
    config = NoiseConfig(curvature=source, draw=draw)
    assert config.curvature_every == 7 and [config.draw.facts(i) for i in range(4)] == [0, 0, 1, 1]


def test_a_callback_scores_on_no_event_that_it_does_not_hear_of(monkeypatch: pytest.MonkeyPatch) -> None:
    added(ScoreOn, monkeypatch, "on_full_moon")
    with pytest.raises(ValueError, match="score_on='made_up' is the event on_full_moon, at which a PACGenCallback doe"):
        PACGenCallback(score={}, score_on="made_up")


def test_a_new_product_needs_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    member = added(HVPMethod, monkeypatch, HVPFacts(passes_checkpoints=True))
    model = tiny.make("bert")
    vector = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    with pytest.raises(LookupError, match=r"no product by .*MADE_UP.*: a new method needs its function in PRODUCTS"):
        hessian_vector_product(model, [tiny.examples("bert", 2)], vector, method=member)


def test_labels_that_lie_otherwise_are_paired_by_their_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = added(LossKind, monkeypatch, 2)
    scored = scored_units(torch.arange(8.0).view(1, 4, 2), torch.tensor([[7, 7, -100, 1]]), kind)
    assert scored is not None and scored[0].tolist() == [[2.0, 3.0]] and scored[1].tolist() == [1]
