"""Hessian-vector products against dense Hessians."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import tiny
import torch
from torch import Tensor, nn

from hf_pacgen import hessian_vector_product

# Causal-LM losses are computed in float32 whatever the weights' dtype, and so is rotary embedding;
# the vision model's layer norms divide by little at this size
LIMITS = {"bert": 1e-9, "vit": 1e-7, "gpt2": 1e-6, "llama": 1e-6}
DIFFERENCE_LIMITS = {"bert": 1e-6, "vit": 1e-3, "gpt2": 5e-3, "llama": 5e-3}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", list(tiny.MODELS))
def test_every_method_matches_the_dense_hessian(name: str, attention: str) -> None:
    model, batch = tiny.make(name, attention), tiny.examples(name, 4)
    dense = tiny.dense_hessian(model, batch)
    vector = torch.randn(len(dense), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for method in ("auto", "reverse_over_reverse", "forward_over_reverse", "finite_difference"):
        limit = DIFFERENCE_LIMITS[name] if method == "finite_difference" else LIMITS[name]
        product = hessian_vector_product(model, [batch], tiny.unflat(vector, model), method=method)
        assert tiny.relative_error(tiny.flat(product), dense @ vector) < limit, method
    assert model.config._attn_implementation == attention  # type: ignore


def test_finite_differences_in_float32_are_good_along_random_and_sharp_directions() -> None:
    double, single = tiny.make("bert"), tiny.make("bert", dtype=torch.float32)
    batch = tiny.examples("bert", 8)
    values, vectors = torch.linalg.eigh(tiny.dense_hessian(double, batch))
    sharp = vectors[:, values.abs().argmax()]
    mixed = torch.randn(len(values), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for vector in (sharp, 1e4 * sharp, 1e-4 * mixed, mixed):
        reference = hessian_vector_product(double, [batch], tiny.unflat(vector, double))
        product = hessian_vector_product(single, [batch], tiny.unflat(vector, single), method="finite_difference")
        assert tiny.relative_error(tiny.flat(product), tiny.flat(reference)) < 2e-3


def test_a_step_that_shows_the_third_derivative_is_shortened() -> None:
    class Sharp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(50))

    def loss(model: Any, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
        return (torch.exp(200 * model.w[0]) + model.w.square().sum()) * len(batch), len(batch)

    model, vector = Sharp(), torch.zeros(50)
    vector[0] = 1.0
    data = [torch.zeros(3)]
    product = hessian_vector_product(model, data, {"w": vector}, loss_fn=loss)["w"]
    assert product[0].item() == pytest.approx(200**2 + 2, rel=2e-3)
    naive = hessian_vector_product(model, data, {"w": vector}, loss_fn=loss, displacement=0.02)["w"]
    assert naive[0].item() > 2 * (200**2 + 2)  # what a fixed step makes of it


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_auto_follows_the_precision(dtype: torch.dtype) -> None:
    model, batch = tiny.make("gpt2", dtype=dtype), tiny.examples("gpt2", 4, dtype=dtype)
    reference = tiny.make("gpt2", dtype=dtype).double()
    vector = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64).sign()
    exact = tiny.flat(hessian_vector_product(reference, [batch], tiny.unflat(vector, reference)))
    product = tiny.flat(hessian_vector_product(model, [batch], tiny.unflat(vector, model)))
    assert tiny.relative_error(product, exact) < (5e-2 if dtype == torch.bfloat16 else 2e-3)


def test_finite_differences_are_refused_in_low_precision() -> None:
    model = tiny.make("bert", dtype=torch.bfloat16)
    vector = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match="needs float32 weights and float32 compute"):
        hessian_vector_product(model, [tiny.examples("bert", 2)], vector, method="finite_difference")
    single = tiny.make("bert", dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="leave the autocast context"):
        hessian_vector_product(
            single,
            [tiny.examples("bert", 2)],
            {n: torch.ones_like(p) for n, p in single.named_parameters()},
            method="finite_difference",
        )


def test_autocast_does_not_go_on_with_stale_weights() -> None:
    model, batch = tiny.make("bert", dtype=torch.float32), tiny.examples("bert", 4)
    vector = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    exact = tiny.flat(hessian_vector_product(model, [batch], vector))
    with torch.autocast("cpu", torch.bfloat16):
        product = tiny.flat(hessian_vector_product(model, [batch], vector))
    assert tiny.relative_error(product, exact) < 0.1


def test_the_vector_is_checked() -> None:
    model, data = tiny.make("bert"), [tiny.examples("bert", 2)]
    good = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match="must have the names of the trainable parameters"):
        hessian_vector_product(model, data, dict(list(good.items())[1:]))
    with pytest.raises(ValueError, match=r"must have shape \(3,\)"):
        hessian_vector_product(model, data, good | {"classifier.bias": torch.ones(4)})
    with pytest.raises(ValueError, match=r"vector\['classifier.bias'\] must be a tensor; got ndarray. Convert it"):
        hessian_vector_product(model, data, good | {"classifier.bias": numpy.ones(3)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contains NaN"):
        hessian_vector_product(model, data, good | {"classifier.bias": torch.full((3,), torch.nan)})
    with pytest.raises(ValueError, match="hvp must be one of"):
        hessian_vector_product(model, data, good, method="magic")
    zero = hessian_vector_product(model, data, {n: torch.zeros_like(v) for n, v in good.items()})
    assert not tiny.flat(zero).any()


def test_a_tied_embedding_has_one_dense_gradient_only() -> None:
    model, batch = tiny.make("gpt2"), tiny.examples("gpt2", 4)
    embedding, seen = model.transformer.wte, []  # type: ignore[union-attr]
    embedding.register_forward_hook(lambda module, args, out: seen.append(module.sparse))  # type: ignore[union-attr,operator]
    vector = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    product = hessian_vector_product(model, [batch], vector, method="finite_difference")
    exact = hessian_vector_product(model, [batch], vector, method="reverse_over_reverse")
    assert True in seen and embedding.sparse is False  # type: ignore[union-attr]
    assert not product["transformer.wte.weight"].is_sparse
    assert tiny.relative_error(tiny.flat(product), tiny.flat(exact)) < DIFFERENCE_LIMITS["gpt2"]


def test_a_product_of_a_random_loss_is_refused() -> None:
    """By the controlled step, which looks too long, or else before the first product."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            hidden = nn.functional.dropout(inputs, 0.3, training=True)
            return {"loss": nn.functional.cross_entropy(self.layer(hidden), labels)}

    torch.manual_seed(0)
    model = Noisy()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = {"inputs": torch.randn(16, 8), "labels": torch.randint(0, 3, (16,))}
    vector = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    for settings in ({}, {"displacement": 0.01}, {"method": "reverse_over_reverse"}):
        with pytest.raises(ValueError, match="The loss of batch 0 differs between two identical passes"):
            hessian_vector_product(model, [batch], vector, **settings)  # type: ignore[arg-type]
        assert all(p.equal(before[name]) for name, p in model.named_parameters())


class _Padded(nn.Module):
    def __init__(self, width: int, padding_idx: int | None) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(6, width, padding_idx=padding_idx), nn.Linear(width, 3)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens).mean(1).tanh())  # type: ignore[no-any-return]


@pytest.mark.parametrize("width", [8, 64], ids=["whole", "by rows"])
@pytest.mark.parametrize("method", ["finite_difference", "reverse_over_reverse", "forward_over_reverse"])
def test_the_embedding_of_padding_has_no_part_in_any_product(method: str, width: int) -> None:
    def loss(model: Any, batch: Any) -> Any:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])

    data = [(torch.tensor([[0, 2, 0], [3, 0, 1]]), torch.tensor([0, 1]))]
    model, free = _Padded(width, 0).double(), _Padded(width, None).double()
    vector = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    found = hessian_vector_product(model, data, vector, method=method, loss_fn=loss)
    vector["table.weight"][0] = 0
    expected = hessian_vector_product(free, data, vector, method="reverse_over_reverse", loss_fn=loss)
    assert not found["table.weight"][0].any() and expected["table.weight"][0].any()
    expected["table.weight"][0] = 0
    assert all(torch.allclose(found[name], expected[name], rtol=1e-6, atol=1e-8) for name in vector)
