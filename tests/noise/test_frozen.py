"""Noise under LoRA adapters: against the dense merged reference, bit for bit gone, and stored nowhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_runs import bert, llama, same, weights
from transformers import GPT2Config, GPT2LMHeadModel

from hf_pacgen.model.dequantized import dequantize
from hf_pacgen.noise.frozen import FrozenNoise

peft = pytest.importorskip("peft")


def adapted(model: nn.Module | None = None, **settings: Any) -> Any:
    torch.manual_seed(1)
    config = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], **settings}
    made = peft.get_peft_model(llama().double() if model is None else model, peft.LoraConfig(**config))
    with torch.no_grad():
        for name, p in made.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)  # as in the middle of a training
    return made


def merged(layer: Any) -> Tensor:
    weight = layer.base_layer.weight.detach().double()
    return weight + layer.get_delta_weight("default").detach().double()


def drawn(noise: FrozenNoise) -> dict[str, Tensor]:
    """u of every layer, as a matrix: what the layers give for unit vectors, with the noise less without."""
    found = {}
    for layer in noise.layers:
        eye = torch.eye(layer.width, dtype=layer.squares.dtype)
        clean = layer.base(eye)
        noise.apply()
        found[str(layer.stream)] = (layer.base(eye) - clean).T.detach()
        noise.restore()
    return found


def tokens() -> Tensor:
    return torch.randint(1, 50, (3, 7), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("block_size", [20, None], ids=["rows in blocks", "whole"])
def test_loss_and_gradients_are_those_of_the_dense_noisy_weights(block_size: int | None) -> None:
    model = adapted()
    noise = FrozenNoise(model, scale=0.2, block_size=block_size)
    noise.draw(None, 0, "step", 3)  # type: ignore[arg-type]
    u = drawn(noise)
    noise.apply()
    loss = model(input_ids=tokens(), labels=tokens()).loss
    loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    noise.restore()
    model.zero_grad()
    for layer in noise.layers:
        layer.base.weight.data += u[str(layer.stream)]
    dense = model(input_ids=tokens(), labels=tokens()).loss
    dense.backward()
    assert loss.item() == pytest.approx(dense.item(), rel=1e-12)
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-9, atol=1e-12)


def test_its_variance_is_that_of_the_merged_rows() -> None:
    """Over 1,500 draws, to a tenth; the mean to five standard errors."""
    model = adapted()
    noise = FrozenNoise(model, scale=0.1)
    layer = noise.layers[0]
    deviation = 0.1 * merged(layer.adapter).square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(layer.row_rms(), merged(layer.adapter).square().mean(1).sqrt())
    total, squares, draws = torch.zeros(16, 16).double(), torch.zeros(16, 16).double(), 1500
    eye = torch.eye(16).double()
    clean = layer.base(eye)
    for draw in range(draws):
        noise.draw(None, draw)  # type: ignore[arg-type]
        noise.apply()
        u = (layer.base(eye) - clean).T.detach()
        noise.restore()
        total, squares = total + u, squares + u.square()
    assert (squares / draws / deviation.square() - 1).abs().max() < 0.1
    assert (total / draws).abs().le(5 * deviation / draws**0.5).all()


def test_a_mirrored_draw_is_its_opposite_and_another_key_another_draw() -> None:
    noise = FrozenNoise(adapted(), scale=0.1)
    draws = []
    for key in (0, 0, 1):
        noise.draw(None, key, factor=0.5)  # type: ignore[arg-type]
        draws.append(drawn(noise))
    noise.mirror()
    mirrored = drawn(noise)
    for name, u in draws[0].items():
        assert u.equal(draws[1][name]) and not u.equal(draws[2][name])
        torch.testing.assert_close(mirrored[name], -draws[2][name], rtol=0, atol=1e-14)
    names = list(draws[0])
    assert not draws[0][names[0]].equal(draws[0][names[1]])


def test_layers_with_a_product_of_their_own_have_the_noise_added() -> None:
    """GPT-2's layers keep the transpose."""
    torch.manual_seed(0)
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=16)).double()
    model = adapted(gpt, target_modules=["c_attn"], fan_in_fan_out=True).eval()
    before = weights(model)
    noise = FrozenNoise(model, scale=0.2)
    layer = noise.layers[0]
    torch.testing.assert_close(layer.row_rms(), merged(layer.adapter).T.square().mean(1).sqrt())
    noise.draw(None, 0)  # type: ignore[arg-type]
    (u,) = drawn(noise).values()
    noise.apply()
    loss = model(input_ids=tokens(), labels=tokens()).loss
    noise.restore()
    assert same(weights(model), before) and not any("forward" in vars(m) for m in model.modules())
    layer.base.weight.data += u.T
    assert loss.item() == pytest.approx(model(input_ids=tokens(), labels=tokens()).loss.item(), rel=1e-12)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_layers_keep_their_own_product(bits: int) -> None:
    """The noise is added to what they give, forward and backward, and its level is that of the dequantized weights."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = adapted(llama(hidden_size=64, num_attention_heads=2), init_lora_weights=False)
    for layer in [m for m in model.modules() if hasattr(m, "lora_A")]:
        weight = layer.base_layer.weight.data
        sizes = (weight.shape[1], weight.shape[0])
        if bits == 4:
            layer.base_layer = bitsandbytes.nn.Linear4bit(*sizes, bias=False, compute_dtype=torch.float32)
            layer.base_layer.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False)
        else:
            layer.base_layer = bitsandbytes.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False)
            layer.base_layer.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        layer.base_layer.to("cpu")
    noise = FrozenNoise(model, scale=0.2)
    noise.draw(None, 0)  # type: ignore[arg-type]
    (first, *_), u = noise.layers, drawn(noise)
    whole = dequantize(first.base) + first.adapter.get_delta_weight("default").detach()
    torch.testing.assert_close(first.row_rms(), whole.square().mean(1).sqrt(), rtol=2e-2, atol=0)
    u = u[str(first.stream)]  # type: ignore[assignment]
    assert u.square().mean().sqrt().item() == pytest.approx(0.2 * whole.square().mean().sqrt().item(), rel=0.1)  # type: ignore[attr-defined]
    x, weighting = torch.randn(5, first.width), torch.randn(5, len(first.half_width))
    found = []
    for on in (False, True):
        leaf = x.clone().requires_grad_()
        if on:
            noise.apply()
        out = first.base(leaf)
        (out * weighting).sum().backward()
        noise.restore()
        found.append((out.detach(), leaf.grad))
    torch.testing.assert_close(found[1][0] - found[0][0], x @ u.T, rtol=1e-3, atol=1e-4)  # type: ignore[attr-defined]
    torch.testing.assert_close(found[1][1] - found[0][1], weighting @ u, rtol=1e-3, atol=1e-4)  # type: ignore[operator]


REFUSED: list[tuple[Any, str]] = [
    (bert, "goes under the LoRA adapters of PEFT, and BertForSequenceClassification has none. Use recipe='rows'"),
    (lambda: adapted(use_dora=True), "under plain LoRA adapters of linear layers; .* on Linear with default. Use rec"),
    (lambda: adapted(target_modules=["embed_tokens"]), "under plain LoRA adapters of linear layers; .* on Embedding"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED, ids=["none", "DoRA", "embeddings"])
def test_other_models_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrozenNoise(build(), scale=0.1)


def test_a_base_that_is_trained_is_refused() -> None:
    model = adapted()
    model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"needs whole matrices of numbers; the weight of '.*q_proj' is trained"):
        FrozenNoise(model, scale=0.1)
