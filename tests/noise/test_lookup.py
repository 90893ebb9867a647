"""Noise in the rows of an embedding that are read: the same as noise on the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_runs import difference, llama, same, trained, weights

from hf_pacgen.config import NoiseConfig
from hf_pacgen.noise import lookup
from hf_pacgen.noise.lookup import LookupNoise, worthwhile
from hf_pacgen.noise.perturbation import Perturbation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_is_what_the_perturbed_matrix_holds(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(50, 64, padding_idx=0).to(dtype)
    whole = Perturbation({"weight": embedding.weight})
    whole.draw(lambda block, w: torch.full_like(w, 0.1), 5, "key")
    rest = Perturbation({})
    rows = LookupNoise("weight", embedding, rest)
    embedding.register_forward_hook(rows)
    rows.draw(lambda name, rows, w: torch.full_like(w, 0.1), 5, "key")
    ids = torch.tensor([[3, 7, 3], [49, 0, 7]])
    clean = embedding(ids)
    rest.apply()
    noisy = embedding(ids)
    rest.restore()
    whole.apply()
    torch.testing.assert_close(embedding(ids), noisy, rtol=0, atol=1e-6)
    assert not noisy.equal(clean)
    whole.restore()
    assert embedding(ids).equal(clean)


def test_noise_of_several_draws_adds_up_over_the_rows_read() -> None:
    embedding = nn.Embedding(50, 64)
    rest = Perturbation({})
    rows = LookupNoise("weight", embedding, rest)
    embedding.register_forward_hook(rows)
    rest.apply()
    expected = torch.zeros(50, 64)
    for key, ids in ((1, [3, 7, 3]), (2, [7, 9]), (2, [9, 9, 4])):
        rows.draw(lambda name, rows, w: torch.full_like(w, 0.1), key, first=key == 1)
        tensor = torch.tensor(ids)
        noise = embedding(tensor).detach() - embedding.weight.detach()[tensor]
        if ids != [9, 9, 4]:
            expected.index_copy_(0, tensor, expected[tensor] + noise)
        else:
            expected[4] = noise[2]
    found, _, total = rows.noise_read()
    assert found.tolist() == [3, 4, 7, 9]
    torch.testing.assert_close(total, expected[found], rtol=0, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}])
@pytest.mark.parametrize("name", ["isotropic", "price", "adam", "hutchinson"])
def test_training_is_the_same_with_and_without(name: str, settings: dict[str, Any], monkeypatch: Any) -> None:
    """With weight decay, which moves rows that no batch reads."""
    noise: dict[str, Any] = {"shape": name, "scale": 0.05} if name == "isotropic" else {"curvature": name}
    # with several draws in a step, the estimators differ: of a row, only the draws that were read count
    noise |= {"curvature_every": 1, "eta": 1e4, "draw": "step" if name == "price" else "micro_batch"}
    finals: list[dict[str, Tensor]] = []
    hooks: list[int] = []
    optimizer = {"optim": "adamw_torch", "adam_epsilon": 1.0} if name == "adam" else {"optim": "sgd"}
    for limit in (1 << 20, 1):
        monkeypatch.setattr(lookup, "WORTHWHILE", limit)
        model = llama(tied=False, hidden_size=64)
        seen: list[int] = []
        model.model.embed_tokens.register_forward_hook(lambda m, a, o, seen=seen: seen.append(len(m._forward_hooks)))  # type: ignore[union-attr, operator, misc]
        run = trained(
            "trainer", NoiseConfig(**noise), model=model, weight_decay=0.1, learning_rate=0.1, **optimizer, **settings
        )
        hooks.append(max(seen))
        finals.append(weights(run.model))
    assert hooks[1] == hooks[0] + 1  # the second run went through the hook
    assert difference(*finals) < 2e-6 and not same(*finals)


def test_only_large_plain_embeddings_on_a_cpu_are_worthwhile() -> None:
    large, small = nn.Embedding(2000, 640), nn.Embedding(20, 64)
    assert worthwhile({"large": large, "small": small, "odd": nn.Embedding(200_000, 7)}) == {"large": large}
    assert worthwhile({"meta": nn.Embedding(2000, 640, device="meta")}) == {}
