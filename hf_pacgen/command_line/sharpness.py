"""``hf-pacgen sharpness``: how sharp a solution is, by the measures beside PACGen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_pacgen.command_line.inputs.load import Subject, load_subject
from hf_pacgen.command_line.inputs.models import ModelArguments
from hf_pacgen.command_line.inputs.tables import DataArguments
from hf_pacgen.command_line.parser import CommandParser
from hf_pacgen.command_line.quiet import quiet
from hf_pacgen.command_line.run_options import check_output, choose_place, write
from hf_pacgen.config import SharpnessConfig, SpectrumConfig
from hf_pacgen.config.settings import Config, check_number, option
from hf_pacgen.measures.sharpness import expected_sharpness
from hf_pacgen.measures.spectrum import hessian_spectrum
from hf_pacgen.measures.worst_case import worst_case_sharpness
from hf_pacgen.results.sharpness import Sharpness
from hf_pacgen.results.spectrum import Spectrum
from hf_pacgen.results.worst_case import WorstCaseSharpness
from hf_pacgen.show.tables import PLAIN_WIDTH, number, spread

__all__ = ["SharpnessArguments", "run"]


@dataclass(frozen=True, kw_only=True)
class SharpnessArguments(Config):
    """What is measured, how the command runs, and where the result goes."""

    _argument_group_name = "run"

    noise_scale: float = option(0.01, "σ of the noise of the expected sharpness; 0 leaves it out.")
    box: float = option(1e-3, "ε of the box ε(|w_i| + 1) of the worst case; 0 leaves it out.")
    eigenvalues: int = option(5, "Number of top eigenvalues of the Hessian; 0 leaves them, trace and density out.")
    probes: int = option(4, "Random probes for the trace of the Hessian; 0 leaves it out.")
    iterations: int | None = option(None, "Most Lanczos steps for the eigenvalues. By default what suits the model.")
    batch_size: int = option(8, "Number of examples in a batch.")
    output: str | None = option(None, "JSON file to write the results to; its folder must exist.")
    progress: bool = option(True, "Show a progress bar.")

    def __post_init__(self) -> None:
        for name in ("noise_scale", "box"):
            check_number(self, name, minimum=0)
        for name in ("eigenvalues", "probes"):
            check_number(self, name, minimum=0, integer=True)
        if self.iterations is not None:
            check_number(self, "iterations", minimum=1, integer=True)
        check_number(self, "batch_size", minimum=1, integer=True)
        if not (self.noise_scale or self.box or self.eigenvalues):
            raise ValueError(
                "noise_scale, box and eigenvalues are all 0: there is nothing to measure. Give one of them."
            )


def run(argv: list[str]) -> None:
    """Measure, print and save.

    Raises:
        InputError: bad input of any kind.
    """
    parser = CommandParser(
        (ModelArguments, DataArguments, SharpnessArguments, SharpnessConfig),
        prog="hf-pacgen sharpness",
        group="measurement",
        usage="hf-pacgen sharpness MODEL --dataset NAME_OR_FILE [options]",
        description="Sharpness of a solution on its training data: the rise of the loss under random noise on the "
        "weights (Neyshabur et al. 2017), at worst in a box (Keskar et al. 2017), and the Hessian's top eigenvalues.",
        epilog="Example: hf-pacgen sharpness ./my-model --dataset train.parquet --max-examples 512 --noise-scale 0.01",
    )
    parser.add_argument("model", metavar="MODEL", help="The model: a folder, or an id on the Hugging Face hub.")
    model_args, data_args, args, config, positional = parser.settings(argv)
    check_output(args.output)
    device, accelerator = choose_place(model_args.device)
    subject = load_subject(positional.model, model_args, data_args, device=device, seed=config.seed)
    with parser.refusals(), quiet():
        found = measured(subject, args, config, accelerator)
    if accelerator is not None and not accelerator.is_main_process:
        return
    status = [*subject.notes, *(sentence for result in found.values() for sentence in result.status)]
    if args.output is not None:  # first, so that a closed terminal does not lose it
        values = {name: result.to_dict() for name, result in found.items()}
        write(args.output, json.dumps({"model": positional.model, **values, "status": status}, indent=2) + "\n")
    title = subject.title.replace("PACGen of", "Sharpness of", 1)
    print_sharpness(found, title=title, status=list(map(parser.in_flags, status)))
    if args.output is not None:
        print(f"\nWritten to {args.output}")


def measured(
    subject: Subject, args: SharpnessArguments, config: SharpnessConfig, accelerator: Any
) -> dict[str, Sharpness | WorstCaseSharpness | Spectrum]:
    """The results that were asked for, by name."""
    where: dict[str, Any] = {
        "batch_size": args.batch_size,
        "accelerator": accelerator,
        "progress": args.progress,
    }
    spectrum = SpectrumConfig(
        probes=args.probes, iterations=args.iterations, max_examples=config.max_examples, seed=config.seed
    )
    found: dict[str, Sharpness | WorstCaseSharpness | Spectrum] = {}
    model, data = subject.model, subject.examples
    if args.noise_scale:
        found["expected"] = expected_sharpness(model, data, noise_scale=args.noise_scale, config=config, **where)
    if args.box:
        found["worst_case"] = worst_case_sharpness(model, data, box=args.box, config=config, **where)
    if args.eigenvalues:
        found["spectrum"] = hessian_spectrum(model, data, k=args.eigenvalues, config=spectrum, **where)
    return found


def print_sharpness(found: dict[str, Any], *, title: str, status: list[str]) -> None:
    """Print the results as one table, and what limits them."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    table = Table(title=escape(title), title_style="bold", title_justify="left", header_style="bold")
    table.add_column("Quantity", no_wrap=True)
    table.add_column("Value", justify="right", no_wrap=True)
    table.add_column("What it says")
    for row in (row for result in found.values() for row in _rows(result)):
        table.add_row(*map(escape, row))
    console.print(table)
    for sentence in status:
        console.print(f"• {escape(sentence)}", highlight=False)


def _rows(result: Sharpness | WorstCaseSharpness | Spectrum) -> list[tuple[str, str, str]]:
    if isinstance(result, Sharpness):
        noise = f"{result.config['distribution']} noise of scale {number(result.noise_scale or 0)}"
        return [
            ("loss", number(result.loss), f"mean training loss on {result.num_examples:,} examples, without dropout"),
            (
                "expected sharpness",
                number(result.mean) + spread(result.stderr),
                f"mean rise of the loss under {noise}; {result.draws} draws for every batch",
            ),
        ]
    if isinstance(result, WorstCaseSharpness):
        box = f"the box {number(result.box or 0)}·(|w| + 1); {result.steps} gradients of the whole loss"
        return [
            ("worst-case rise", number(result.value), f"largest rise of the loss found in {box}"),
            ("  relative", f"{result.relative:.4g} %", "of 1 + loss: the sharpness of Keskar et al."),
        ]
    rows = []
    for i, (value, residual, good) in enumerate(
        zip(result.eigenvalues, result.residuals, result.converged, strict=True), start=1
    ):
        said = f"eigenvalue of the Hessian, residual {residual:.1e}" + ("" if good else "; NOT CONVERGED")
        rows.append((f"λ_{i}", number(value), said))
    if result.trace is not None:
        rows.append(("trace", number(result.trace) + spread(result.trace_stderr), "sum of all eigenvalues"))
    return rows
