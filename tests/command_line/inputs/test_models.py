"""Which models can be loaded for a task, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import saved_models
import torch
from command_runs import QUICK, Run, refused, write_csv
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    DetrConfig,
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

from hf_pacgen.command_line.inputs.models import ModelArguments, load_config, load_model
from hf_pacgen.command_line.inputs.tasks import Task
from hf_pacgen.errors import InputError

SIZES: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 12}
WIDE = SIZES | {"intermediate_size": 8, "max_position_embeddings": 16}


def load(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    args = ModelArguments(device="cpu")
    config = load_config(str(folder), args)
    return load_model(str(folder), args, config, Task.CAUSAL_LM, device=torch.device("cpu"))[0]


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


def test_bad_models(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data = write_csv(tmp_path / "train.csv")

    def model(name: str, **files: str) -> Path:
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file.replace("__", ".")).write_text(content)
        return tmp_path / name

    config = (models["classifier"] / "config.json").read_text()
    cases = {
        model(
            "bare", notes__txt=""
        ): r"has no config.json: expected a model written by save_pretrained.*holds notes.txt",
        model("adapter", adapter_config__json="{}"): "it has no 'peft_type'",
        model("garbled", config__json="{"): "model in the folder '.*garbled' cannot be loaded",
        model("weightless", config__json=config): "No tokenizer can be loaded from '.*weightless'",
        data: "model folder '.*train.csv' is a file",
        models["no tokenizer"]: "No tokenizer can be loaded from '.*no_tokenizer': its vocabulary is empty",
        models["vision"]: "which column holds the image.*--image-column",
    }
    for folder, message in cases.items():
        refused(run, message, "score", folder, "--dataset", data, *QUICK)


def test_code_of_a_model_is_not_run_unasked(run: Run, tmp_path: Path) -> None:
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('this was run')")
    data = write_csv(tmp_path / "t.csv")
    refused(run, "comes with its own code.*add --trust-remote-code", "score", tmp_path, "--dataset", data)


def test_weights_that_are_missing_or_of_other_shapes(run: Run, models: dict[str, Path], tmp_path: Path) -> None:
    data = write_csv(tmp_path / "train.csv")
    folder = saved_models.bert(tmp_path / "model")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    refused(run, "model.* cannot be loaded: .*no file named model.safetensors", "score", folder, "--dataset", data)
    (folder / "model.safetensors").write_text("garbage")
    refused(
        run, "model in the folder .* cannot be loaded: Error while deserializing", "score", folder, "--dataset", data
    )
    (folder / "model.safetensors").write_bytes(weights)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 24}))
    refused(run, r"do not fit its config.json: '.*' has shape \(.*16", "score", folder, "--dataset", data)


def test_a_library_that_the_model_needs(tmp_path: Path) -> None:
    settings: Any = {"use_timm_backbone": True, "backbone": "resnet18", "use_pretrained_backbone": False}
    config: Any = DetrConfig(**settings)
    config.architectures = ["DetrForObjectDetection"]
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    config = load_config(str(tmp_path), ModelArguments(device="cpu"))
    with pytest.raises(InputError, match=r"cannot be loaded: it needs timm. pip install timm"):
        load_model(str(tmp_path), ModelArguments(), config, Task.OBJECT_DETECTION, device=torch.device("cpu"))
