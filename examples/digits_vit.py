"""Train a small vision transformer on handwritten digits with the ordinary Trainer, and score it with PACGen.

    python examples/digits_vit.py --output digits_vit.json
    python examples/digits_vit.py --smoke          # a few seconds, for a first look

The data comes with scikit-learn: 1,797 images of 8 x 8 pixels.  A fifth of them is held out, to show
the generalization gap which the score, computed from the training images alone, is about.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy
import torch
from sklearn.datasets import load_digits
from transformers import (
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from hf_pacgen import PACGenResult, ScoreConfig, pacgen
from hf_pacgen.show.tables import print_report


@dataclass
class Arguments:
    """What can be set; see ``--help``."""

    epochs: int = field(default=20, metadata={"help": "Passes over the training images."})
    batch_size: int = field(default=32, metadata={"help": "Images in a training step."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    passes: int = field(default=4, metadata={"help": "Passes of the curvature estimator; more are less noisy."})
    seed: int = field(default=0, metadata={"help": "Seed of the weights, the batches and the estimator."})
    output: str | None = field(default=None, metadata={"help": "JSON file to write the result to."})
    smoke: bool = field(default=False, metadata={"help": "A tiny run that shows the way, not the numbers."})


def digits(smoke: bool) -> datasets.DatasetDict:
    """Images in [-1, 1] of shape (1, 8, 8) with their labels, split 80 : 20."""
    bunch = load_digits()
    pixels = (bunch.images[:, None] / 8 - 1).astype(numpy.float32)
    data = datasets.Dataset.from_dict({"pixel_values": pixels, "labels": bunch.target}).with_format("numpy")
    if smoke:
        data = data.select(range(120))
    return data.train_test_split(test_size=0.2, seed=0)


def small_vit(smoke: bool) -> ViTForImageClassification:
    """A vision transformer that sees a digit as 16 patches of 2 x 2 pixels."""
    width = 16 if smoke else 64
    return ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=2,
            num_channels=1,
            num_labels=10,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=1 if smoke else 3,
            num_attention_heads=4,
        )
    )


def train(model: ViTForImageClassification, data: datasets.DatasetDict, args: Arguments) -> tuple[float, float, float]:
    """Train; return the training loss, the test loss and the test accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=1 if args.smoke else args.epochs,
                per_device_train_batch_size=args.batch_size,
                per_device_eval_batch_size=256,
                learning_rate=args.learning_rate,
                warmup_steps=50,
                dataloader_pin_memory=False,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                seed=args.seed,
            ),
            train_dataset=data["train"],
            eval_dataset=data["test"],
            compute_metrics=lambda output: {"accuracy": float((output[0].argmax(-1) == output[1]).mean())},
        )
        trainer.train()
        seen = trainer.evaluate(data["train"])
        unseen = trainer.evaluate()
    return seen["eval_loss"], unseen["eval_loss"], unseen["eval_accuracy"]


def main(argv: list[str] | None = None) -> PACGenResult:
    """Train, score, print and write."""
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args=argv)
    if args.output is not None and not Path(args.output).parent.is_dir():
        sys.exit(f"--output {args.output}: the folder {Path(args.output).parent} does not exist. Make it first.")
    torch.set_num_threads(1)  # in a model this small, more threads wait for each other longer than they work
    set_seed(args.seed)
    data = digits(args.smoke)
    model = small_vit(args.smoke)
    print(f"Training {type(model).__name__} ({model.num_parameters():,} parameters) on {len(data['train'])} digits.")
    train_loss, test_loss, accuracy = train(model, data, args)
    print(f"Training loss {train_loss:.4f}, test loss {test_loss:.4f} (the gap is {test_loss - train_loss:.4f}),")
    print(f"test accuracy {accuracy:.1%}. Now the score, from the training images alone:\n")

    config = ScoreConfig(passes=1 if args.smoke else args.passes, seed=args.seed)
    result = pacgen(model, data["train"], config=config, batch_size=32)

    print_report(result, title="PACGen of a small vision transformer on handwritten digits")
    if args.output is not None:
        result.save(args.output)
        print(f"\nWritten to {args.output}")
    return result


if __name__ == "__main__":
    main()
