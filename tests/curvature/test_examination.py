"""The first batch is asked whether weights matter and derivatives are what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from kinds_of_models import KINDS
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hf_pacgen import (
    ScoreConfig,
    certify,
    expected_sharpness,
    hessian_diagonal,
    hessian_lipschitz,
    hessian_spectrum,
    hessian_vector_product,
    pacgen,
    worst_case_sharpness,
)
from hf_pacgen.config import HVPMethod
from hf_pacgen.curvature.checks import require_dependence
from hf_pacgen.curvature.examination import examine
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.data.batches import Batches
from hf_pacgen.data.objective import Objective


class Detaching(torch.autograd.Function):
    """tanh whose backward pass has no graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            return gradient * (1 - x.tanh().square())


class Once(Detaching):
    """tanh whose backward pass may not be differentiated."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return gradient * (1 - x.tanh().square())


class Reversing(torch.autograd.Function):
    """The identity, whose gradient is turned round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return -gradient


class Net(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 16, dtype=dtype), nn.Linear(16, 3, dtype=dtype)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.activation(self.first(x)))  # type: ignore[no-any-return]


def loss(model: Any, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])


def data(dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    draw = lambda: torch.randn(8, 5, generator=generator).to(dtype)  # noqa: E731
    return [(draw(), torch.randint(0, 3, (8,), generator=generator)) for _ in range(4)]


def diagonal(model: nn.Module, **settings: Any) -> Any:
    dtype = next(model.parameters()).dtype
    config = ScoreConfig(**{"estimator": "hutchinson", **settings})
    return hessian_diagonal(model, data(dtype), config=config, loss_fn=loss, progress=False)


@pytest.mark.parametrize("broken", [Detaching, Once])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_backward_pass_without_derivative_is_noticed(broken: Any, dtype: torch.dtype) -> None:
    expected = diagonal(Net(torch.tanh, dtype))
    found = diagonal(Net(broken.apply, dtype))
    assert found.trace == pytest.approx(expected.trace, rel=2e-3)
    changed = "The products are differences of gradients instead of reverse_over_reverse"
    assert any(changed in note for note in found.notes) == (dtype == torch.float64)
    for settings in ({"hvp": "reverse_over_reverse"}, {"estimator": "exact"}):
        with pytest.raises(ValueError, match="has a backward pass that autograd cannot differentiate"):
            diagonal(Net(broken.apply, dtype), **settings)
    assert hessian_lipschitz(Net(broken.apply, dtype), data(dtype), loss_fn=loss, progress=False).value > 0


def test_products_of_low_precision_that_are_nothing_are_refused() -> None:
    def low(model: Any, batch: Any) -> Any:
        return loss(model, (batch[0].to(model.first.weight.dtype), batch[1]))

    with pytest.raises(ValueError, match="float32 compute dtype"):
        pacgen(Net(lambda x: Once.apply(x), torch.bfloat16), data(), loss_fn=low, progress=False)
    found = pacgen(Net(torch.tanh, torch.bfloat16), data(), loss_fn=low, progress=False)
    assert "compute in float32" in found.checks["a product against a difference"]

    def narrow(model: Any, batch: Any) -> Any:
        return loss(model, (batch[0].bfloat16(), batch[1]))

    found = pacgen(Net(torch.tanh, torch.bfloat16), data(), loss_fn=narrow, progress=False)
    assert "not compared" in found.checks["a product against a difference"]


@pytest.mark.parametrize("reversed_", [True, False])
def test_a_gradient_that_is_not_the_losss_is_named(reversed_: bool) -> None:
    model = Net((lambda x: Reversing.apply(torch.tanh(x))) if reversed_ else torch.tanh, torch.float32)
    notes = diagonal(model).notes
    assert any("not the derivative of its loss along a random direction" in note for note in notes) == reversed_


def test_the_detached_norm_of_dora_is_named() -> None:
    model = tiny.make("llama", dtype=torch.float32)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], use_dora=True, init_lora_weights=False)
    torch.manual_seed(1)
    adapted: Any = get_peft_model(model, lora)
    config = ScoreConfig(estimator="hutchinson", lipschitz_directions=0)
    status = pacgen(adapted, [tiny.examples("llama", 8)], config=config, progress=False).status
    assert any("a detached norm as in DoRA" in said for said in status)


def test_kinks_are_left_to_reverse_over_reverse() -> None:
    model = Net(torch.relu, torch.float32)
    found, between = diagonal(model), diagonal(model, hvp="reverse_over_reverse")
    assert found.trace == between.trace and found.hvp_method is HVPMethod.REVERSE_OVER_REVERSE
    assert any("the gradient jumps at kinks" in note for note in found.notes)
    assert any("which no second derivative sees" in note for note in between.notes)
    named = diagonal(model, hvp="finite_difference")
    assert any("Use hvp='auto' for the curvature between kinks" in note for note in named.notes)


class Checkpointing(Net):
    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.first, x.requires_grad_(), use_reentrant=True)
        return self.last(torch.tanh(hidden))  # type: ignore[no-any-return]


def test_reentrant_checkpoints_of_a_models_own_are_gone_round() -> None:
    expected = diagonal(Net(torch.tanh))
    found = diagonal(Checkpointing(torch.tanh))
    assert found.trace == pytest.approx(expected.trace, rel=1e-4)
    assert found.hvp_method is HVPMethod.FINITE_DIFFERENCE and found.notes
    for settings in ({"estimator": "exact"}, {"hvp": "reverse_over_reverse"}, {"hvp": "forward_over_reverse"}):
        with pytest.raises(ValueError, match="a reentrant checkpoint"):
            diagonal(Checkpointing(torch.tanh), **settings)


class Detached(Net):
    """What it gives knows nothing of the weights."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3] + 0 * super().forward(x)


def test_every_measure_refuses_weights_that_do_nothing() -> None:
    options: Any = {"loss_fn": loss, "progress": False}
    batches, model = data(), Detached(torch.tanh)
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    calls: list[Callable[[], object]] = [
        lambda: pacgen(model, batches, **options),
        lambda: hessian_diagonal(model, batches, **options),
        lambda: hessian_lipschitz(model, batches, **options),
        lambda: hessian_spectrum(model, batches, **options),
        lambda: hessian_vector_product(model, batches, ones, **options),
        lambda: expected_sharpness(model, batches, noise_scale=0.1, **options),
        lambda: worst_case_sharpness(model, batches, **options),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="The loss does not depend on the 147 trainable weights"):
            call()
    for parameter, (_, before) in zip(model.parameters(), Detached(torch.tanh).named_parameters(), strict=True):
        assert torch.equal(parameter, before)


def test_a_certificate_of_weights_that_do_nothing_is_refused() -> None:
    model = tiny.make("bert", dtype=torch.float32)
    adapted: Any = get_peft_model(model, LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    adapted.merge_adapter()
    examples = tiny.examples("bert", 8)
    rows = [{key: value[i] for key, value in examples.items()} for i in range(8)]
    with pytest.raises(ValueError, match="The loss does not depend on the"):
        certify(adapted, rows_of(rows), prior="zero", progress=False)


class rows_of(torch.utils.data.Dataset[Any]):
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


class Idle(Net):
    def __init__(self) -> None:
        super().__init__(torch.tanh)
        self.spare = nn.Linear(2, 2)


def test_sentences_on_numbers_that_are_too_good_to_be_true() -> None:
    notes = diagonal(Idle()).notes
    assert any("does not depend on 2 of the 6 trainable tensors" in n and "'spare.weight'" in n for n in notes)

    def linear(model: Any, batch: Any) -> Any:
        return model["first"](batch[0]).sum() + 1.0, len(batch[0])

    only = nn.ModuleDict({"first": nn.Linear(5, 2, dtype=torch.float64)})
    found = pacgen(only, data(), loss_fn=linear, progress=False)
    said = " ".join(found.status)
    for sentence in ("trace is exactly 0", "standard error of the trace is 0", "ρ is exactly 0", "exactly 0 although"):
        assert sentence in said


def test_the_checks_are_few_and_in_the_result() -> None:
    calls = 0

    def counted(model: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        return loss(model, batch)

    found = pacgen(Net(torch.tanh, torch.float32), data(torch.float32), loss_fn=counted, progress=False)
    assert found.checks.keys() >= {
        "the loss twice",
        "weights that matter",
        "a product against a difference",
        "the loss's slope against the gradient",
        "the loss's second difference against the product",
        "the weights' checksum",
    }
    model = Net(torch.tanh, torch.float32)
    objective = Objective(model, Batches(data(torch.float32), model=model), loss_fn=counted)
    objective.inspect()
    calls = 0
    require_dependence(objective)
    with WeightSpace(objective) as space:
        examine(space, "auto")
    assert calls <= 8  # four of them with a gradient: 5 % of a score of 25 batches


def test_a_choice_of_experts_is_named() -> None:
    kind = KINDS["Mixtral (mixture of experts)"]
    batch = {name: torch.stack([row[name] for row in kind.rows()]) for name in kind.rows()[0]}
    config = ScoreConfig(estimator="hutchinson", lipschitz_directions=0)
    found = pacgen(kind.make(), [batch], config=config, progress=False)
    assert any("a choice of experts" in said for said in found.status)
    exactly = ScoreConfig(estimator="hutchinson", lipschitz_directions=0, hvp="reverse_over_reverse")
    between = pacgen(kind.make(), [batch], config=exactly, progress=False)
    assert found.hessian_trace == between.hessian_trace
