"""What only a GPU shows: run by ``pytest -m cuda``, skipped where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from hf_pacgen import ScoreConfig, hessian_vector_product, pacgen, perturbed, plan
from hf_pacgen.maths.counter_rng import rademacher

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


def on_gpu(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cuda() for name, value in batch.items()}


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "vit"])
def test_a_score_is_that_of_the_cpu(name: str) -> None:
    batches = tiny.split(tiny.examples(name, 4), 2, 2)
    here = pacgen(tiny.make(name), batches, progress=False)
    there = pacgen(tiny.make(name).cuda(), batches, progress=False)  # batches follow the model
    assert there.loss == pytest.approx(here.loss, rel=1e-6)
    assert there.hessian_lipschitz == pytest.approx(here.hessian_lipschitz, rel=1e-3)
    assert there.num_hvps == here.num_hvps


@pytest.mark.parametrize("method", ["reverse_over_reverse", "forward_over_reverse", "finite_difference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_the_cpu(method: str, dtype: torch.dtype) -> None:
    if method == "finite_difference" and dtype is torch.bfloat16:
        pytest.skip("differences of low precision are refused")
    model, batch = tiny.make("gpt2"), tiny.examples("gpt2", 4)
    vector = {
        name: rademacher(i, p.numel()).view_as(p).double() for i, (name, p) in enumerate(model.named_parameters())
    }
    exact = tiny.flat(hessian_vector_product(model, [batch], vector, method="reverse_over_reverse", progress=False))
    model = model.to("cuda", dtype)
    moved = {name: value.to("cuda", dtype) for name, value in vector.items()}
    found = hessian_vector_product(model, [on_gpu(batch)], moved, method=method, progress=False)
    close = 0.1 if dtype is torch.bfloat16 else 1e-2
    assert tiny.relative_error(tiny.flat({n: v.cpu() for n, v in found.items()}), exact) < close


def test_weights_come_back_bit_for_bit() -> None:
    model = tiny.make("llama", dtype=torch.bfloat16).cuda()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with perturbed(model, 0.1, seed=0):
        assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    pacgen(model, [on_gpu(tiny.examples("llama", 2))], progress=False)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_planned_memory_is_the_allocators() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 1024, "n_embd": 512, "n_layer": 4, "n_head": 8, "n_positions": 128}
    model: nn.Module = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    model = model.cuda().eval()
    tokens = torch.randint(1024, (8, 128), device="cuda")
    batches = [{"input_ids": tokens, "labels": tokens}] * 2
    config = ScoreConfig(passes=1)
    made = plan(model, batches, config=config, progress=False)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    pacgen(model, batches, config=config, progress=False)
    assert made.layout()["peak_bytes"] == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.15)
    assert made.seconds is not None
