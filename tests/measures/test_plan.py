"""What a plan says, against scores that are run: passes exactly, memory within 15 %."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import GPT2Config, GPT2LMHeadModel

from hf_pacgen import Plan, ScoreConfig, pacgen, plan
from hf_pacgen.distributed import shards

# a displacement that is given is not controlled, so that no step of ρ is repeated
SETTINGS: list[dict[str, Any]] = [
    {"displacement": 0.01},
    {"estimator": "hutchinson", "displacement": 0.01, "passes": 2, "lipschitz_iterations": 1, "lipschitz_batches": 2},
    {"estimator": "gauss_newton", "lipschitz_directions": 0},
    {"estimator": "gauss_newton", "hvp": "reverse_over_reverse", "passes": 3, "lipschitz_directions": 1},
    {"hvp": "reverse_over_reverse", "passes": 2, "max_examples": 4},
    {"estimator": "hutchinson", "hvp": "forward_over_reverse", "lipschitz_directions": 0, "standard_error": True},
]
NAMES = ["-".join(str(value) for value in one.values()) for one in SETTINGS]


class Counted:
    """Passes of a model as its first call and its last weight see them."""

    def __init__(self, model: nn.Module) -> None:
        self.forwards = self.backwards = 0
        model.register_forward_hook(self._forward)
        [*_, last] = model.parameters()
        last.register_hook(self._backward)

    def _forward(self, *args: Any) -> None:
        self.forwards += 1

    def _backward(self, gradient: Tensor) -> None:
        self.backwards += 1


def data(name: str = "llama") -> list[dict[str, Tensor]]:
    return tiny.split(tiny.examples(name, 6, dtype=torch.float32), 2, 2, 2)


def allocated(work: Callable[[], Any]) -> int:
    """The most bytes that some work holds beside what was there, as the allocator sees it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    live = most = 0
    kineto: Any = profiler.profiler
    events = [e for e in kineto.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
def test_passes_are_those_of_the_score(settings: dict[str, Any]) -> None:
    config, model = ScoreConfig(**settings), tiny.make("llama", dtype=torch.float32)
    made = plan(model, data(), config=config, progress=False)
    usual = plan(model, data(), config=config, progress=False, timed=False)
    counted = Counted(model)
    result = pacgen(model, data(), config=config, progress=False)
    backwards = counted.backwards
    if settings.get("hvp") == "forward_over_reverse":  # goes through other tensors than the weights
        backwards += made.num_hvps + 1
    assert (made.forwards, made.backwards) == (counted.forwards, backwards)
    # what is known without a batch is the same
    assert usual.passes == made.passes and usual.seconds is None and made.seconds is not None
    assert (made.num_hvps, made.hvp_method, made.estimator) == (result.num_hvps, result.hvp_method, result.estimator)
    assert made.num_examples == result.num_examples and made.sweeps == max(1, made.sweeps)


def test_passes_of_the_exact_diagonal() -> None:
    model, batches = tiny.make("bert", dtype=torch.float32), data("bert")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    config = ScoreConfig(estimator="exact", lipschitz_directions=0)
    made = plan(model, batches, config=config, progress=False)
    counted = Counted(model)
    result = pacgen(model, batches, config=config, progress=False)
    assert made.forwards == counted.forwards and made.passes["diagonal"]["forwards"] == 3
    # the rows of the bias are among those of all weights, which a plan counts
    assert made.passes["diagonal"]["backwards"] == result.num_hvps + 3


def test_a_loss_without_labels_is_counted_as_it_is_estimated() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))

    def squares(model: nn.Module, batch: Any) -> tuple[Tensor, float]:
        return (model(batch[0]) - batch[1]).square().sum(), float(len(batch[0]))

    batches = [(torch.randn(5, 4), torch.randn(5, 1)) for _ in range(4)]
    config = ScoreConfig(displacement=0.01)
    made = plan(model, batches, config=config, loss_fn=squares, progress=False)
    counted = Counted(model)
    pacgen(model, batches, config=config, loss_fn=squares, progress=False)
    assert (made.forwards, made.backwards) == (counted.forwards, counted.backwards)


def middling(dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[nn.Module, list[dict[str, Tensor]]]:
    sizes: dict[str, Any] = {"vocab_size": 256, "n_embd": 96, "n_layer": 2, "n_head": 2, "n_positions": 32}
    torch.manual_seed(0)
    with torch.device(device):
        model: nn.Module = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    tokens = torch.randint(256, (2, 2, 16))
    return model.to(dtype).eval(), [{"input_ids": part, "labels": part} for part in tokens]


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        (torch.float32, {"displacement": 0.01}),
        (torch.float32, {"estimator": "hutchinson", "standard_error": True, "lipschitz_directions": 0}),
        (torch.float32, {"estimator": "gauss_newton", "lipschitz_directions": 0}),
        (torch.bfloat16, {"lipschitz_directions": 1}),
    ],
)
def test_memory_is_what_the_allocator_gives(dtype: torch.dtype, settings: dict[str, Any]) -> None:
    model, batches = middling(dtype)
    config = ScoreConfig(**settings, passes=1)
    made = plan(model, batches, config=config, progress=False, timed=False)
    peak = allocated(lambda: pacgen(model, batches, config=config, progress=False)) + made.parameter_bytes
    assert made.layout()["peak_bytes"] == pytest.approx(peak, rel=0.15)


def test_a_model_on_the_meta_device_has_no_time() -> None:
    model, batches = middling()
    bare, _ = middling(device="meta")
    made, other = (plan(m, batches, progress=False, timed=False, processes=[1, 4]) for m in (model, bare))
    assert other.seconds is None and "so there is no time" in other.status[0]
    assert other.layouts == made.layouts and other.passes == made.passes and other.flops == made.flops
    assert Plan.from_dict(other.to_dict()) == other


def test_flops_of_matrix_products() -> None:
    layer = nn.Linear(8, 4, bias=False)

    def loss(model: nn.Module, batch: Tensor) -> tuple[Tensor, float]:
        return model(batch).square().sum(), float(len(batch))

    config = ScoreConfig(estimator="hutchinson", passes=1, lipschitz_directions=0)
    made = plan(layer, [torch.randn(5, 8)], config=config, loss_fn=loss, progress=False, timed=False)
    # the input has no gradient, so a backward pass is one product of matrices too
    assert made.flops == (made.forwards + made.backwards) * 2 * 5 * 8 * 4


def test_processes_share_passes_and_shards_share_weights() -> None:
    model, batches = middling()
    made = plan(model, batches * 4, progress=False, timed=False, processes=[1, 2, 8])
    one, two, eight = (made.layout(p) for p in (1, 2, 8))
    assert one["wire_bytes"] == 0 and two["wire_bytes"] < eight["wire_bytes"] < 2 * two["wire_bytes"]
    diagonal, rho = made.passes["diagonal"]["backwards"], made.passes["rho"]["backwards"]
    assert two["backwards"] == made.passes["checks"]["backwards"] + (diagonal + rho) // 2
    shared = made.layout(8, "sharded")
    assert shared["backwards"] == made.backwards and shared["peak_bytes"] < eight["peak_bytes"]
    with pytest.raises(KeyError, match="no layout of 3 processes with weights 'copied': expected one of 1 copied, 2 c"):
        made.layout(3)


def test_shards_of_low_precision_are_refused_as_the_score_would() -> None:
    model, batches = middling(torch.bfloat16)
    made = plan(model, batches, progress=False, timed=False, processes=2)
    assert "has no second derivatives" in made.layout(2, "sharded")["refused"]
    quiet = ScoreConfig(estimator="gauss_newton", lipschitz_directions=0)
    made = plan(model, batches, config=quiet, progress=False, timed=False, processes=2)
    assert made.layout(2, "sharded")["peak_bytes"] < made.layout(2)["peak_bytes"]
    exact = ScoreConfig(estimator="exact", lipschitz_directions=0)
    few = nn.Linear(3, 2)
    found = plan(few, [torch.ones(2, 3)], config=exact, loss_fn=_sum, processes=2, progress=False, timed=False)
    assert "needs second derivatives, which a sharded model" in found.layout(2, "sharded")["refused"]


def _sum(model: nn.Module, batch: Tensor) -> tuple[Tensor, float]:
    return model(batch).square().sum(), float(len(batch))


def test_a_model_that_looks_at_its_elements_has_no_memory() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(inputs) if float(inputs.sum()) > 0 else self.layer(-inputs)

    made = plan(Looks(), [torch.ones(2, 3)], loss_fn=_sum, progress=False, config=ScoreConfig(passes=1))
    assert made.layout()["peak_bytes"] is None and made.flops is None and made.seconds is not None
    assert any("cannot be gone through on tensors without elements" in note for note in made.status)


def test_no_batch_is_timed_where_memory_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = middling()
    monkeypatch.setattr("hf_pacgen.measures.plan._room", lambda device: 1_000_000)
    made = plan(model, batches, progress=False)
    assert made.seconds is None and any("0.0 GB of memory for the" in note for note in made.status)


def test_out_of_memory_leaves_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr("hf_pacgen.measures.plan.rehearse", fail)
    made = plan(tiny.make("llama", dtype=torch.float32), data(), progress=False)
    assert made.seconds is None and any("ran out of memory in the batch" in note for note in made.status)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = tiny.make("llama", dtype=torch.float32), data()
    with pytest.raises(ValueError, match="The data is empty"):
        plan(model, [], progress=False)
    with pytest.raises(ValueError, match="processes must be an integer of at least 1"):
        plan(model, batches, processes=[1, 0], progress=False)
    with pytest.raises(ValueError, match="takes at most 20000 trainable parameters, and the model has"):
        plan(middling()[0], batches, config=ScoreConfig(estimator="exact"), progress=False)

    class Several:
        num_processes, process_index, device = 2, 0, torch.device("cpu")

    inner: Any = plan
    with pytest.raises(ValueError, match=r"plan\(\) was called with an accelerator of 2 processes: expected one"):
        inner.__wrapped__(model, batches, accelerator=Several())
    monkeypatch.setattr("hf_pacgen.measures.plan.is_sharded", lambda weight: True)
    with pytest.raises(ValueError, match="sharded by fully_shard already: expected a whole one"):
        plan(model, batches, progress=False)
    assert not shards.is_sharded(next(model.parameters()))
