"""``hf-pacgen certify``: a bound on a model's error on new examples, from one command."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_pacgen.certify.certify import Certificate, certify
from hf_pacgen.command_line.inputs.load import load_subject
from hf_pacgen.command_line.inputs.models import ModelArguments
from hf_pacgen.command_line.inputs.tables import DataArguments
from hf_pacgen.command_line.parser import CommandParser
from hf_pacgen.command_line.quiet import quiet
from hf_pacgen.command_line.run_options import RunArguments, check_output, choose_place
from hf_pacgen.config import CertificateConfig
from hf_pacgen.config.settings import Config, option
from hf_pacgen.errors import InputError, describe
from hf_pacgen.show.tables import PLAIN_WIDTH, number

__all__ = ["PriorArguments", "run"]


@dataclass(frozen=True, kw_only=True)
class PriorArguments(Config):
    """What the prior is centered on."""

    _argument_group_name = "prior"

    prior: str | None = option(
        None,
        "Center of the prior: 'zero', or the model as it was before it saw the data (a folder, or an id on the hub). "
        "Weights that it lacks, such as a new head, are centered on 0.",
    )


def run(argv: list[str]) -> None:
    """Certify, print and save.

    Raises:
        InputError: bad input of any kind, or whatever would make the certificate invalid.
    """
    parser = CommandParser(
        (PriorArguments, ModelArguments, DataArguments, RunArguments, CertificateConfig),
        prog="hf-pacgen certify",
        group="certificate",
        usage="hf-pacgen certify MODEL --prior BASE --dataset NAME_OR_FILE [options]",
        description="Bound the error of a model, with noise on its weights, on new examples. It holds with probability "
        "1 - delta over the draw of the examples, which must be independent of each other and unseen by the prior.",
        epilog="Example: hf-pacgen certify ./my-model --prior bert-base-uncased --dataset train.parquet",
    )
    parser.add_argument("model", metavar="MODEL", help="The trained model: a folder, or an id on the Hugging Face hub.")
    prior_args, model_args, data_args, run_args, config, positional = parser.settings(argv)
    if prior_args.prior is None:
        parser.error("--prior is missing: 'zero', or the model before it saw the data")
    check_output(run_args.output)
    device, accelerator = choose_place(model_args.device)
    prior = prior_folder(prior_args.prior)
    subject = load_subject(positional.model, model_args, data_args, device=device, seed=config.seed)
    subject.model.eval()
    with parser.refusals(), quiet():
        result = certify(
            subject.model,
            subject.examples,
            prior=prior,
            config=config,
            batch_size=run_args.batch_size,
            accelerator=accelerator,
            progress=run_args.progress,
        )
    if accelerator is not None and not accelerator.is_main_process:
        return
    result = dataclasses.replace(result, notes=(*subject.notes, *result.notes))
    shown = dataclasses.replace(result, notes=tuple(map(parser.in_flags, result.notes)))
    print_certificate(shown, title=subject.title.replace("PACGen of", "Certificate of", 1), top=run_args.top_modules)
    if run_args.output is not None:
        try:
            result.save(run_args.output)
        except OSError as error:
            raise InputError(f"--output {run_args.output!r} could not be written: {error}.") from error
        print(f"\nWritten to {run_args.output}")


def prior_folder(name: str) -> str:
    """``"zero"``, a folder as it is, or the folder into which a model of the hub was downloaded.

    Raises:
        InputError: there is no such folder or model.
    """
    if name == "zero" or Path(name).is_dir():
        return name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"--prior {name!r}: there is no such folder. Give 'zero', a folder, or an id on the hub.")
    from huggingface_hub import snapshot_download

    try:
        with quiet():
            return snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "pytorch_model.bin"])
    except Exception as error:
        raise InputError(
            f"--prior {name!r} is no folder, and cannot be had from the hub: {describe(error)}. "
            "Give 'zero', the folder of the model before it saw the data, or the id of a model on the hub."
        ) from error


def print_certificate(result: Certificate, *, title: str, top: int = 8) -> None:
    """Print the sentence, the numbers it stands on, and what was taken for granted."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    console.print(f"[bold]{result.sentence}[/]\n", highlight=False)
    table = Table(title=escape(title), title_style="bold", title_justify="left", header_style="bold")
    table.add_column("Quantity", no_wrap=True)
    table.add_column("Value", justify="right", no_wrap=True)
    table.add_column("What it says")
    rows = (
        ("bound", f"{result.bound:.4f}", f"on the error on new examples ({result.config['bound']}); {result.status}"),
        (
            "noisy error",
            f"{result.empirical_error:.4f}",
            f"on the {result.n:,} examples; {result.draws:,.0f} draws",
        ),
        ("  with draws' error", f"{result.empirical_bound:.4f}", "upper bound of it, from that many draws"),
        ("KL", number(result.kl), "between noise and prior, in nats"),
        ("  price of τ", number(result.price), "for the choice of the prior's scale from its grid, in nats"),
        ("τ", number(result.prior_scale), f"scale of the prior, centered on: {result.prior}"),
        ("η", number(result.eta), "inverse temperature that shaped the noise"),
        ("δ", number(result.delta), "probability that the certificate fails"),
        ("parameters", f"{result.num_parameters:,}", "certified weights"),
    )
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    ranked = sorted(result.by_module.items(), key=lambda item: -item[1]["kl"])[:top]
    if len(result.by_module) > 1 and ranked:
        modules = Table(header_style="bold")
        for heading in ("Module", "KL", "share", "parameters"):
            modules.add_column(heading, justify="left" if heading == "Module" else "right")
        for name, part in ranked:
            modules.add_row(escape(name), number(part["kl"]), f"{part['kl_share']:.1%}", f"{part['num_parameters']:,}")
        console.print(modules)
    if result.refinement is not None:
        console.print(f"Refinement gained {result.refinement['gain']:.4f} (estimated by a few draws).", highlight=False)
    for note in result.notes:
        console.print(f"• {escape(note)}", highlight=False)
