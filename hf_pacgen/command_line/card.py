"""``hf-pacgen card``: write a result or a certificate into a model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_pacgen.command_line.parser import CommandParser
from hf_pacgen.config.settings import Config, option
from hf_pacgen.errors import InputError, refusing
from hf_pacgen.results.base import read_json
from hf_pacgen.results.pacgen import PACGenResult
from hf_pacgen.show.cards.update import CARD, update_model_card


@dataclass(frozen=True, kw_only=True)
class CardArguments(Config):
    """Which card, and what it says about the data."""

    _argument_group_name = "card"

    model: str | None = option(None, "Folder of the saved model. Its README.md is changed, or made.")
    certificate: str | None = option(None, "JSON file with a certificate, to be written into the card as well.")
    model_name: str | None = option(None, "Name of the model. By default the card's, or the folder's.")
    task: str | None = option(
        None, "The hub's name of the task, such as 'text-classification'. By default read from the card or config.json."
    )
    dataset: str | None = option(
        None, "Id of the training data on the hub, such as 'stanfordnlp/sst2'. By default the card's first."
    )
    dataset_name: str | None = option(None, "Name of the training data for people.")
    split: str = option("train", "Split of the training data.")
    force: bool = option(False, "Write it though it is not known to be of this model's weights.")


def run(argv: list[str]) -> None:
    """Write into the card, and say where; bad input raises before anything is changed."""
    parser = CommandParser(
        (CardArguments,),
        "card",
        usage="RESULT.json --model FOLDER [options]",
        description="Write PACGen into the card of a model: into its metadata, which the hub reads, and into a section "
        "for people. Everything else in the card stays as it is; doing it again changes nothing.",
        examples="""
        result.json --model ./my-model --dataset stanfordnlp/sst2
        result.json --model ./my-model --certificate certificate.json
        """,
    )
    parser.add_argument("result", metavar="RESULT.json", help="What 'hf-pacgen score --output' has written.")
    args, positional = parser.settings(argv)
    if args.model is None:  # no required flag: argparse would not say what belongs there
        parser.error("--model is missing: the folder of the saved model")
    folder = Path(args.model)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"--model {args.model!r} {what}: expected the folder of a saved model.")
    # both files are read before the card is touched
    result = PACGenResult.load(positional.result)
    certificate = read_json(args.certificate) if args.certificate is not None else None
    origins = {positional.result: result.origin}
    if isinstance(certificate, dict):
        origins[args.certificate] = certificate.get("origin") or {}
    unknown = [] if args.force else [file for file, origin in origins.items() if not _is_of(folder, file, origin)]
    with refusing(f"The card in {args.model!r} cannot be written", kind=OSError):
        update_model_card(
            args.model,
            result,
            certificate,
            model_name=args.model_name,
            task_type=args.task,
            dataset_type=args.dataset,
            dataset_name=args.dataset_name,
            dataset_split=args.split,  # the hub's metadata names a split, so it has a default
        )
    for file in unknown:
        print(f"{file} does not say which weights it is of, so it was not compared with the model.")
    print(f"Written to {folder / CARD}")


def _is_of(folder: Path, file: str, origin: Mapping[str, Any]) -> bool:
    """Whether a result is of the model in a folder; False where it does not say what it is of.

    Raises:
        InputError: it is of other weights, or those of the folder cannot be read.
    """
    known = origin.get("model") or {}
    if not known.get("weights"):
        return False
    from hf_pacgen.command_line.inputs.weights import is_of  # torch and transformers take seconds

    try:
        same, found = is_of(folder, known)
    except InputError as error:
        raise InputError(
            f"The weights of {str(folder)!r} cannot be compared with those that {file!r} is of: "
            f"{str(error).rstrip('.')}. Write the card all the same with --force."
        ) from error
    if not same:
        asked = str(known.get("adapter") or known["weights"])
        raise InputError(
            f"{file!r} is of other weights ({known.get('name')!r}, {asked[:12]}) than the model in "
            f"{str(folder)!r} ({found[:12] or 'no adapter'}). Give its own result, or write it all the same with "
            "--force."
        )
    return True
