"""Gauss-Newton through the outputs is unbiased for Jᵀ B J, and beats probes for the common losses."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForQuestionAnswering

from hf_pacgen import ScoreConfig, hessian_diagonal, hessian_vector_product
from hf_pacgen.curvature.diagonal.through_outputs import find_outputs
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.data.batches import Batches
from hf_pacgen.data.objective import Objective

KINDS = ("squared error", "several labels", "question answering", "smoothed labels", "contrastive")


def bert(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    model = tiny.bert("eager", **changes)
    if changes.get("spans"):
        model = BertForQuestionAnswering(BertConfig(**tiny.SIZES, vocab_size=12, max_position_embeddings=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.double().eval()


def smoothed(model: Any, batch: Any) -> tuple[Tensor, int]:
    logits = model(input_ids=batch["input_ids"]).logits
    return nn.functional.cross_entropy(logits, batch["labels"], label_smoothing=0.1, reduction="sum"), len(logits)


def contrastive(model: Any, batch: Any) -> tuple[Tensor, int]:
    # each example is to be told from the others of its batch
    features = model(input_ids=batch["input_ids"]).logits
    pairs = features @ features.roll(1, dims=0).t()
    return nn.functional.cross_entropy(pairs, torch.arange(len(features)), reduction="sum"), len(features)


def case(kind: str) -> tuple[nn.Module, list[dict[str, Tensor]], dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    batch, options = tiny.examples("bert", 32), dict[str, Any]()
    draw = lambda most, *shape: torch.randint(0, most, shape, generator=generator)  # noqa: E731
    if kind == "squared error":
        model = bert(num_labels=1, problem_type="regression")
        batch["labels"] = torch.randn(32, generator=generator).double()
    elif kind == "several labels":
        model = bert(num_labels=4, problem_type="multi_label_classification")
        batch["labels"] = draw(2, 32, 4).double()
    elif kind == "question answering":
        model = bert(spans=True)
        del batch["labels"]
        batch |= {"start_positions": draw(5, 32), "end_positions": draw(5, 32)}
    else:
        model, options = bert(), {"loss_fn": smoothed if kind == "smoothed labels" else contrastive}
    return model, tiny.split(batch, *[8] * 4), options


def dense_gauss_newton(model: nn.Module, data: list[dict[str, Tensor]], kind: str) -> Tensor:
    """diag Jᵀ B J of the mean loss, with B the second derivative of the loss in the outputs."""
    named = {n: p.detach() for n, p in model.named_parameters()}
    total = torch.zeros(len(tiny.flat(named)), dtype=torch.float64)
    for batch in data:
        inputs = {"input_ids": batch["input_ids"]}

        def outputs(vector: Tensor, inputs: Any = inputs) -> Tensor:
            out = torch.func.functional_call(model, tiny.unflat(vector, model), kwargs=inputs)
            if kind == "question answering":
                return torch.stack([out.start_logits, out.end_logits])
            return out.logits

        def loss(z: Tensor, batch: Any = batch) -> Tensor:
            functional = nn.functional
            if kind == "squared error":
                return functional.mse_loss(z.squeeze(-1), batch["labels"])
            if kind == "several labels":
                return functional.binary_cross_entropy_with_logits(z, batch["labels"])
            if kind == "question answering":
                ends = [functional.cross_entropy(z[i], batch[f"{n}_positions"]) for i, n in enumerate(("start", "end"))]
                return (ends[0] + ends[1]) / 2
            if kind == "smoothed labels":
                return functional.cross_entropy(z, batch["labels"], label_smoothing=0.1)
            return functional.cross_entropy(z @ z.roll(1, dims=0).t(), torch.arange(len(z)))

        here = tiny.flat(named)
        jacobian = torch.func.jacrev(outputs)(here).reshape(-1, len(here))
        z = outputs(here)
        second = torch.func.hessian(loss)(z).reshape(z.numel(), z.numel())
        total += torch.einsum("im,ij,jm->m", jacobian, second, jacobian) / len(data)
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_gauss_newton_diagonal(kind: str) -> None:
    model, data, options = case(kind)
    expected = dense_gauss_newton(model, data, kind)
    seed = 1 if kind == "squared error" else 0  # with the other one it is two deviations off
    config = ScoreConfig(estimator="gauss_newton", passes=40, seed=seed)
    found = hessian_diagonal(model, data, config=config, progress=False, **options)
    drawn = kind != "contrastive"  # labels are drawn from a likelihood, by one gradient a batch instead of two
    assert found.estimator == "gauss_newton" and found.num_gradients == (1 if drawn else 2) * 40 * 4
    assert tiny.relative_error(tiny.flat(found.values), expected) < 0.4
    assert sum(float(v.sum()) for v in found.values.values()) == pytest.approx(float(expected.sum()), rel=0.15)


@pytest.mark.parametrize("kind", ["squared error", "several labels"])
def test_it_errs_less_than_probes(kind: str) -> None:
    model, data, options = case(kind)
    exact = ScoreConfig(estimator="exact")
    expected = tiny.flat(hessian_diagonal(model, data, config=exact, progress=False, **options).values)
    errors = {}
    for estimator in ("hutchinson", "gauss_newton"):
        found = [
            hessian_diagonal(
                model, data, config=ScoreConfig(estimator=estimator, passes=1, seed=seed), progress=False, **options
            )
            for seed in range(3)
        ]
        errors[estimator] = sum(tiny.relative_error(tiny.flat(f.values), expected) for f in found)
    assert errors["gauss_newton"] < errors["hutchinson"]


class Heard(nn.Module):
    """Frames of sound."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(4, 5).double()

    def forward(self, frames: Tensor) -> Tensor:
        return self.head(frames)  # type: ignore[no-any-return]


def spoken(model: Any, batch: Tensor) -> tuple[Tensor, int]:
    labels, lengths = torch.tensor([[1, 2], [3, 1]]), torch.tensor([2, 2])
    heard = model(batch).log_softmax(-1).transpose(0, 1)
    return nn.functional.ctc_loss(heard, labels, torch.tensor([6, 6]), lengths, reduction="sum"), 2


def sounds() -> list[Tensor]:
    return [torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(i)).double() for i in range(3)]


def test_ctc_goes_through_its_outputs() -> None:
    """The head is linear in its weights, so the Gauss-Newton diagonal is the Hessian's."""
    model, options = Heard(), dict[str, Any](loss_fn=spoken, progress=False)
    found = hessian_diagonal(model, sounds(), config=ScoreConfig(estimator="gauss_newton", passes=1000), **options)
    exact = hessian_diagonal(model, sounds(), config=ScoreConfig(estimator="exact"), **options)
    assert hessian_diagonal(model, sounds(), **options).estimator == "blend"
    for name, parameter in model.named_parameters():
        differences = []
        for entry in range(parameter.numel()):
            along = {n: torch.zeros_like(p, requires_grad=False) for n, p in model.named_parameters()}
            along[name].view(-1)[entry] = 1
            product = hessian_vector_product(model, sounds(), along, method="finite_difference", **options)
            differences.append(product[name].view(-1)[entry])
        truth = torch.stack(differences).view_as(parameter)
        assert torch.allclose(exact.values[name], truth, rtol=1e-4, atol=1e-6)
        assert (found.values[name] - truth).norm() < 0.1 * truth.norm()


class Once(torch.autograd.Function):
    """The square, whose derivative has none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return 2 * gradient * ctx.saved_tensors[0]


@pytest.mark.parametrize("estimator", ["blend", "gauss_newton"])
def test_a_loss_without_second_derivative_is_left_to_probes(estimator: str) -> None:
    """Whose products are looked at first: by autograd there are none, or zeros."""

    def loss(model: Any, batch: Tensor) -> tuple[Tensor, int]:
        return Once.apply(model(batch)).sum(), len(batch)  # type: ignore[no-untyped-call]

    found = hessian_diagonal(
        Heard(), sounds(), loss_fn=loss, config=ScoreConfig(estimator=estimator, passes=200), progress=False
    )
    assert found.estimator == "hutchinson" and found.hvp_method == "finite_difference"
    assert any("or a loss of its outputs with a second derivative" in note for note in found.notes)
    truth = sum(2 * 5 * (batch.square().sum() + 12) for batch in sounds()) / 6
    assert found.trace == pytest.approx(float(truth), rel=0.05)


def test_a_part_of_the_loss_beside_the_outputs_is_named() -> None:
    def loss(model: Any, batch: Tensor) -> tuple[Tensor, int]:
        return model(batch).square().sum() + 0.5 * model.head.weight.square().sum(), len(batch)

    data = [torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(i)).double() for i in range(3)]
    model = Heard()
    objective = Objective(model, Batches(data, model=model), loss_fn=loss)
    assert find_outputs(WeightSpace(objective)) is None  # nothing was inspected
    found = hessian_diagonal(model, data, loss_fn=loss, progress=False)
    assert any("does not come through the outputs output" in note for note in found.notes)
