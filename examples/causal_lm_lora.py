"""Fine-tune a causal language model with LoRA, with shaped noise in an unmodified Trainer; see the lines marked PACGen.

    python examples/causal_lm_lora.py --model HuggingFaceTB/SmolLM2-135M --text path/to/text.txt --max_steps 200
    python examples/causal_lm_lora.py --learning_rate 1e-3               # a tiny Llama over bytes, no hub needed
    python examples/causal_lm_lora.py --smoke                            # a few seconds

Only the LoRA weights are trained, so only they get noise, and only they are scored.  All other arguments are those of
``transformers.TrainingArguments``.  Take the marked lines away and it is the stock script.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from hf_pacgen import NoiseConfig, PACGenCallback, ScoreConfig  # PACGen

SMOKE = "--output_dir {} --max_steps 4 --length 32 --per_device_train_batch_size 4 --report_to none".split()


@dataclass
class Arguments:
    """What can be set besides the arguments of the Trainer."""

    model: str | None = field(
        default=None, metadata={"help": "Hub name or folder; by default a tiny Llama over bytes, made here."}
    )
    text: str = field(
        default=argparse.__file__, metadata={"help": "Text to train on; by default a module of the standard library."}
    )
    length: int = field(default=128, metadata={"help": "Tokens of an example."})
    rank: int = field(default=8, metadata={"help": "Rank of the LoRA matrices."})
    noise: float = field(default=0.01, metadata={"help": "ε, the level of the noise where there is no curvature."})


def main(command_line: list[str] | None = None) -> dict[str, float]:
    """Train, evaluate, and return the metrics."""
    command_line = sys.argv[1:] if command_line is None else command_line
    if "--smoke" in command_line:
        rest = [part for part in command_line if part != "--smoke"]
        command_line = [part.format(tempfile.mkdtemp()) for part in SMOKE] + rest
    parser = HfArgumentParser((Arguments, TrainingArguments))  # type: ignore[arg-type]
    arguments, args = parser.parse_args_into_dataclasses(command_line)
    set_seed(args.seed)

    text = Path(arguments.text).read_text(encoding="utf-8")
    if arguments.model is None:
        tokens = list(text.encode())
        model = pretrained(tokens)
    else:
        model = AutoModelForCausalLM.from_pretrained(arguments.model)
        tokens = AutoTokenizer.from_pretrained(arguments.model)(text)["input_ids"]
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=arguments.rank, target_modules="all-linear"))
    train, held_out = pieces(tokens, arguments.length)

    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=default_data_collator,
        callbacks=[
            PACGenCallback(  # PACGen
                noise=NoiseConfig(epsilon=arguments.noise),  # PACGen
                score=ScoreConfig(max_examples=32),  # PACGen
            ),  # PACGen
        ],
    )
    trainer.train()
    metrics = trainer.evaluate()
    print({key: round(value, 4) for key, value in metrics.items() if isinstance(value, float)})
    return metrics


def pieces(tokens: list[int], length: int) -> tuple[Dataset, Dataset]:
    """Examples of a fixed length; the last tenth of the text is held out."""
    rows: list[dict[str, Any]] = [
        {"input_ids": tokens[i : i + length], "labels": tokens[i : i + length]}
        for i in range(0, len(tokens) - length + 1, length)
    ]
    count = max(1, len(rows) // 10)
    return Dataset.from_list(rows[:-count]), Dataset.from_list(rows[-count:])


def pretrained(tokens: list[int], steps: int = 100) -> LlamaForCausalLM:
    """A tiny Llama over bytes that has seen the text for a moment: an adapter has something to adapt."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    texts = torch.tensor(tokens).unfold(0, 64, 64)
    for _ in range(steps):
        some = texts[torch.randint(len(texts), (16,))]
        model(input_ids=some, labels=some).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


if __name__ == "__main__":
    main()
