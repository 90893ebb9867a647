"""Every kind of model: a score, a callback's and the PACGenTrainer's equal their oracle, or say why not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import training_runs as runs
from kinds_of_models import COUNT, KINDS, Kind, table
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer

from hf_pacgen import PACGenCallback, PACGenTrainer, ScoreConfig, hessian_vector_product, pacgen
from hf_pacgen.data.batches import Batches
from hf_pacgen.data.collation import collate
from hf_pacgen.data.objective import Objective
from hf_pacgen.model.state import preserved, unwrap, without_generation_caches

SCORE = ScoreConfig(estimator="hutchinson", lipschitz_directions=0)


class Examples(Dataset[dict[str, Any]]):
    def __init__(self, rows: list[dict[str, Any]], dtype: torch.dtype) -> None:
        self.rows = [{k: self._cast(v, dtype) for k, v in row.items()} for row in rows]

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, dict):
            return {k: self._cast(v, dtype) for k, v in value.items()}
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.rows[index])


def subject(kind: Kind) -> tuple[nn.Module, Examples]:
    model = kind.make()
    model = (model.double() if kind.double else model).eval()
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    return model, Examples(kind.rows(), dtype)


def mean_loss(model: nn.Module, batch: Any) -> Tensor:
    """What the Trainer minimizes, on all examples at once."""
    outputs = model(**batch)
    loss: Tensor = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
    return loss.double()


def curved(model: nn.Module, batch: Any, vector: dict[str, Tensor], step: float) -> float:
    """vᵀ(∇L(w + s v) - ∇L(w - s v))/2s."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    slopes = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.add_(vector[name], alpha=sign * step)
        found = torch.autograd.grad(mean_loss(model, batch), list(named.values()), allow_unused=True)
        slopes.append(
            sum((g.double() * v).sum().item() for g, v in zip(found, vector.values(), strict=True) if g is not None)
        )
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.add_(vector[name], alpha=-sign * step)
    return (slopes[0] - slopes[1]) / (2 * step)


def scores(shell: str, kind: Kind) -> Any:
    """The score of one batch of all examples, from one of the three entrances."""
    model, data = subject(kind)
    if shell == "score":
        return pacgen(model, data, config=SCORE, batch_size=COUNT, progress=False)
    args = runs.arguments(
        max_steps=1,
        learning_rate=0.0,
        per_device_eval_batch_size=COUNT,
        per_device_train_batch_size=COUNT,
        remove_unused_columns=False,
        optim="sgd",
    )
    common: Any = {"model": model, "args": args, "train_dataset": data}
    common["data_collator"] = lambda rows: collate(rows, model)
    if shell == "trainer":
        return PACGenTrainer(score=SCORE, **common).pacgen()
    callback = PACGenCallback(score=SCORE, score_on="end")
    Trainer(callbacks=[callback], **common).train()
    return callback.last_score


@pytest.fixture(autouse=True)
def default_dtype(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tensors that a loss makes by itself are of torch's default type."""
    params = getattr(request.node, "callspec", None)
    if params is not None and KINDS[params.params["name"]].inside:
        torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_equals_its_oracle_or_says_why_not(name: str) -> None:
    kind = KINDS[name]
    if kind.needs is not None:
        pytest.importorskip(kind.needs[0])
    if kind.refused:
        for shell in ("score", "callback", "trainer"):
            with pytest.raises(ValueError, match=kind.says):
                scores(shell, kind)
        return
    model, data = subject(kind)
    model = unwrap(model)
    batch = collate([data[i] for i in range(COUNT)], model)
    precise = kind.double
    units = COUNT if "sum" in kind.says else 1
    with torch.no_grad():
        truth = mean_loss(model, batch).item() / units
    found = {shell: scores(shell, kind) for shell in ("score", "callback", "trainer")}
    near = 1e-6 if precise else (1e-5 if next(model.parameters()).dtype == torch.float32 else 2e-2)
    for shell, result in found.items():
        assert result.loss == pytest.approx(truth, rel=near), shell
        assert result.num_examples == COUNT and result.hessian_trace == pytest.approx(
            found["score"].hessian_trace, rel=1e-6 if precise else 1e-3
        ), shell
    # the loss does not depend on the batching, or a sentence says that it does
    objective = Objective(model, Batches([batch], model=model))
    with preserved(model):
        objective.inspect()
    assert objective.depends_on_batching == kind.depends
    assert not kind.says or any(kind.says in note for note in objective.notes)
    if not kind.depends:
        small = pacgen(model, data, config=SCORE, batch_size=2, progress=False)
        assert small.loss == pytest.approx(truth, rel=max(near, 1e-6))
    assert kind.notes.lower() in " ".join(found["score"].status).lower()
    if near > 1e-3:
        return  # differences of gradients are noise in half precision
    generator = torch.Generator().manual_seed(3)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    vector = {n: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) for n, p in named.items()}
    for module in model.modules():  # by convention the padding's embedding gets no gradient
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            for name, parameter in named.items():
                if parameter is module.weight:
                    vector[name][module.padding_idx] = 0
    product = hessian_vector_product(model, [batch], vector)
    value = sum((product[n].double() * v).sum().item() for n, v in vector.items())
    scale = sum((product[n].double() ** 2).sum().item() for n in vector) ** 0.5
    # many losses are float32 inside, whatever the weights are
    length = sum((v.double() ** 2).sum().item() for v in vector.values()) ** 0.5
    outputs = model(**batch)
    exact = (outputs["loss"] if isinstance(outputs, dict) else outputs[0]).dtype == torch.float64
    with without_generation_caches(model):
        expected = curved(model, batch, vector, (1e-4 if exact else 1e-2 if precise else 3e-2) / length) / units
    assert value == pytest.approx(expected, rel=2e-2, abs=5e-3 * scale * length)


def test_the_page_of_the_documentation_is_of_these_kinds() -> None:
    page = Path(__file__).parents[1] / "docs" / "guides" / "kinds.md"
    assert page.read_text(encoding="utf-8") == table(), "Run python tests/kinds_of_models.py"
