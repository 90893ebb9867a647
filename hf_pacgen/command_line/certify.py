"""``hf-pacgen certify``: a bound on a model's error on new examples, from one command."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from hf_pacgen.certify.certify import certify
from hf_pacgen.certify.records import check_record
from hf_pacgen.command_line.inputs.fingerprint import data_fingerprint
from hf_pacgen.command_line.inputs.models import is_path
from hf_pacgen.command_line.printing import open_console, print_notes, quantities
from hf_pacgen.command_line.quiet import quiet
from hf_pacgen.command_line.run_options import Run, RunArguments
from hf_pacgen.config import CertificateConfig
from hf_pacgen.config.settings import Config, option
from hf_pacgen.errors import InputError, refusing
from hf_pacgen.results.certificate import Certificate, counted, examples_of
from hf_pacgen.show.tables import number


@dataclass(frozen=True, kw_only=True)
class PriorArguments(Config):
    """What the prior is centered on."""

    _argument_group_name = "prior"

    prior: str | None = option(
        None,
        "Center of the prior: 'zero', or the model as it was before it saw the data (a folder, or an id on the hub). "
        "Weights that it lacks, such as a new head, are centered on 0.",
    )
    prior_is_independent: bool = option(
        False, "The prior has not seen the examples: you vouch for one that is a checkpoint and does not say it itself."
    )


def run(argv: list[str]) -> None:
    """Certify, save and print."""
    call = Run(
        "certify",
        argv,
        RunArguments,
        CertificateConfig,
        PriorArguments,
        usage="MODEL --prior BASE --dataset NAME_OR_FILE [options]",
        description="Bound the error of a model, with noise on its weights, on new examples. It holds with probability "
        "1 - delta over the draw of the examples, which must be independent of each other and unseen by the prior.",
        examples="""
        ./my-model --prior bert-base-uncased --dataset train.parquet
        ./adapter --prior zero --dataset train.parquet --output certificate.json
        """,
        group="certificate",
    )
    (prior_args,) = call.extra
    if prior_args.prior is None:  # argparse would say that it is required, and not what it may be
        call.parser.error("--prior is missing: 'zero', or the model before it saw the data")
    config = call.config
    if prior_args.prior_is_independent:
        config = dataclasses.replace(config, assume_independent=True)
    # before the model is loaded, so that a wrong name is told at once
    prior = prior_folder(prior_args.prior)
    subject = call.load(call.models[0])
    subject.model.eval()  # the certificate is of the model without dropout
    with call.measuring() as options:
        if prior != "zero":  # the fingerprint by contents is that of the results of these commands
            known: Any = {"prints": [data_fingerprint(subject.examples)], "assume_independent": True}
            check_record(Path(prior), subject.model, **known)
        result = certify(subject.model, subject.examples, prior=prior, config=config, **options)
    origin = call.origin(result, subject, call.models[0])
    result = dataclasses.replace(result, notes=(*subject.notes, *result.notes), origin=origin)
    shown = dataclasses.replace(result, notes=call.in_flags(result.notes))
    call.finish(
        {"output": result.save},
        lambda: print_certificate(shown, title=f"Certificate of {subject.title}", top=call.args.top_modules),
    )


def prior_folder(name: str) -> str:
    """``"zero"``, a folder as it is, or the folder into which a model of the hub was downloaded."""
    if name == "zero" or Path(name).is_dir():
        return name
    if is_path(name):
        raise InputError(f"--prior {name!r}: there is no such folder. Give 'zero', a folder, or an id on the hub.")
    from huggingface_hub import snapshot_download  # not of every command

    remedy = "Give 'zero', the folder of the model before it saw the data, or the id of a model on the hub."
    with quiet(), refusing(f"--prior {name!r} is no folder, and cannot be had from the hub", remedy):
        # the weights and what describes them, in one of the formats a repository may have
        return snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "pytorch_model.bin"])


def print_certificate(result: Certificate, *, title: str, top: int = 8) -> None:
    """Print the sentence, the numbers it stands on, and what was taken for granted."""
    kind = examples_of(vars(result))
    bound, draws = f"({result.config['bound']}); {result.status}", f"{result.draws:,.0f} draws"
    rows = (
        ("bound", f"{result.bound:.4f}", f"on the error on new examples {bound}"),
        *_test_set(result),
        ("noisy error", f"{result.empirical_error:.4f}", f"on the {result.n:,} {kind} {result.unit}s; {draws}"),
        ("  with draws' error", f"{result.empirical_bound:.4f}", "upper bound of it, from that many draws"),
        ("KL", number(result.kl), "between noise and prior, in nats"),
        ("  price of τ", number(result.price), "for the choice of the prior's scale from its grid, in nats"),
        ("τ", number(result.prior_scale), f"scale of the prior, centered on: {result.prior}"),
        ("η", number(result.eta), "inverse temperature that shaped the noise"),
        ("δ", number(result.delta), "probability that the certificate fails"),
        ("parameters", f"{result.num_parameters:,}", "certified weights"),
    )
    console = open_console()
    console.print(f"[bold]{result.sentence}[/]\n", highlight=False)
    console.print(quantities(title, rows))
    # a single module would repeat the table above
    ranked = sorted(result.by_module.items(), key=lambda item: -item[1]["kl"])[:top]
    if len(result.by_module) > 1 and ranked:
        modules = Table(header_style="bold")
        for heading in ("Module", "KL", "share", "parameters"):
            modules.add_column(heading, justify="left" if heading == "Module" else "right")
        for name, part in ranked:
            modules.add_row(escape(name), number(part["kl"]), f"{part['kl_share']:.1%}", f"{part['num_parameters']:,}")
        console.print(modules)
    if result.comparison:
        console.print(result.comparison, highlight=False)
    if result.refinement is not None:
        console.print(f"Refinement gained {result.refinement['gain']:.4f} (estimated by a few draws).", highlight=False)
    print_notes(console, result.notes)


def _test_set(result: Certificate) -> list[tuple[str, str, str]]:
    if result.test_set_bound is None:
        return []
    whose = "of the model" if result.test_set_of == "model" else "of the prior's model"
    says = f"{whose} without noise ({result.test_set_method}); {counted(vars(result))}"
    return [("test-set bound", f"{result.test_set_bound:.4f}", says)]
