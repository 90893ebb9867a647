"""Which loss a model has, by its logits on whole batches: the right value, and the same in any batches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_pacgen import ScoreConfig, hessian_diagonal
from hf_pacgen.data.batches import Batches
from hf_pacgen.data.losses import LossKind
from hf_pacgen.data.objective import LossChanged, Objective
from hf_pacgen.data.recognition import CrossEntropy, logits_of
from hf_pacgen.model.state import preserved

WEIGHTS = torch.tensor([5.0, 1.0, 0.2], dtype=torch.float64)
EXACT = ScoreConfig(estimator="exact")
T = torch.tensor


class Changed(nn.Module):
    """A classifier, of tokens or of sequences, with another loss in its forward pass."""

    def __init__(self, change: str, name: str = "bert") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = tiny.bert_tokens().double().eval() if name == "tokens" else tiny.make(name)
        self.config, self.change = self.inner.config, change

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.inner(input_ids=input_ids).logits
        if labels is None:
            return SimpleNamespace(loss=None, logits=logits)
        flat, targets = logits.view(-1, 3), labels.view(-1)
        if self.change == "weights":
            loss = functional.cross_entropy(flat, targets, weight=WEIGHTS)
        elif self.change == "sum":
            loss = functional.cross_entropy(flat, targets, reduction="sum")
        elif self.change == "pairs":
            loss = functional.cross_entropy(flat, targets) + 50 * flat.var(0).sum()
        elif self.change == "margin":
            logits = logits - 2 * functional.one_hot(labels, 3)
            loss = functional.cross_entropy(logits, labels)
        elif self.change == "ignored":
            loss = functional.cross_entropy(flat, targets, ignore_index=255)
        elif self.change == "first only":  # a batch that begins with token 1 has another loss
            loss = functional.cross_entropy(flat, targets) * (1 if input_ids[0, 0] == 1 else 2)
        else:
            return functional.cross_entropy(flat, targets), logits
        return SimpleNamespace(loss=loss, logits=logits)


def inspected(model: nn.Module, batches: list[dict[str, Tensor]]) -> Objective:
    objective = Objective(model, Batches(batches, model=model))
    with preserved(model):
        objective.inspect()
    return objective


def expected(change: str, name: str, batch: dict[str, Tensor]) -> Tensor:
    """The mean loss over all labels, each with its weight."""
    model = Changed(change, name)
    logits = model(**batch).logits if change == "margin" else model(input_ids=batch["input_ids"]).logits
    weight = WEIGHTS if change == "weights" else None
    dropped = 255 if change == "ignored" else -100
    return functional.cross_entropy(logits.view(-1, 3), batch["labels"].view(-1), weight=weight, ignore_index=dropped)


@pytest.mark.parametrize(
    ("change", "name"),
    [(change, name) for change in ("weights", "sum", "tuple") for name in ("bert", "tokens")]
    + [("margin", "bert"), ("ignored", "tokens")],
)
def test_a_changed_cross_entropy_has_its_value_in_any_batches(change: str, name: str) -> None:
    batch = tiny.examples(name, 12, ignore=0.4 if change != "ignored" else 0.0)
    if change == "ignored":
        batch["labels"][1::2, 1:4] = 255
    model = Changed(change, name)
    traces = []
    # a first batch of one example has no ignored label, so nothing could be known of it: see below
    alone = () if change == "ignored" else ((1,) * 12,)
    for sizes in ((12,), (8, 4), (3, 2, 7), *alone):
        result = hessian_diagonal(model, tiny.split(batch, *sizes), config=EXACT, progress=False)
        assert result.loss == pytest.approx(expected(change, name, batch).item(), rel=1e-7)
        traces.append(result.trace)
    assert traces == pytest.approx([traces[0]] * len(traces), rel=1e-6)


@pytest.mark.parametrize("change", ["weights", "sum", "margin", "tuple"])
def test_gauss_newton_is_that_of_the_changed_loss(change: str) -> None:
    """Against Σ_i a_i J_iᵀ (diag p - p pᵀ) J_i / Σ a_i, by the Jacobian of the logits."""
    model, batch = Changed(change), tiny.examples("bert", 6)
    named = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def logits(weights: dict[str, Tensor]) -> Any:
        out = torch.func.functional_call(model, weights, kwargs=batch)
        return out[1] if isinstance(out, tuple) else out.logits

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        jacobian: Any = torch.func.jacrev(logits)(named)
    p = logits(named).softmax(-1)
    inner = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    each = WEIGHTS[batch["labels"]] if change == "weights" else torch.ones(6, dtype=torch.float64)
    inner = inner * (each / each.sum()).view(-1, 1, 1)
    flat = torch.cat([j.reshape(6, 3, -1) for j in jacobian.values()], -1)
    truth = torch.einsum("nci,ncd,ndi->i", flat, inner, flat).sum().item()
    config = ScoreConfig(estimator="gauss_newton", passes=400)
    result = hessian_diagonal(model, [batch], config=config, progress=False)
    assert result.estimator == "gauss_newton" and result.trace == pytest.approx(truth, rel=0.1)


def test_what_was_recognized_is_said() -> None:
    batches = [tiny.examples("bert", 8)]
    weighted = inspected(Changed("weights"), batches)
    assert weighted.kind is LossKind.ALIGNED and weighted.entropy is not None and weighted.entropy.weights is not None
    assert (weighted.entropy.weights / weighted.entropy.weights[1]).tolist() == pytest.approx(
        WEIGHTS.tolist(), rel=1e-5
    )
    assert "class weights" in weighted.notes[0] and "class weights" in weighted.checks["the loss of a batch"]
    added = inspected(Changed("sum"), batches)
    assert added.entropy is not None and added.entropy.adds and "is a sum over its labels" in added.notes[0]
    plain = inspected(tiny.make("bert"), batches)
    assert (
        plain.notes == []
        and plain.checks["the loss of a batch"] == "equals the cross-entropy rebuilt from the model's logits"
    )
    assert set(plain.checks) == {"the loss of a batch", "the loss twice"}


def test_terms_between_examples_leave_the_models_own_loss() -> None:
    model, batch = Changed("pairs"), tiny.examples("bert", 8)
    objective = inspected(model, [batch])
    assert objective.kind is LossKind.OTHER and objective.depends_on_batching
    assert "depends on how the data is cut into batches" in objective.notes[0]
    result = hessian_diagonal(model, [batch], config=ScoreConfig(), progress=False)
    assert result.estimator == "blend" and result.loss == pytest.approx(model(**batch).loss.item(), rel=1e-9)


def test_a_later_batch_with_another_loss_ends_gauss_newton() -> None:
    model, batch = Changed("first only"), tiny.examples("bert", 6)
    batch["input_ids"][:, 0] = T([1, 1, 1, 2, 2, 2])
    parts = tiny.split(batch, 3, 3)
    result = hessian_diagonal(model, parts, config=ScoreConfig(), progress=False)
    assert result.estimator == "blend"
    assert result.loss == pytest.approx(sum(model(**part).loss.item() for part in parts) / 2, rel=1e-9)
    objective = inspected(model, parts)
    with pytest.raises(LossChanged, match="The loss of batch 1 is not the cross-entropy on the model's logits that"):
        objective.sampled_loss(parts[1], 1, 0)
    assert (
        "The loss of batch 1 is" in objective.notes[0] and "and the cross-entropy on its logits" in objective.notes[0]
    )


def test_half_precision_is_summed_in_float32() -> None:
    """A loss of 8 bits is rebuilt from the logits, and thousands of units do not overflow in float16."""
    batch = tiny.examples("tokens", 2000)
    for dtype in (torch.bfloat16, torch.float16):
        torch.manual_seed(0)
        model = tiny.bert_tokens().to(dtype).eval()
        with torch.no_grad():
            truth = functional.cross_entropy(model(**batch).logits.float().view(-1, 3), batch["labels"].view(-1)).item()
        objective = inspected(model, [batch])
        with torch.no_grad():
            found = objective.loss(batch, 0)
        assert found.total.item() / found.units == pytest.approx(truth, rel=1e-5)


def test_parts_of_a_cross_entropy() -> None:
    weighted = CrossEntropy(LossKind.ALIGNED, weights=T([1.0, 3.0]), ignored=(7,))
    labels = T([0, 1, 1, -100, 7])
    assert weighted.units(labels) == 7 and CrossEntropy(LossKind.ALIGNED).units(labels) == 4
    assert CrossEntropy(LossKind.CAUSAL).units(T([[0, 1, -100]])) == 1
    assert CrossEntropy(LossKind.CAUSAL, prefix=1).units(T([[0, 1, -100]])) == 2
    total, units = weighted.total(torch.zeros(2, 2), T([0, 1]))
    assert units == 4 and total.item() == pytest.approx(4 * torch.log(T(2.0)).item())
    logits = torch.zeros(2, 3)
    assert logits_of((T(1.0), logits), T([0, 1])) is logits and logits_of((T(1.0),), T([0])) is None
    assert logits_of({"logits": logits}, torch.rand(2)) is None and logits_of(SimpleNamespace(), T([0])) is None


def test_an_ignored_label_that_the_first_batch_lacks_is_refused() -> None:
    batch = tiny.examples("tokens", 4, ignore=0.0)
    batch["labels"][1::2, 1:4] = 255
    with pytest.raises(ValueError, match=r"A label is 255, and the model has 3 classes\. The first batch has no such"):
        hessian_diagonal(Changed("ignored", "tokens"), tiny.split(batch, 1, 3), config=EXACT, progress=False)
