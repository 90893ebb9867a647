"""Targets drawn from a likelihood, found or named and checked; the rest of a loss by its own products."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import transformers as t
from launch import on_two_processes
from torch import Tensor, nn
from torch.nn import functional

from hf_pacgen import ScoreConfig, hessian_diagonal

WEIGHTS = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)


class Head(nn.Module):
    """A linear head, whose Gauss-Newton matrix is its Hessian."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(4, outputs).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)  # type: ignore[no-any-return]


def own(kind: str) -> Any:
    """A loss of one's own, of the sum over a batch."""

    def loss(model: Any, batch: Any) -> tuple[Tensor, int]:
        x, y = batch["x"], batch["labels"]
        z = model(x)
        if kind == "softmax":
            total = functional.cross_entropy(z, y, reduction="sum")
        elif kind == "weights":
            total = functional.cross_entropy(z, y, weight=WEIGHTS, reduction="sum")
        elif kind == "smoothed":
            total = functional.cross_entropy(z, y, label_smoothing=0.2, reduction="sum")
        elif kind == "focal":
            each = functional.cross_entropy(z, y, reduction="none")
            total = ((1 - (-each).exp()) ** 2 * each).sum()
        elif kind == "penalty":
            total = functional.cross_entropy(z, y, reduction="sum") + len(x) * model.head.weight.pow(4).sum()
        elif kind == "gaussian":
            total = 3 * (z.squeeze(-1) - y).square().sum() + 7.0
        elif kind == "huber":
            total = functional.huber_loss(z.squeeze(-1), y, reduction="sum", delta=0.3)
        elif kind == "bernoulli":
            total = functional.binary_cross_entropy_with_logits(z, y, pos_weight=WEIGHTS, reduction="sum")
        else:
            raise ValueError(kind)
        return total, len(x)

    return loss


def data(kind: str) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 4, generator=generator, dtype=torch.float64)
    labels: Tensor = torch.randint(0, 3, (32,), generator=generator)
    if kind in ("gaussian", "huber"):
        labels = torch.randn(32, generator=generator, dtype=torch.float64)
    if kind == "bernoulli":
        labels = torch.randint(0, 2, (32, 3), generator=generator).double()
    return Head(1 if kind in ("gaussian", "huber") else 3), tiny.split({"x": x, "labels": labels}, *[8] * 4)


@pytest.mark.parametrize(
    ("kind", "likelihood"),
    [
        ("softmax", "softmax"),
        ("weights", "softmax"),
        ("smoothed", "softmax"),
        ("penalty", "softmax"),
        ("gaussian", "gaussian"),
        ("bernoulli", "bernoulli"),
    ],
)
def test_the_named_likelihood_gives_the_exact_diagonal_of_a_linear_model(kind: str, likelihood: str) -> None:
    model, batches = data(kind)
    options: Any = {"loss_fn": own(kind), "progress": False}
    exact = hessian_diagonal(model, batches, config=ScoreConfig(estimator="exact"), **options)
    for named in (likelihood, None):
        config = ScoreConfig(estimator="gauss_newton", passes=150, likelihood=named)
        found = hessian_diagonal(model, batches, config=config, **options)
        assert found.estimator == "gauss_newton" and found.loss == pytest.approx(exact.loss, rel=1e-9)
        if named is not None:  # one gradient a batch, and a product for what has no likelihood
            assert found.num_gradients == 150 * 4 and found.num_hvps == (150 * 4 if kind == "penalty" else 0)
        assert tiny.relative_error(tiny.flat(found.values), tiny.flat(exact.values)) < 0.1
    assert any("does not come through the outputs" in note for note in found.notes) == (kind == "penalty")


@pytest.mark.parametrize(
    ("kind", "likelihood"),
    [("focal", "softmax"), ("huber", "gaussian"), ("softmax", "bernoulli"), ("gaussian", "spans")],
)
def test_a_likelihood_that_the_loss_has_not_is_refused(kind: str, likelihood: str) -> None:
    model, batches = data(kind)
    with pytest.raises(ValueError, match=f"likelihood='{likelihood}' is not that of the loss on the first batch"):
        hessian_diagonal(model, batches, config=ScoreConfig(likelihood=likelihood), loss_fn=own(kind), progress=False)


def test_a_later_batch_with_another_loss_is_refused_or_left() -> None:
    def changing(model: Any, batch: Any) -> tuple[Tensor, int]:
        return own("softmax" if bool(batch["labels"][0] == batches[0]["labels"][0]) else "focal")(model, batch)

    model, batches = data("softmax")
    batches[1]["labels"][0] = (batches[0]["labels"][0] + 1) % 3
    config = ScoreConfig(likelihood="softmax")
    with pytest.raises(ValueError, match="is not that of the likelihood 'softmax', which the first batch had"):
        hessian_diagonal(model, batches, config=config, loss_fn=changing, progress=False)
    found = hessian_diagonal(model, batches, loss_fn=changing, progress=False)
    assert found.estimator == "blend"


def test_the_router_of_a_mixture_of_experts_is_left_to_products() -> None:
    """On average the diagonal is that of the cross-entropy's Gauss-Newton matrix and of the rest's Hessian."""
    torch.manual_seed(0)
    sizes: Any = {"num_local_experts": 3, "num_experts_per_tok": 2, "num_key_value_heads": 2, "vocab_size": 12}
    sizes |= {"num_hidden_layers": 1, "pad_token_id": 0, "output_router_logits": True, "router_aux_loss_coef": 0.5}
    config = t.MixtralConfig(**tiny.SIZES | sizes | {"experts_implementation": "eager"})
    model: Any = t.MixtralForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    batches = tiny.split(tiny.examples("llama", 16), 8, 8)
    quiet = ScoreConfig(estimator="gauss_newton", passes=60, standard_error=True)
    found = hessian_diagonal(model, batches, config=quiet, progress=False)
    assert found.num_gradients == found.num_hvps == 2 * 60
    assert any("in the Gauss-Newton part of the diagonal it is Hutchinson's" in note for note in found.notes)
    router = next(name for name in found.values if "gate.weight" in name and "mlp" in name)

    def part(model: Any, batch: Any) -> tuple[Tensor, int]:
        out = model(**batch)
        return 0.5 * out.aux_loss * 32, 32

    def entropy(model: Any, batch: Any) -> tuple[Tensor, int]:
        logits = model(**batch).logits[:, :-1]
        return functional.cross_entropy(logits.reshape(-1, 12), batch["labels"][:, 1:].reshape(-1), reduction="sum"), 32

    rest = hessian_diagonal(model, batches, config=ScoreConfig(estimator="exact"), loss_fn=part, progress=False)
    alone = hessian_diagonal(model, batches, config=quiet, loss_fn=entropy, progress=False)
    expected = alone.values[router] + rest.values[router]
    assert rest.values[router].norm() > 0.2 * alone.values[router].norm()  # it matters there
    assert found.stderr is not None and alone.stderr is not None
    wrong = (found.values[router] - expected) / (found.stderr[router].square() + alone.stderr[router].square()).sqrt()
    assert wrong.square().mean().item() < 2.5


def _by_process(count: int, expected: float) -> None:
    torch.set_num_threads(1)
    model, batches = data("gaussian")
    config = ScoreConfig(estimator="gauss_newton", passes=4)
    found = hessian_diagonal(model, batches[:count], config=config, loss_fn=own("gaussian"), progress=False)
    if abs(found.trace - expected) > 1e-9 * expected or found.estimator != "gauss_newton":
        raise AssertionError((found.estimator, found.trace, expected))


@pytest.mark.parametrize("count", [4, 1], ids=["even", "a rank without a batch"])
def test_two_processes_draw_the_targets_of_one(count: int) -> None:
    model, batches = data("gaussian")
    config = ScoreConfig(estimator="gauss_newton", passes=4)
    alone = hessian_diagonal(model, batches[:count], config=config, loss_fn=own("gaussian"), progress=False)
    on_two_processes(_by_process, count, alone.trace)
