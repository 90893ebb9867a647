"""One batch that stands for all."""

from __future__ import annotations

import tiny
import torch

from hf_pacgen import ScoreConfig
from hf_pacgen.config import Estimator, HVPMethod
from hf_pacgen.curvature.pass_counts import Passes
from hf_pacgen.data.contents import batch_tensors
from hf_pacgen.measures.rehearsal import Part, Rehearsal, rehearse


def test_the_model_is_left_as_it_was_found() -> None:
    model = tiny.make("llama", dtype=torch.float32).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = tiny.split(tiny.examples("llama", 4), 2, 2)
    random = torch.get_rng_state()
    found = rehearse(model, batches, ScoreConfig(displacement=0.01), {"progress": False})
    assert model.training and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(p._backward_hooks for p in model.parameters()) and not model._forward_pre_hooks
    assert found.batch.passes == Passes(3, 3) and found.estimator is Estimator.BLEND
    assert found.method is HVPMethod.FINITE_DIFFERENCE and found.begin.passes == Passes()
    assert found.repeats(ScoreConfig(), 2) == Passes() and found.elements == sum(
        t.numel() for t in batch_tensors(batches[0])
    )


def test_seconds_grow_with_batches_and_shrink_with_processes() -> None:
    def part(forwards: int, backwards: int, seconds: float) -> Part:
        return Part(Passes(forwards, backwards), seconds)

    nothing = part(0, 0, 0.0)
    found = Rehearsal(
        checks=part(10, 4, 5.0),
        direction=part(10, 10, 8.0),
        begin=nothing,
        batch=part(3, 3, 3.0),
        end=part(0, 0, 2.0),
        estimator=Estimator.BLEND,
        method=HVPMethod.FINITE_DIFFERENCE,
        elements=1,
        low=False,
        counted=False,
        notes=(),
    )
    config = ScoreConfig()
    assert found.seconds(config, 100, processes=1, scale=1.0, fetch=0.5) == 5 + 2 + 4 * 8 + 100 * 3.5
    assert found.seconds(config, 100, processes=8, scale=1.0, fetch=0.0) == 5 + 2 + 8 + 13 * 3
    assert found.seconds(config, 100, processes=1, scale=2.0, fetch=0.0) == 5 + 2 + 2 * (4 * 8 + 100 * 3)
    # of three passes that were asked for, two have no drawn labels
    three = ScoreConfig(passes=3, lipschitz_directions=0)
    assert found.diagonal(three, 100) == Passes(300 + 400, 300 + 400)
    assert found.seconds(three, 100, processes=1, scale=1.0, fetch=0.0) == 7 + 100 * 3 + 200 * 2
    assert found.repeats(three, 100) == Passes()
    quiet = ScoreConfig(passes=3, lipschitz_directions=0)
    alone = Rehearsal(**{**vars(found), "estimator": Estimator.GAUSS_NEWTON, "batch": part(1, 1, 1.0)})
    assert alone.diagonal(quiet, 100) == Passes(300, 300)
