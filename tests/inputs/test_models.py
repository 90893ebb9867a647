"""Which models can be loaded for a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
    RobertaForMaskedLM,
)

from hf_pacgen.command_line.inputs.models import ModelArguments, Task, load_config, load_model
from hf_pacgen.errors import InputError

SIZES: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 12}
WIDE = SIZES | {"intermediate_size": 8, "max_position_embeddings": 16}


def load(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    args = ModelArguments(device="cpu")
    config = load_config(str(folder), args)
    return load_model(str(folder), args, config, Task.CAUSAL_LM, device=torch.device("cpu")).model


@pytest.mark.parametrize(
    "make",
    [
        lambda: BertForMaskedLM(BertConfig(**WIDE)),
        lambda: RobertaForMaskedLM(RobertaConfig(**WIDE)),
        lambda: BertLMHeadModel(BertConfig(**WIDE)),
    ],
)
def test_a_bidirectional_encoder_is_no_causal_language_model(make: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a bidirectional encoder.*AutoModelForMaskedLM.*is_decoder"):
        load(make(), tmp_path)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=12, n_positions=16)),
        lambda: LlamaForCausalLM(LlamaConfig(**WIDE)),
        lambda: OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=8, word_embed_proj_dim=8, max_position_embeddings=16)),
        lambda: BertLMHeadModel(BertConfig(**WIDE, is_decoder=True)),
        lambda: RobertaForCausalLM(RobertaConfig(**WIDE, is_decoder=True)),
    ],
)
def test_a_decoder_is_one(make: Any, tmp_path: Path) -> None:
    assert load(make(), tmp_path).dtype == torch.float32
