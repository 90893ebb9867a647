"""The card that PACGenTrainer writes carries the score by itself."""

from __future__ import annotations

from pathlib import Path

import tiny
import torch
from huggingface_hub import metadata_load
from transformers import TrainingArguments

from hf_pacgen import PACGenTrainer, ScoreConfig


def test_the_trainers_card_has_the_last_score(tmp_path: Path) -> None:
    batch = tiny.examples("bert", 8)
    rows = [{key: value[i] for key, value in batch.items()} for i in range(8)]

    class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return rows[index]

    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", max_steps=1, disable_tqdm=True)
    model = tiny.make("bert", dtype=torch.float32)
    trainer = PACGenTrainer(model, args, train_dataset=Rows(), eval_dataset=Rows(), score=ScoreConfig())
    trainer.train()
    trainer.create_model_card()
    assert "pacgen" not in (tmp_path / "README.md").read_text().lower().replace("pacgentrainer", "")
    metrics = trainer.evaluate()
    trainer.create_model_card()
    types = [
        m["type"]
        for result in metadata_load(tmp_path / "README.md")["model-index"]
        for m in result["results"][0]["metrics"]
    ]
    assert "pacgen" in types and "eval_pacgen" in metrics
