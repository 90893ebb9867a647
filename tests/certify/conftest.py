"""Models that several tests of certificates share."""

from __future__ import annotations

import pytest
import saved_models
import torch
from certificates import Head, batches, problem
from transformers import GPT2LMHeadModel


@pytest.fixture(scope="module")
def solved() -> tuple[Head, list[dict[str, torch.Tensor]]]:
    model, features, labels = problem()
    return model, batches(features, labels)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(saved_models.gpt2(tmp_path_factory.mktemp("gpt2") / "model")).eval()
