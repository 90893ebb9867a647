"""Tiny models of real classes, saved in folders as a user has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

WORDS = ["good", "bad", "fine", "awful", "movie", "food", "the", "a", "was", "is", "very", "not"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def tokenizer(**settings: Any) -> PreTrainedTokenizerFast:
    """A tokenizer that knows a dozen words."""
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    model = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = Whitespace()
    settings = {"pad_token": "[PAD]", **settings}
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
        **settings,
    )


def bert(folder: Path, *, head: bool = True, with_tokenizer: bool = True, **settings: Any) -> Path:
    """A BERT classifier, or with ``head=False`` its encoder alone."""
    config = BertConfig(
        vocab_size=len(SPECIAL + WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        **settings,
    )
    torch.manual_seed(0)
    (BertForSequenceClassification if head else BertModel)(config).save_pretrained(folder)
    if with_tokenizer:
        tokenizer().save_pretrained(folder)
    return folder


def gpt2(folder: Path) -> Path:
    """A GPT-2 language model, whose tokenizer has no padding token."""
    config = GPT2Config(
        vocab_size=len(SPECIAL + WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer(pad_token=None, eos_token="[SEP]").save_pretrained(folder)
    return folder


def vit(folder: Path, *, channels: int = 1, classes: int = 10) -> Path:
    """A vision transformer for images of 8 x 8 pixels."""
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=channels,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    config.num_labels = classes
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(folder)
    return folder
