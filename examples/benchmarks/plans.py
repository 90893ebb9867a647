"""What a score of 8B, 70B and 405B parameters takes on 1, 8 and 64 GPUs, planned from configurations alone.

    python examples/benchmarks/plans.py --output examples/benchmarks/results/plans.json
    python examples/benchmarks/plans.py --guide docs/guides/scale.md    # puts the tables into the guide

No weights are made: the models are on the meta device.  512 sequences of 1,024 tokens, one a batch for each process.
All figures are linear in the number of layers once there are a few: they are planned for 4, 6 and 8 layers, seen to
lie on a line, and that is followed to the model's own number.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.utils.data import Dataset
from transformers import HfArgumentParser, LlamaConfig, LlamaForCausalLM

from hf_pacgen import Plan, ScoreConfig, plan
from hf_pacgen.config import HVPMethod
from hf_pacgen.curvature.pass_counts import diagonal_passes

RESULTS = Path(__file__).resolve().parent / "results" / "plans.json"
SIZES: dict[str, dict[str, int]] = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
    "405B": {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128},
}
PROCESSES, LAYERS = (1, 8, 64), (4, 6, 8)
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


def planned(size: str) -> list[dict[str, Any]]:
    """A row for each way and number of processes, with the weights copied and sharded."""
    rows = []
    for way, (dtype, adapter, settings) in WAYS.items():
        config = ScoreConfig(**settings)
        few = [
            plan(
                llama(size, layers, dtype, adapter=adapter),
                Sequences(),
                config=config,
                processes=PROCESSES,
                batch_size=1,
                progress=False,
            )
            for layers in LAYERS
        ]
        for processes in PROCESSES:
            for weights in ("copied", "sharded")[: 1 + (processes > 1)]:
                found = [made.layout(processes, weights) for made in few]
                row = {"way": way, "processes": processes, "weights": weights, "refused": found[0].get("refused")}
                full = SIZES[size]["num_hidden_layers"]
                row["trainable"] = followed([made.num_parameters for made in few], full)
                row["gradients"], row["flops"] = few[0].backwards, followed([made.flops or 0.0 for made in few], full)
                if not row["refused"]:
                    phases = {n: followed([one["memory"][n] for one in found], full) for n in found[0]["memory"]}
                    row["peak_in"] = max(phases, key=lambda name: phases[name])
                    row["peak_bytes"], wire = phases[row["peak_in"]], followed([o["wire_bytes"] for o in found], full)
                    # a batch of a sequence for each process has as many times fewer of them
                    number = -(-EXAMPLES // processes)
                    fewer = few[0].backwards - diagonal(config, few[0], EXAMPLES) + diagonal(config, few[0], number)
                    row["wire_bytes"] = wire * fewer / few[0].backwards if weights == "sharded" else wire
                rows.append(row)
                Console(stderr=True).print(f"[dim]{size} {row}[/]")
    return rows


def diagonal(config: ScoreConfig, made: Plan, batches: int) -> int:
    """Backward passes of the diagonal over so many batches."""
    method = None if made.hvp_method is None else HVPMethod(made.hvp_method)
    return diagonal_passes(config, method, batches, made.num_parameters).backwards


def followed(values: list[float], layers: int) -> float:
    """The value for so many layers, of those for a few, which must lie on a line."""
    first, middle, last = values
    slope = (last - first) / (LAYERS[2] - LAYERS[0])
    if not math.isclose(middle, first + slope * (LAYERS[1] - LAYERS[0]), rel_tol=1e-3):
        raise SystemExit(f"Expected figures linear in the number of layers, got {values} for {LAYERS}: plan for more.")
    return first + slope * (layers - LAYERS[0])


# ------------------------------------------------------------------------------------------------------ tables


def cell(row: dict[str, Any]) -> str:
    """Peak memory of a process, and whether it fits."""
    if row["refused"]:
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
    for size in (name for name in SIZES if name in figures):
        for way in WAYS:
            rows = [row for row in figures[size] if row["way"] == way]
            lines.append(f"| {size} | {way} | " + " | ".join(cell(row) for row in rows) + " |")
            first, last = rows[0], rows[-1]
            speed = FLOPS["float32" if "float32" in way else "bfloat16"]
            wire = "refused" if last["refused"] else f"{last['wire_bytes'] / 1e12:,.1f} TB"
            hours = first["flops"] / speed / 3600
            cost.append(f"| {size} | {way} | {first['gradients']:,} | {first['flops']:.2g} | {hours:,.1f} | {wire} |")
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
    for size in arguments.sizes:
        figures[size] = planned(size)
        if arguments.output:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    Console(width=200).print(tables(figures))


if __name__ == "__main__":
    main()
