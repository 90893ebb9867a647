"""The page of the documentation on tasks, made of their table."""

from __future__ import annotations

from pathlib import Path

from hf_pacgen.command_line.inputs.tasks import Task

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "tasks.md"
INTRODUCTION = """# Tasks

`hf-pacgen score MODEL --dataset DATA` (and `sharpness`, `compare`, `certify`) takes a model as `Trainer.save_model`
leaves it, with its tokenizer or processor, and raw data. The task is that of the model's head, by `architectures` in
its config.json. A base model, or one trained for another task than `--task`, is refused: a head made at random would
be scored as if it were trained. `--random-head` does so all the same.

**Data** is an id on the hub; parquet, csv, tsv, json, jsonl or txt files, also compressed (.gz, .bz2, .xz, .zst,
.zip); arrow files; a folder of such files, of images or sounds, or one that `save_to_disk()` wrote. A txt file has a
text a line, or by `--sample-by` a paragraph or a document. `--streaming` reads data larger than the disk from its
beginning; combine it with `--max-examples`, and with a number for `--num-training-examples` where the stream is long.

**Columns** are found by well-known names, or named: `--text-column`, `--text-pair-column`, `--label-column`,
`--choice-columns`, `--image-column`, `--audio-column`. The second line of a report shows one example of what was taken
as input and as label. Names of labels are numbered as the model numbers them. Where another column may be a part of
what the model reads, nothing is guessed: name the columns. A setting that a task does not use is refused. Other
sounds than WAV files need soundfile, and .zst files need zstandard.

**Models for other tasks**, such as instance segmentation (MaskFormer, Mask2Former), speech to text by a decoder
(Whisper) or images with text, are refused by name: score them from Python with the collator you train with.
Preferences (chosen, rejected) are scored inside their trainer, by a `PACGenCallback`.

From Python, pass the dataset and the collator of your Trainer; columns that the model does not take are dropped as the
Trainer drops them. This page is made of the table of tasks by `python tests/task_page.py`.
"""


def snippet(task: Task) -> str:
    """The program of a task."""
    name = task.facts.auto_class
    return (
        f"from transformers import {name}\n"
        "from hf_pacgen import pacgen\n\n"
        f'model = {name}.from_pretrained("my-model")\n'
        "result = pacgen(model, trainer.train_dataset, collate_fn=trainer.data_collator)\n"
    )


def page() -> str:
    """The whole of it."""
    parts = [INTRODUCTION]
    for task in Task:
        indented = "\n".join(f"    {line}".rstrip() for line in snippet(task).splitlines())
        lines = [f"## {task.value}", "", f"The loss: {task.facts.loss}.", ""]
        lines += ["    hf-pacgen score ./my-model --dataset train.parquet", "", indented, ""]
        lines += ["| columns | what they hold |", "|---|---|"]
        lines += [f"| {columns} | {what} |" for columns, what in task.facts.formats]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
