"""``hf-pacgen sharpness``: how sharp a solution is, by the measures beside PACGen."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_pacgen.command_line.printing import open_console, print_notes, quantities
from hf_pacgen.command_line.run_options import OutputArguments, Run
from hf_pacgen.config import RelativeSharpnessConfig, SharpnessConfig, SpectrumConfig
from hf_pacgen.config.settings import Count, Grid, Natural, NonNegative, option
from hf_pacgen.measures.relative_sharpness import LEVELS, relative_sharpness
from hf_pacgen.measures.sharpness import expected_sharpness
from hf_pacgen.measures.spectrum import hessian_spectrum
from hf_pacgen.measures.worst_case import worst_case_sharpness
from hf_pacgen.results.relative_sharpness import RelativeSharpness
from hf_pacgen.results.sharpness import Sharpness
from hf_pacgen.results.spectrum import Spectrum
from hf_pacgen.results.worst_case import WorstCaseSharpness
from hf_pacgen.show.tables import number, spread


@dataclass(frozen=True, kw_only=True)
class SharpnessArguments(OutputArguments):
    """What is measured, how the command runs, and where the result goes."""

    noise_scale: NonNegative = option(0.01, "σ of the noise of the expected sharpness; 0 leaves it out.")
    box: NonNegative = option(1e-3, "ε of the box ε(|w_i| + 1) of the worst case; 0 leaves it out.")
    eigenvalues: Natural = option(5, "Number of top eigenvalues of the Hessian; 0 leaves them, trace and density out.")
    probes: Natural = option(4, "Random probes for the trace of the Hessian; 0 leaves it out.")
    iterations: Count | None = option(None, "Most Lanczos steps for the eigenvalues. By default what suits the model.")
    relative: bool = option(False, "Measure the rise under noise in proportion to every weight too, by --levels.")
    levels: Grid | None = option(None, "Levels of that noise, with --relative; by default 0.03, 0.1, 0.3 and 1.")

    def __post_init__(self) -> None:
        super().__post_init__()
        # the model would be loaded for nothing
        if self.levels is not None and not self.relative:
            raise ValueError("levels are of the relative sharpness, which is not asked for. Add --relative.")
        if not (self.noise_scale or self.box or self.eigenvalues or self.relative):
            nothing = "noise_scale, box and eigenvalues are all 0: there is nothing to measure."
            raise ValueError(f"{nothing} Give one of them.")


def run(argv: list[str]) -> None:
    """Measure, save and print."""
    call = Run(
        "sharpness",
        argv,
        SharpnessArguments,
        SharpnessConfig,
        description="Sharpness of a solution on its training data: the rise of the loss under random noise on the "
        "weights (Neyshabur et al. 2017), at worst in a box (Keskar et al. 2017), and the Hessian's top eigenvalues.",
        examples="""
        ./my-model --dataset train.parquet --max-examples 512 --noise-scale 0.01
        ./my-model --dataset train.parquet --noise-scale 0 --box 0 --eigenvalues 0 --relative
        """,
    )
    args, config = call.args, call.config
    subject = call.load(call.models[0])
    model, data = subject.model, subject.examples
    found: dict[str, Any] = {}  # by the key in the JSON
    with call.measuring() as options:
        if args.noise_scale:
            found["expected"] = expected_sharpness(model, data, noise_scale=args.noise_scale, config=config, **options)
        same = {"max_examples": config.max_examples, "seed": config.seed}  # the same examples for all
        if args.relative:
            settings = RelativeSharpnessConfig(**same)
            found["relative"] = relative_sharpness(model, data, args.levels or LEVELS, config=settings, **options)
        if args.box:
            found["worst_case"] = worst_case_sharpness(model, data, box=args.box, config=config, **options)
        if args.eigenvalues:
            spectrum = SpectrumConfig(probes=args.probes, iterations=args.iterations, **same)
            found["spectrum"] = hessian_spectrum(model, data, k=args.eigenvalues, config=spectrum, **options)
    found = {
        name: dataclasses.replace(result, origin=call.origin(result, subject, call.models[0]))
        for name, result in found.items()
    }
    status = (*subject.notes, *(sentence for result in found.values() for sentence in result.status))
    values = {"model": call.models[0], **{name: result.to_dict() for name, result in found.items()}, "status": status}
    text = json.dumps(values, indent=2) + "\n"

    def show() -> None:
        console = open_console()
        rows = [row for result in found.values() for row in _rows(result)]
        console.print(quantities(f"Sharpness of {subject.title}", rows))
        print_notes(console, call.in_flags(status))

    call.finish({"output": lambda path: Path(path).write_text(text, encoding="utf-8")}, show)


def _rows(result: Sharpness | RelativeSharpness | WorstCaseSharpness | Spectrum) -> list[tuple[str, str, str]]:
    if isinstance(result, Sharpness):
        on = f"mean training loss on {result.num_examples:,} examples, without dropout"
        noise = f"{result.config['distribution']} noise of scale {number(result.noise_scale or 0)}"
        rise = f"mean rise of the loss under {noise}; {result.draws} draws for every batch"
        mean = number(result.mean) + spread(result.stderr)
        return [("loss", number(result.loss), on), ("expected sharpness", mean, rise)]
    if isinstance(result, RelativeSharpness):
        says = f"mean rise of the loss under uniform noise of ± this part of every weight; {result.num_batches} batches"
        label = result.facts()["relative_sharpness"].label
        heads = [(f"{label}, {s:g}", number(mean) + spread(error)) for s, mean, error in result.by_level()]
        return [(head, value, says) for head, value in heads]
    if isinstance(result, WorstCaseSharpness):
        box = f"the box {number(result.box or 0)}·(|w| + 1); {result.steps} gradients of the whole loss"
        relative = ("  relative", f"{result.relative:.4g} %", "of 1 + loss: the sharpness of Keskar et al.")
        return [("worst-case rise", number(result.value), f"largest rise of the loss found in {box}"), relative]
    if not isinstance(result, Spectrum):
        raise TypeError(f"There are no rows for a {type(result).__name__} yet: say here which.")
    rows = []  # each eigenvalue with how far it can be trusted
    each = zip(result.eigenvalues, result.residuals, result.converged, strict=True)
    for i, (value, residual, good) in enumerate(each, start=1):
        said = f"eigenvalue of the Hessian, residual {residual:.1e}" + ("" if good else "; NOT CONVERGED")
        rows.append((f"λ_{i}", number(value), said))
    if result.trace is not None:
        rows.append(("trace", number(result.trace) + spread(result.trace_stderr), "sum of all eigenvalues"))
    return rows
