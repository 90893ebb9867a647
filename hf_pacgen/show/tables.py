"""A result as a table for people."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hf_pacgen.results.pacgen import PACGenResult
from hf_pacgen.show.advice import consistent
from hf_pacgen.show.wording import SECTIONS, further_metrics, number, parts, percent, spread, with_error

__all__ = ["PLAIN_WIDTH", "number", "percent", "print_report", "report", "spread"]

HOW_TO_READ = (
    "Lower is better: a lower value promises a smaller gap between training and test loss. Compare models of one "
    "architecture on the same data at the same γ, ε and η; between sizes, compare the values per parameter."
)
PLAIN_WIDTH = 100  # columns where the output is no terminal, such as a log file


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
    for sentence in consistent(result.status):
        line = Table.grid(padding=(0, 1))  # which indents the lines of a long sentence
        line.add_row("•", Text(sentence))
        parts.append(line)
    return Group(*parts)


def _table(title: str) -> Table:
    return Table(title=title, title_style="bold", title_justify="left", header_style="bold")


def _numbers(result: PACGenResult, title: str) -> Table:
    table = _table(escape(title))  # square brackets in a name are not markup
    table.add_column("Quantity", no_wrap=True)
    table.add_column("Value", justify="right", no_wrap=True)
    table.add_column("What it says")
    is_counted = result.num_units == result.num_examples
    units = "" if is_counted else f", with {result.num_units:,.0f} labeled tokens as the units of the loss"
    additions = {"num_examples": units}
    facts = result.facts()
    for section in SECTIONS:
        for name in section:
            if getattr(result, name) is None:  # release 0.1 did not know it
                continue
            meaning = facts[name].meaning.replace("at η", f"at η = {number(result.eta)}") + additions.get(name, "")
            table.add_row(facts[name].row, with_error(result, name), meaning)
            if name == "kl_complexity_per_parameter" and (made_of := parts(result)):
                table.add_row("  made of", "", made_of)
        if section is SECTIONS[1]:
            for fact, text in further_metrics(result):
                table.add_row(fact.row, text, fact.meaning)
        if section is not SECTIONS[-1]:
            table.add_section()
    table.add_row("time", _duration(result.seconds), _cost(result))
    return table


def _modules(result: PACGenResult, count: int) -> Table:
    shown, _ = result.ranked_modules(count)
    table = _table(f"Modules by their share of K(η): {len(shown)} of {len(result.by_module)}")
    table.add_column("Module", overflow="fold")
    for heading in ("m", "K(η)", "share", "K(η)/m", "Hessian", "ρ", "trace"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, values in shown:
        m, complexity = values["num_parameters"], values["kl_complexity"]
        table.add_row(
            escape(name),
            f"{m:,.0f}",
            number(complexity),
            percent(complexity / result.kl_complexity if result.kl_complexity else 0.0),
            number(complexity / m),
            *(_share(values, part) for part in ("kl_hessian", "kl_lipschitz")),
            number(values["hessian_trace"]),
        )
    return table


def _share(module: dict[str, float], part: str) -> str:
    # of K(η); modules of results from release 0.1 do not have it
    complexity = module["kl_complexity"]
    return percent(module[part] / complexity) if part in module and complexity > 0 else ""


def _cost(result: PACGenResult) -> str:
    counts = ((result.num_gradients, "gradient"), (result.num_hvps, "Hessian-vector product"))
    work = " and ".join(f"{count:,} {name}{'s' * (count != 1)}" for count, name in counts if count)
    method = f" by {result.hvp_method.replace('_', ' ')}" if result.hvp_method and result.num_hvps else ""
    estimator = result.estimator.replace("_", "-")
    return f"{estimator} estimate of the Hessian diagonal" + (f": {work} of a batch{method}" if work else "")


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
