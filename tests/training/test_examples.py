"""The example scripts in their smallest mode, and the Trainers of other libraries."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import saved_models
import torch
from datasets import Dataset
from training_runs import llama, same, weights

from hf_pacgen.config import NoiseConfig, ScoreConfig
from hf_pacgen.training.callback.callback import PACGenCallback

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["text_classification", "causal_lm_lora"])
def test_examples_train_and_score(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = load(name).main(["--smoke", "--use_cpu"])
    assert {"eval_pacgen", "eval_pacgen_kl", "eval_hessian_trace", "eval_loss"} <= metrics.keys()
    assert "eval_pacgen_kl" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["text_classification", "causal_lm_lora"])
def test_an_example_without_its_marked_lines_is_the_stock_script(name: str, tmp_path: Path) -> None:
    """They are few, and what is left runs without this package."""
    lines = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()
    marked = [line for line in lines if "# PACGen" in line]
    stock = "\n".join(line.replace("# from transformers", "from transformers") for line in lines if line not in marked)
    assert 4 <= len(marked) <= 8 and "hf_pacgen import" not in stock
    (tmp_path / "stock.py").write_text(stock, encoding="utf-8")
    module = ModuleType("stock")
    module.__dict__.update(__file__=str(tmp_path / "stock.py"))
    sys.modules["stock"] = module
    try:
        exec(compile(stock, "stock.py", "exec"), module.__dict__)
        metrics = module.__dict__["main"](["--smoke", "--use_cpu"])
    finally:
        del sys.modules["stock"]
    assert metrics["eval_loss"] > 0 and "eval_pacgen" not in metrics


def test_the_callback_in_trls_trainer(tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    rows = [{"input_ids": [1 + (i * j) % 40 for j in range(1, 9)]} for i in range(1, 17)]

    def run(*callbacks: Any) -> SFTTrainer:
        torch.manual_seed(0)
        settings = SFTConfig(
            str(tmp_path),
            max_steps=4,
            per_device_train_batch_size=4,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            eval_strategy="steps",
            eval_steps=4,
            disable_tqdm=True,
        )
        data = Dataset.from_list(rows)
        trainer = SFTTrainer(
            llama(tied=False),
            settings,
            train_dataset=data,
            eval_dataset=data.select(range(4)),
            processing_class=saved_models.tokenizer(eos_token="[SEP]"),
            callbacks=list(callbacks),
        )
        trainer.train()
        return trainer

    score = ScoreConfig(max_examples=4, lipschitz_directions=0)
    plain, silent = run(), run(PACGenCallback(score=score))
    noisy = run(PACGenCallback(noise=NoiseConfig(epsilon=0.02)))
    assert same(weights(plain.model), weights(silent.model))
    assert not same(weights(plain.model), weights(noisy.model))
    assert any("eval_pacgen" in entry for entry in silent.state.log_history)
