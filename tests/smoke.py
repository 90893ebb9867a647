"""What a fresh installation must do, from an empty folder: ``make wheel`` runs it, away from the checkout.

    python -I tests/smoke.py

It needs what the wheel asks for and no more, no network, and no file of the checkout but itself.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

COMMAND = Path(sys.executable).with_name("hf-pacgen")


def call(folder: Path, *words: object) -> str:
    """Run a command in the folder; get what it printed."""
    done = subprocess.run([*map(str, words)], cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"{words} failed: {done.stderr}")
    return done.stdout


def examples(count: int = 8) -> list[dict[str, Any]]:
    tokens = torch.randint(1, 20, (count, 6), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": int(row[0] > 10)} for row in tokens]


def batches() -> list[dict[str, Tensor]]:
    rows = examples()
    parts = [rows[:4], rows[4:]]
    return [{key: torch.stack([torch.as_tensor(row[key]) for row in part]) for key in part[0]} for part in parts]


def main(folder: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification, TrainingArguments, set_seed

    import hf_pacgen
    from hf_pacgen import CertificateConfig, NoiseConfig, PACGenResult, PACGenTrainer, ScoreConfig

    where = Path(hf_pacgen.__file__).parents[1]
    assert where.name == "site-packages", f"expected an installed package; got {where}. Install the wheel first"
    assert hf_pacgen.__version__ == version("hf_pacgen")
    assert "hf-pacgen COMMAND" in call(folder, COMMAND, "--help")

    set_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertForSequenceClassification(BertConfig(vocab_size=20, max_position_embeddings=8, **sizes))
    initial = copy.deepcopy(model)
    result = hf_pacgen.pacgen(model, batches(), progress=False)
    assert result.num_examples == 8 and result.score == result.score
    print(f"score {result.score_per_parameter:.3f}", *result.status)

    model.save_pretrained(folder / "model")
    result.save(folder / "result.json")
    assert PACGenResult.load(folder / "result.json").score == result.score
    call(folder, COMMAND, "card", "result.json", "--model", "model")
    card = (folder / "model" / "README.md").read_text(encoding="utf-8")
    assert "model-index" in card and f"{result.num_parameters:,}" in card, card

    print(call(folder, COMMAND, "register").strip())
    load = "import evaluate; print(type(evaluate.load('pacgen')).__name__)"
    assert call(folder, sys.executable, "-I", "-c", load).strip() == "PACGen"
    assert {path.name for path in Path(hf_pacgen.metric_path()).iterdir()} >= {
        "README.md",
        "app.py",
        "requirements.txt",
    }

    args = TrainingArguments(str(folder / "run"), max_steps=2, report_to="none", disable_tqdm=True, use_cpu=True)
    settings: dict[str, Any] = {"noise": NoiseConfig(), "score": ScoreConfig()}
    trainer = PACGenTrainer(model, args, train_dataset=examples(), eval_dataset=examples(), **settings)
    trainer.train()
    metrics = trainer.evaluate()
    assert trainer.state.global_step == 2 and "eval_pacgen" in metrics, metrics

    few = CertificateConfig(draws=20)
    certificate = hf_pacgen.certify(model, batches(), prior=initial, config=few, progress=False)
    print(certificate.sentence)
    assert certificate.status in ("certified", "vacuous") and 0 < certificate.bound <= 1
    print("The installation works.")


if __name__ == "__main__":
    os.environ |= {f"HF_{library}_OFFLINE": "1" for library in ("HUB", "DATASETS", "EVALUATE")}
    with tempfile.TemporaryDirectory(prefix="hf_pacgen-smoke-") as scratch:
        os.environ |= {"HF_HOME": f"{scratch}/huggingface", "OMP_NUM_THREADS": "1"}
        main(Path(scratch))
