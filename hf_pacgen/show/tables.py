"""A result as a table for people."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hf_pacgen.results.pacgen import PACGenResult

__all__ = ["print_report", "report"]

HOW_TO_READ = (
    "Lower is better: a lower value promises a smaller gap between training and test loss. Compare models of one "
    "architecture on the same data at the same γ, ε and η; between sizes, compare the values per parameter."
)
PLAIN_WIDTH = 100
"""Columns where the output is no terminal, such as a log file."""


def print_report(
    result: PACGenResult, *, title: str = "PACGen", top_modules: int = 8, console: Console | None = None
) -> None:
    """Print a result with what each number means, its largest modules, and its status.

    Args:
        title: such as the names of the model and the data.
        top_modules: how many modules to list, those with the largest share of K(η) first.
        console: where to print; standard output by default.
    """
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=PLAIN_WIDTH)
    console.print(report(result, title=title, top_modules=top_modules))


def report(result: PACGenResult, *, title: str = "PACGen", top_modules: int = 8) -> RenderableType:
    """What :func:`print_report` prints."""
    parts: list[RenderableType] = [_numbers(result, title)]
    if top_modules > 0 and len(result.by_module) > 1:
        parts.append(_modules(result, top_modules))
    parts.append(Text(HOW_TO_READ, style="dim"))
    if result.status:
        parts.append(Text("\nWhat limits these numbers:", style="bold"))
        parts.extend(_bullet(sentence) for sentence in result.status)
    return Group(*parts)


def _numbers(result: PACGenResult, title: str) -> Table:
    table = Table(title=escape(title), title_style="bold", title_justify="left", header_style="bold")
    table.add_column("Quantity", no_wrap=True)
    table.add_column("Value", justify="right", no_wrap=True)
    table.add_column("What it says")
    eta = number(result.eta)
    table.add_row("Ψ", number(result.score), "the published PACGen score, in nats; lower is better")
    table.add_row("  Ψ/m", number(result.score_per_parameter), "per parameter")
    table.add_row(
        "  active fraction",
        percent(result.active_fraction),
        "share of weights in which Ψ feels the curvature; near 0 %, Ψ sees only how large the weights are",
    )
    table.add_row(
        "K(η)",
        number(result.kl_complexity),
        f"complexity in the PAC-Bayes bound at η = {eta}, in nats; lower is better",
    )
    table.add_row("  K(η)/m", number(result.kl_complexity_per_parameter), "per parameter")
    table.add_row(
        "  active fraction",
        percent(result.kl_active_fraction),
        "share of weights in which K(η) feels it",
        end_section=True,
    )
    table.add_row("loss", number(result.loss), "mean training loss without dropout")
    error = spread(result.hessian_trace_stderr)
    noise = " (± its noise, not its bias)" if error and result.estimator in ("blend", "gauss_newton") else ""
    table.add_row(
        "Hessian trace",
        number(result.hessian_trace) + error,
        f"curvature of the loss: how sharp the minimum is{noise}",
    )
    table.add_row(
        "ρ",
        number(result.hessian_lipschitz),
        "how fast the curvature changes nearby (a lower estimate)",
        end_section=True,
    )
    table.add_row("m", f"{result.num_parameters:,}", "trainable parameters")
    is_counted = result.num_units == result.num_examples
    units = "" if is_counted else f", with {result.num_units:,.0f} labeled tokens as the units of the loss"
    table.add_row("examples", f"{result.num_examples:,}", f"training examples scored{units}")
    table.add_row("time", _duration(result.seconds), _cost(result))
    return table


def _modules(result: PACGenResult, count: int) -> Table:
    ranked = sorted(result.by_module.items(), key=lambda item: -item[1]["kl_complexity"])
    shown = ranked[:count]
    table = Table(
        title=f"Modules by their share of K(η): {len(shown)} of {len(ranked)}",
        title_style="bold",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("Module", overflow="fold")
    for heading in ("m", "K(η)", "share", "K(η)/m", "Ψ/m", "trace"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, values in shown:
        m, complexity = values["num_parameters"], values["kl_complexity"]
        table.add_row(
            escape(name),
            f"{m:,.0f}",
            number(complexity),
            percent(complexity / result.kl_complexity if result.kl_complexity else 0.0),
            number(complexity / m),
            number(values["score"] / m),
            number(values["hessian_trace"]),
        )
    return table


def _bullet(sentence: str) -> Table:
    line = Table.grid(padding=(0, 1))
    line.add_row("•", Text(sentence))
    return line


def _cost(result: PACGenResult) -> str:
    counts = ((result.num_gradients, "gradient"), (result.num_hvps, "Hessian-vector product"))
    work = " and ".join(f"{count:,} {name}{'s' * (count != 1)}" for count, name in counts if count)
    method = f" by {result.hvp_method.replace('_', ' ')}" if result.hvp_method and result.num_hvps else ""
    estimator = result.estimator.replace("_", "-")
    return f"{estimator} estimate of the Hessian diagonal" + (f": {work} of a batch{method}" if work else "")


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def number(value: float) -> str:
    """Four significant digits, with thousands separated: 1,234,568, 12.35, 0.001235, 1.2e-07."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def spread(stderr: float | None) -> str:
    """The standard error behind a value, to two digits; nothing where it is unknown or 0."""
    return f" ± {number(float(f'{stderr:.2g}'))}" if stderr else ""


def percent(share: float) -> str:
    """A share as a percentage; one that is not quite 0 or 100 % does not look so."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{share:.1%}".replace("%", " %")
