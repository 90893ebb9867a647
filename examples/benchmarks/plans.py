"""What a score of 8B, 70B and 405B parameters takes on 1, 8 and 64 GPUs, planned from configurations alone.

    python examples/benchmarks/plans.py --output examples/benchmarks/results/plans.json
    python examples/benchmarks/plans.py --guide docs/guides/scale.md    # puts the tables into the guide

No weights are made: the models are on the meta device.  512 sequences of 1,024 tokens, one a batch for each process.
What a pass takes beside its gradients is linear in the number of layers: it is traced for 1 and 2 layers, and followed
to the model's own number.  Sizes are those of the whole model.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch
from rich.console import Console
from torch import nn
from torch.utils.data import Dataset
from transformers import HfArgumentParser, LlamaConfig, LlamaForCausalLM

from hf_pacgen import Plan, ScoreConfig, plan
from hf_pacgen.config import HVPMethod
from hf_pacgen.curvature.pass_counts import diagonal_passes
from hf_pacgen.curvature.peak_memory import PeakMemory
from hf_pacgen.model.traces import Trace

RESULTS = Path(__file__).resolve().parent / "results" / "plans.json"
SIZES: dict[str, dict[str, int]] = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
    "405B": {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128},
}
PROCESSES, LAYERS = (1, 8, 64), (1, 2)
EXAMPLES, LENGTH = 512, 1024
ROOM = 72e9
"""Bytes of a GPU of 80 GB that a score may take: the rest is for kernels, fragments and the collectives' buffers."""
QUIET: dict[str, Any] = {"estimator": "gauss_newton", "passes": 1, "lipschitz_directions": 0}
WAYS: dict[str, tuple[torch.dtype, bool, dict[str, Any]]] = {
    "all weights, float32": (torch.float32, False, {}),
    "all weights, bfloat16, Gauss-Newton, no ρ": (torch.bfloat16, False, QUIET),
    "LoRA of rank 16 on bfloat16": (torch.bfloat16, True, {}),
}
"""Data type, whether an adapter is scored, and settings."""


@dataclass
class Arguments:
    """What can be set; see ``--help``."""

    output: str = field(
        default="", metadata={"help": "Write all figures to this JSON file; models not asked for stay."}
    )
    sizes: list[str] = field(default_factory=lambda: list(SIZES), metadata={"help": f"Which of {', '.join(SIZES)}."})
    guide: str = field(default="", metadata={"help": "Put the tables of the results into this page, and plan nothing."})


class Sequences(Dataset[dict[str, torch.Tensor]]):
    """As many equal sequences as wanted, of which one is in memory."""

    def __init__(self) -> None:
        self.tokens = torch.zeros(LENGTH, dtype=torch.long)

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens, "labels": self.tokens}


def llama(size: str, layers: int, dtype: torch.dtype, *, adapter: bool) -> nn.Module:
    """A model of that size without elements, whose layers recompute their activations."""
    shape = SIZES[size] | {"num_hidden_layers": layers}
    config = LlamaConfig(vocab_size=128256, num_key_value_heads=8, max_position_embeddings=8192, **shape)
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config).to(dtype)
        if adapter:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.gradient_checkpointing_enable()
    return model


class Followed(PeakMemory):
    """Memory of a large model, whose traces are those of a few of its layers, followed along a line.

    Gradients are held beside the pass that adds to them, which is what a second gradient is, and no less than a first.
    """

    few: ClassVar[list[nn.Module]] = []
    """The same model with few layers."""

    def _trace(self, kind: str, *, share: int | None = None, dtype: torch.dtype | None = None) -> Trace:
        key = (kind, share, dtype)
        if key not in self._traces:
            kept = kind in ("once", "twice", "drawn")
            traced = [
                self._small(model)._trace("fleeting" if kept else kind, share=share, dtype=dtype) for model in self.few
            ]
            layers = SIZES[self.size]["num_hidden_layers"]
            sizes = (
                p.numel() * (p if dtype is None else torch.empty(0, dtype=dtype)).element_size()
                for p in self.parameters.values()
            )
            own = sum(sizes) if kept else 0
            peak, flops = (followed([getattr(one, what) for one in traced], layers) for what in ("peak", "flops"))
            self._traces[key] = Trace(round(own + peak), round(flops))
        return self._traces[key]

    size: ClassVar[str] = ""
    known: ClassVar[dict[Any, PeakMemory]] = {}

    def _small(self, model: nn.Module) -> PeakMemory:
        key = id(model), self.method, self.low
        if key not in self.known:
            parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
            self.known[key] = PeakMemory(model, parameters, self.batch, self.config, self.method, low=self.low)
        return self.known[key]


def planned(size: str, way: str) -> list[dict[str, Any]]:
    """A row for each number of processes, with the weights copied and sharded."""
    dtype, adapter, settings = WAYS[way]
    config, rows = ScoreConfig(**settings), []
    Followed.size, Followed.few = size, [llama(size, layers, dtype, adapter=adapter) for layers in LAYERS]
    model = llama(size, SIZES[size]["num_hidden_layers"], dtype, adapter=adapter)
    with mock.patch("hf_pacgen.measures.plan.PeakMemory", Followed):
        made = plan(model, Sequences(), config=config, processes=PROCESSES, batch_size=1, progress=False)
    for processes in PROCESSES:
        for weights in ("copied", "sharded")[: 1 + (processes > 1)]:
            row = {"way": way, "trainable": made.num_parameters, "gradients": made.backwards, "flops": made.flops}
            layout = made.layout(processes, weights)
            row |= {key: value for key, value in layout.items() if key not in ("forwards", "backwards", "seconds")}
            if weights == "sharded" and "refused" not in row:
                # a batch of a sequence for each process has as many times fewer of them
                number = -(-EXAMPLES // processes)
                fewer = made.backwards - diagonal(config, made, EXAMPLES) + diagonal(config, made, number)
                row["wire_bytes"] = round(row["wire_bytes"] * fewer / made.backwards)
            rows.append(row)
            Console(stderr=True).print(f"[dim]{size} {row}[/]")
    return rows


def diagonal(config: ScoreConfig, made: Plan, batches: int) -> int:
    """Backward passes of the diagonal over so many batches."""
    method = None if made.hvp_method is None else HVPMethod(made.hvp_method)
    return diagonal_passes(config, method, batches, made.num_parameters).backwards


def followed(values: list[float], layers: int) -> float:
    """The value for so many layers, of those for a few, which grow with their number."""
    first, second = values
    if second < first:
        raise SystemExit(f"Expected figures that grow with the number of layers, got {values} for {LAYERS}.")
    return first + (second - first) / (LAYERS[1] - LAYERS[0]) * (layers - LAYERS[0])


# ------------------------------------------------------------------------------------------------------ tables


def cell(row: dict[str, Any]) -> str:
    """Peak memory of a process, and whether it fits."""
    if "refused" in row:
        return "refused"
    peak = row["peak_bytes"] / 1e9
    return f"**{peak:,.0f} GB**" if row["peak_bytes"] <= ROOM else f"{peak:,.0f} GB"


def tables(figures: dict[str, Any]) -> str:
    """Two Markdown tables: memory, and cost."""
    lines = [
        "| model | scored | 1 GPU | 8, copied | 8, sharded | 64, copied | 64, sharded |",
        "|---|---|" + "---:|" * 5,
    ]
    cost = ["| model | scored | backward passes | operations | hours of one GPU | sent by each of 64, sharded |"]
    cost.append("|---|---|" + "---:|" * 4)
    for size in SIZES:
        for way in (way for way in WAYS if way in figures.get(size, {})):
            rows = figures[size][way]
            lines.append(f"| {size} | {way} | " + " | ".join(cell(row) for row in rows) + " |")
            first, last = rows[0], rows[-1]
            speed = FLOPS["float32" if "float32" in way else "bfloat16"]
            wire = "refused" if "refused" in last else f"{last['wire_bytes'] / 1e12:,.1f} TB"
            hours = first["flops"] / speed / 3600
            cost.append(f"| {size} | {way} | {first['gradients']:,} | {first['flops']:.2g} | {hours:.2g} | {wire} |")
    return "\n".join([*lines, "", *cost])


FLOPS = {"float32": 25e12, "bfloat16": 400e12}
"""Operations a second that are taken for reached by one H100: 40 % of what its data sheet gives."""
MARKS = "<!-- made by examples/benchmarks/plans.py --guide -->", "<!-- end -->"


def put_into(text: str, made: str) -> str:
    """A page with the tables between its marks."""
    begin, end = MARKS
    if begin not in text or end not in text:
        raise SystemExit(f"The page has no place for the tables: expected the lines {begin!r} and {end!r}.")
    return re.sub(f"{re.escape(begin)}.*{re.escape(end)}", lambda _: f"{begin}\n\n{made}\n\n{end}", text, flags=re.S)


def main() -> None:
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()  # type: ignore[arg-type]
    if arguments.guide:
        page = Path(arguments.guide)
        made = tables(json.loads(RESULTS.read_text(encoding="utf-8")))
        page.write_text(put_into(page.read_text(encoding="utf-8"), made), encoding="utf-8")
        return
    path = Path(arguments.output)
    figures = json.loads(path.read_text(encoding="utf-8")) if arguments.output and path.is_file() else {}
    for way in WAYS:
        for size in arguments.sizes:
            figures[size] = figures.get(size, {}) | {way: planned(size, way)}
            if arguments.output:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    Console(width=200).print(tables(figures))


if __name__ == "__main__":
    main()
