"""The pooled loss: the same whatever the batching, and every bad input a sentence."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from hf_pacgen import ScoreConfig, hessian_diagonal, hessian_vector_product
from hf_pacgen.data.batches import Batches
from hf_pacgen.data.losses import LossKind
from hf_pacgen.data.objective import Objective
from hf_pacgen.distributed.processes import Processes
from hf_pacgen.measures.landscape import mean_loss
from hf_pacgen.model.state import preserved

NAMES = ["bert", "tokens", "gpt2", "llama", "vit"]


def build(name: str, dtype: torch.dtype) -> nn.Module:
    if name == "tokens":
        torch.manual_seed(0)
        return tiny.bert_tokens().to(dtype).eval()
    return tiny.make(name, dtype=dtype)


def pooled(model: nn.Module, batches: list[dict[str, Tensor]]) -> tuple[float, float, Tensor]:
    """Loss, units and gradient of the pooled objective."""
    with preserved(model):
        objective = Objective(model, Batches(batches, model=model))
        objective.inspect()
        total, units = 0.0, 0.0
        for index, batch in objective.batches:
            result = objective.loss(batch, index)
            total, units = total + result.total.item(), units + result.units
            if result.total.requires_grad:
                result.total.backward()
        grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in objective.parameters.items()}
        return total / units, units, tiny.flat(grads) / units


@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("name", NAMES)
def test_batching_does_not_matter(name: str, dtype: torch.dtype, limit: float) -> None:
    model, batch = build(name, dtype), tiny.examples(name, 11, ignore=0.5, dtype=dtype)
    limit = max(limit, 1e-6) if name in tiny.CAUSAL else limit  # their losses are float32 inside
    loss, units, gradient = pooled(model, [batch])
    if batch["labels"].ndim > 1:
        counted = batch["labels"][:, 1:] if name in tiny.CAUSAL else batch["labels"]
        assert units == (counted != -100).sum()
    for sizes in ((1,) * 11, (8, 3), (2, 9)):
        other = pooled(model, tiny.split(batch, *sizes))
        assert other[0] == pytest.approx(loss, rel=limit) and other[1] == units
        assert tiny.relative_error(other[2], gradient) < limit * 10


@pytest.mark.parametrize("name", ["tokens", "gpt2"])
def test_batches_without_a_label_count_for_nothing(name: str) -> None:
    model, batch = build(name, torch.float64), tiny.examples(name, 6, ignore=0.3)
    empty = {k: torch.full_like(v, -100) if k == "labels" else v for k, v in batch.items()}
    parts = tiny.split(batch, 3, 3)
    with_empty, without = [empty, parts[0], empty, parts[1]], parts
    assert pooled(model, with_empty)[:2] == pytest.approx(pooled(model, without)[:2], rel=1e-9)
    config = ScoreConfig(estimator="exact")
    one, two = (hessian_diagonal(model, d, config=config, progress=False) for d in (with_empty, without))
    assert tiny.relative_error(tiny.flat(one.values), tiny.flat(two.values)) < 1e-9


@pytest.mark.parametrize("place", [0, 2])
def test_a_batch_without_units_may_lose_nan(place: int) -> None:
    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:  # the mean of nothing times 0
        count = int((batch["labels"][:, 1:] != -100).sum())
        return model(**batch).loss * count, count

    model, batches = tiny.make("llama"), tiny.split(tiny.examples("llama", 6), 2, 2, 2)
    empty = {**batches[0], "labels": torch.full_like(batches[0]["labels"], -100)}
    plain = mean_loss(model, batches, progress=False)
    batches.insert(place, empty)
    assert mean_loss(model, batches, loss_fn=loss, progress=False) == pytest.approx(plain, rel=1e-6)
    assert mean_loss(model, batches, progress=False) == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_does_not_matter(name: str, reentrant: bool) -> None:
    model, parts = build(name, torch.float32), tiny.split(tiny.examples(name, 6, dtype=torch.float32), 4, 2)
    vector = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    plain, plain_product = pooled(model, parts), hessian_vector_product(model, parts, vector)
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})  # type: ignore[operator]
    kept = pooled(model, parts)
    assert kept[0] == pytest.approx(plain[0], rel=1e-6) and tiny.relative_error(kept[2], plain[2]) < 1e-5
    for method in ("finite_difference", "reverse_over_reverse", "forward_over_reverse"):
        product = hessian_vector_product(model, parts, vector, method=method)
        assert tiny.relative_error(tiny.flat(product), tiny.flat(plain_product)) < 1e-2, method
    assert model.training


def test_what_counts_as_a_parameter() -> None:
    unused = tiny.bert_tokens().double()
    unused.extra = nn.Linear(3, 3).double()  # type: ignore[assignment]
    result = hessian_diagonal(unused, [tiny.examples("tokens", 4)], progress=False)
    assert not result.values["extra.weight"].any()
    tied = tiny.make("gpt2")
    names = hessian_diagonal(tied, [tiny.examples("gpt2", 4)], progress=False).values
    assert "lm_head.weight" not in names and "transformer.wte.weight" in names
    tied.transformer.wte.weight.requires_grad_(False)  # type: ignore[union-attr]
    names = hessian_diagonal(tied, [tiny.examples("gpt2", 4)], progress=False).values
    assert "transformer.wte.weight" not in names
    adapted = get_peft_model(tiny.make("bert"), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    names = hessian_diagonal(adapted, [tiny.examples("bert", 4)], progress=False).values
    assert names.keys() == {n for n, p in adapted.named_parameters() if p.requires_grad}


def test_the_loss_is_recognized() -> None:
    for name, kind in {"bert": LossKind.ALIGNED, "tokens": LossKind.ALIGNED, "gpt2": LossKind.CAUSAL}.items():
        model = build(name, torch.float64)
        objective = Objective(model, Batches([tiny.examples(name, 4, ignore=0.2)], model=model))
        with preserved(model):
            objective.inspect()
        assert objective.kind is kind


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(self, count: int) -> None:
        self.rows = [{"input_ids": [1 + i % 7] * (2 + i % 4), "label": i % 3} for i in range(count)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


class Stream(IterableDataset[dict[str, Any]]):
    def __iter__(self) -> Any:
        return iter(Rows(10).rows)


def test_every_kind_of_data_gives_the_same_numbers() -> None:
    model = tiny.make("bert")
    rows = Rows(10).rows
    hub = datasets.Dataset.from_list([{**r, "text": "dropped"} for r in rows])
    config = ScoreConfig(estimator="exact")

    def score(data: Any) -> tuple[float, int, Tensor]:
        result = hessian_diagonal(model, data, config=config, batch_size=4, progress=False)
        return result.loss, result.num_examples, tiny.flat(result.values)

    loss, count, values = score(Rows(10))
    assert count == 10
    from hf_pacgen.data.collation import collate

    loader = DataLoader(Rows(10), batch_size=3, shuffle=True, collate_fn=lambda r: collate(r, model))
    for data in (hub, hub.to_iterable_dataset(), Stream(), loader, list(loader)):
        other = score(data)
        assert other[0] == pytest.approx(loss, rel=1e-9) and other[1] == 10
        assert tiny.relative_error(other[2], values) < 1e-9


def test_a_subset_is_seeded_and_eta_stays_that_of_the_whole() -> None:
    from hf_pacgen import pacgen

    model = tiny.make("bert")
    one, two = (pacgen(model, Rows(40), config=ScoreConfig(max_examples=7), progress=False) for _ in range(2))
    assert one.num_examples == 7 and one.eta == 40 and one.score == two.score
    assert pacgen(model, Rows(40), config=ScoreConfig(max_examples=7, seed=1), progress=False).loss != one.loss
    batches = tiny.split(tiny.examples("bert", 10), 4, 4, 2)
    assert pacgen(model, batches, config=ScoreConfig(max_examples=6), progress=False).num_examples == 6
    assert pacgen(model, batches, config=ScoreConfig(max_examples=6), progress=False).eta == 10
    fixed = ScoreConfig(num_training_examples=1234)
    assert pacgen(model, batches, config=fixed, progress=False).eta == 1234


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.make("bert")

    def forward(self, **batch: Tensor) -> Any:
        outputs = self.inner(**batch)
        outputs.loss = outputs.loss + 0.01 * torch.rand(())
        return outputs


def frozen() -> nn.Module:
    return tiny.make("bert").requires_grad_(False)


def poisoned() -> nn.Module:
    model = tiny.make("bert")
    with torch.no_grad():
        model.classifier.weight[0, 0] = torch.nan  # type: ignore
    return model


def quantized() -> nn.Module:
    model = tiny.make("bert").requires_grad_(False)
    model.classifier.weight = nn.Parameter(torch.ones(3, 4, dtype=torch.int8), requires_grad=False)  # type: ignore[union-attr,assignment]
    return model


def eighth() -> nn.Module:
    model = tiny.make("bert")
    model.classifier.weight = nn.Parameter(torch.ones(3, 4).to(torch.float8_e4m3fn))  # type: ignore[union-attr,assignment]
    return model


def broken_second() -> list[dict[str, Tensor]]:
    first, second = tiny.split(tiny.examples("vit", 4), 2, 2)
    return [first, second | {"pixel_values": second["pixel_values"] * torch.nan}]


GOOD = tiny.examples("bert", 4)
UNLABELED = {"input_ids": GOOD["input_ids"]}
IGNORED = {**tiny.examples("gpt2", 4), "labels": torch.full((4, 5), -100)}
BAD: list[tuple[Any, Any, type[Exception], str]] = [
    (frozen, [GOOD], ValueError, "has no trainable parameters"),
    (quantized, [GOOD], ValueError, "1 of its parameters are integer or quantized"),
    (eighth, [GOOD], ValueError, "'classifier.weight' has dtype torch.float8_e4m3fn"),
    (poisoned, [GOOD], ValueError, "weights 'classifier.weight' contain NaN"),
    (lambda: tiny.bert().to("meta"), [GOOD], ValueError, "on the meta device"),
    (Noisy, [GOOD], ValueError, "differs between two identical passes"),
    (lambda: tiny.make("bert"), [], ValueError, "The data is empty"),
    (lambda: tiny.make("bert"), Rows(0), ValueError, "The data is empty"),
    (lambda: tiny.make("bert"), iter([GOOD]), ValueError, "exhausted after one pass"),
    (lambda: tiny.make("bert"), (b for b in [GOOD]), ValueError, "exhausted after one pass"),
    (lambda: tiny.make("bert"), [UNLABELED], ValueError, r"Batch 0 gave no loss.*has \['input_ids'\]"),
    (lambda: tiny.make("bert"), [GOOD, UNLABELED], ValueError, "Batch 1 gave no loss"),
    (lambda: tiny.make("gpt2"), [IGNORED, IGNORED], ValueError, "All labels of the data are -100"),
    (lambda: tiny.make("vit"), broken_second(), ValueError, "loss of batch 1 is nan"),
    (lambda: tiny.make("bert"), [torch.ones(2, 3)], TypeError, "A batch must be a dict.*got Tensor"),
    (lambda: tiny.make("bert"), GOOD, TypeError, r"wrap a single batch in a list"),
    (lambda: tiny.make("bert"), datasets.DatasetDict(), TypeError, "pick one of its splits"),
    (lambda: tiny.make("bert"), "tweets", TypeError, "got str"),
    (lambda: tiny.make("bert"), 7, TypeError, "got int"),
    (
        lambda: tiny.make("bert"),
        datasets.Dataset.from_list([{"text": "a", "label": 1}]),
        ValueError,
        r"None of the dataset's columns \['text', 'label'\]",
    ),
]


@pytest.mark.parametrize("make, data, error, message", BAD, ids=[row[3][:30] for row in BAD])
def test_bad_input_is_refused_and_nothing_is_changed(
    make: Any, data: Any, error: type[Exception], message: str
) -> None:
    from hf_pacgen import pacgen

    model = make().train()
    before = {name: value.clone() for name, value in model.state_dict().items() if not value.is_meta}
    state = torch.get_rng_state()
    with pytest.raises(error, match=message):
        pacgen(model, data, progress=False)
    after = model.state_dict()
    assert all(value.view(torch.uint8).equal(after[name].view(torch.uint8)) for name, value in before.items())
    assert torch.get_rng_state().equal(state) and model.training
    assert all(p.grad is None for p in model.parameters())


def test_other_bad_arguments() -> None:
    model = tiny.make("bert")
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1; got 0"):
        Batches(Rows(3), model=model, batch_size=0)
    with pytest.raises(ValueError, match="Cannot tell how many examples a batch of type str has"):
        Batches(["text"], model=model).num_examples()

    class Prepared(DataLoader[Any]):
        total_dataset_length = 3

    two = Processes()
    two.size = 2
    with pytest.raises(ValueError, match="DataLoader prepared by accelerate"):
        Batches(Prepared(Rows(3)), model=model, processes=two)
    nothing = [GOOD]
    with pytest.raises(ValueError, match="The data has no loss unit"):
        hessian_diagonal(model, nothing, loss_fn=lambda m, b: (m(**b).loss * 0, 0), progress=False)


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (torch.ones(()), TypeError, r"loss_fn must return \(loss_sum, num_units\).*got a tensor of shape \(\)"),
        (1.5, TypeError, "got float. Return"),
        ((torch.ones(2), 2), TypeError, r"got a tuple of a tensor of shape \(2,\), int"),
        ((torch.ones(()), "two"), TypeError, r"got a tuple of a tensor of shape \(\), str"),
        ((torch.ones(()), -1), ValueError, "a finite num_units >= 0; got -1.0"),
        ((torch.ones(()), torch.tensor(torch.nan)), ValueError, "a finite num_units >= 0; got nan"),
    ],
)
def test_a_loss_function_returns_a_sum_and_a_number(returned: Any, error: type[Exception], message: str) -> None:
    from hf_pacgen import pacgen

    with pytest.raises(error, match=message):
        pacgen(tiny.make("bert"), [GOOD], loss_fn=lambda model, batch: returned, progress=False)
