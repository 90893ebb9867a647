"""Tiny real architectures built from configs, their batches, and dense oracles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

VOCABULARY = 12
SIZES: dict[str, Any] = {"hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 6}


def bert(attention: str = "sdpa", **changes: Any) -> nn.Module:
    sizes: dict[str, Any] = SIZES | {"num_labels": 3, "vocab_size": VOCABULARY, "max_position_embeddings": 8} | changes
    config = BertConfig(**sizes)
    config._attn_implementation = attention
    return BertForSequenceClassification(config)


def bert_tokens(attention: str = "sdpa") -> nn.Module:
    sizes: dict[str, Any] = SIZES | {"num_labels": 3, "vocab_size": VOCABULARY, "max_position_embeddings": 8}
    config = BertConfig(**sizes)
    config._attn_implementation = attention
    return BertForTokenClassification(config)


def llama(attention: str = "sdpa") -> nn.Module:
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=16, eos_token_id=0, bos_token_id=0, **SIZES)
    config._attn_implementation = attention
    return LlamaForCausalLM(config)


def gpt2(attention: str = "sdpa") -> nn.Module:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=4, n_layer=2, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    config._attn_implementation = attention
    return GPT2LMHeadModel(config)


def vit(attention: str = "sdpa") -> nn.Module:
    sizes: dict[str, Any] = SIZES | {"image_size": 4, "patch_size": 2, "num_channels": 1, "num_labels": 3}
    config = ViTConfig(**sizes)
    config._attn_implementation = attention
    return ViTForImageClassification(config)


MODELS: dict[str, Callable[..., nn.Module]] = {"bert": bert, "llama": llama, "gpt2": gpt2, "vit": vit}
CAUSAL = ("llama", "gpt2")


def make(name: str, attention: str = "sdpa", dtype: torch.dtype = torch.float64) -> nn.Module:
    """A model of random weights large enough to have some curvature."""
    torch.manual_seed(0)
    model = MODELS[name](attention).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.to(dtype).eval()


def examples(name: str, count: int, *, ignore: float = 0.0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """One batch of ``count`` random examples; ``ignore`` is the share of token labels set to -100."""
    generator = torch.Generator().manual_seed(1)
    if name == "vit":
        pixels = torch.randn(count, 1, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
        return {"pixel_values": pixels, "labels": torch.randint(0, 3, (count,), generator=generator)}
    # token 0 is BERT's padding, whose embedding gets no gradient by convention although the loss depends on it
    tokens = torch.randint(1, VOCABULARY, (count, 5), generator=generator)
    if name == "bert":
        return {"input_ids": tokens, "labels": torch.randint(0, 3, (count,), generator=generator)}
    labels = tokens if name in CAUSAL else torch.randint(0, 3, (count, 5), generator=generator)
    dropped = torch.rand(count, 5, generator=generator) < ignore
    return {"input_ids": tokens, "labels": labels.masked_fill(dropped, -100)}


def split(batch: dict[str, Tensor], *sizes: int) -> list[dict[str, Tensor]]:
    """Cut a batch into several."""
    parts = {key: value.split(list(sizes)) for key, value in batch.items()}
    return [{key: pieces[i] for key, pieces in parts.items()} for i in range(len(sizes))]


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1).double() for t in tensors.values()])


def unflat(vector: Tensor, model: nn.Module) -> dict[str, Tensor]:
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    pieces = vector.split([p.numel() for p in named.values()])
    return {n: piece.view_as(p).to(p.dtype) for (n, p), piece in zip(named.items(), pieces, strict=True)}


def dense_hessian(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """∇² of the model's own mean loss on one batch, by torch.func, under the math attention backend."""
    named = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def loss(vector: Tensor) -> Tensor:
        return torch.func.functional_call(model, unflat(vector, model), kwargs=batch).loss

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.func.jacrev(torch.func.grad(loss), chunk_size=64)(flat(named))


def relative_error(value: Tensor, reference: Tensor) -> float:
    return ((value - reference).norm() / reference.norm()).item()
