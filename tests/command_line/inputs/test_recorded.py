"""What an SFTTrainer has recorded is what is scored; whatever else the file holds is not run."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import datasets
import pytest
import task_models as m
import torch
from transformers import AutoTokenizer, TrainingArguments

from hf_pacgen.command_line.inputs.recorded import FILE, recorded

ROWS = [{"text": "the movie was good"}, {"text": "bad sky is blue what color"}, {"text": "good " * 30}]
PAIRS = [{"prompt": "the sky is", "completion": " blue"}, {"prompt": "what", "completion": " bad movie"}]
TALK = [{"messages": [{"role": "user", "content": "what ?"}, {"role": "assistant", "content": "blue sky"}]}]


def settings(folder: Path, **given: Any) -> Any:
    trl = pytest.importorskip("trl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trl.SFTConfig(str(folder), report_to="none", use_cpu=True, bf16=False, disable_tqdm=True, **given)


def trained(folder: Path, **given: Any) -> Path:
    """A model with what its SFTTrainer leaves beside it."""
    template = given.pop("template", None)
    m.llama(folder, template=template)
    torch.save(settings(folder, **given), folder / FILE)
    return folder


@pytest.mark.parametrize(
    ("rows", "given"),
    [
        (ROWS, {}),
        (ROWS, {"max_length": 8}),
        ([{"body": row["text"], "source": "here"} for row in ROWS], {"dataset_text_field": "body", "max_length": None}),
        (PAIRS, {"completion_only_loss": False}),
        (TALK, {"template": m.MARKED, "assistant_only_loss": True}),
    ],
)
def test_the_loss_is_that_of_the_trainer(rows: list[Any], given: dict[str, Any], tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    folder = trained(tmp_path / "model", **given)
    given = {key: value for key, value in given.items() if key != "template"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trl.SFTTrainer(
            model=m.loaded_model(folder, "CausalLM"),
            args=settings(tmp_path / "run", per_device_eval_batch_size=8, **given),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(folder),
        )
        expected = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    assert m.loss_of(folder, rows) == pytest.approx(expected, rel=1e-5)
    (folder / FILE).unlink()
    assert m.loss_of(folder, rows, **({"text_column": "body"} if "body" in rows[0] else {})) != pytest.approx(expected)


def test_what_was_taken_is_said(tmp_path: Path) -> None:
    notes = m.subject(trained(tmp_path / "a", max_length=16, packing=True), ROWS).notes
    assert (
        notes[0] == f"Taken from the settings of the run ({FILE}): texts end with [SEP], rows are cut after 16 tokens."
    )
    assert notes[1].startswith("The run packed several texts into a row")
    assert "rows are not cut" in m.subject(trained(tmp_path / "b", max_length=None), ROWS).notes[0]
    both = {"completion_only_loss": False, "max_length": 64}
    assert "the loss is on the prompt too" in m.subject(trained(tmp_path / "c", **both), PAIRS).notes[0]
    chat = trained(tmp_path / "d", template=m.MARKED, assistant_only_loss=True)
    assert "the loss is on what the assistant says" in m.subject(chat, TALK).notes[0]
    given = m.subject(trained(tmp_path / "e"), ROWS, eos="none", max_length=9).notes
    assert not any(note.startswith("Taken from") for note in given)
    unknown = m.subject(m.llama(tmp_path / "f"), ROWS).notes
    assert any(note.startswith("No [SEP] was added to the texts") for note in unknown)


def test_settings_of_the_run_for_its_checkpoints(tmp_path: Path) -> None:
    torch.save(settings(tmp_path, max_length=7), tmp_path / FILE)
    assert recorded(str(tmp_path / "checkpoint-3"))["max_length"] == 7
    assert recorded(str(tmp_path / "other")) == {}


class _Harm:
    def __reduce__(self) -> Any:
        return os.mkdir, (str(Path.cwd() / "harm"),)


def test_nothing_in_the_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"dataset_text_field": _Harm()}, FILE)
    assert recorded(str(tmp_path)) == {}
    assert not (tmp_path / "harm").exists()


def test_files_that_say_nothing(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"nothing")
    assert recorded(str(tmp_path)) == {}
    torch.save(TrainingArguments(str(tmp_path), report_to="none", use_cpu=True), tmp_path / FILE)
    assert recorded(str(tmp_path)) == {}
    torch.save(b"\0" * 2_000_000, tmp_path / FILE)
    assert recorded(str(tmp_path)) == {}
