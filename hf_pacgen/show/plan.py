"""A plan as tables for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hf_pacgen.results.plan import Plan
from hf_pacgen.show.tables import PLAIN_WIDTH

__all__ = ["amount", "print_plan", "render"]

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def amount(bytes_: float) -> str:
    """Bytes with their unit.

    >>> amount(999), amount(16_060_522_496)
    ('999 B', '16.1 GB')
    """
    value, unit = float(bytes_), 0
    while value >= 999.5 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {UNITS[unit]}" if not unit or value >= 99.95 else f"{value:.1f} {UNITS[unit]}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours.

    >>> duration(12.3), duration(7200)
    ('12 s', '2.0 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def print_plan(plan: Plan, *, title: str = "What a score takes", console: Console | None = None) -> None:
    """Print a plan, and what is not known of it.

    Args:
        title: such as the names of the model and the data.
        console: where to print; standard output by default.
    """
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=PLAIN_WIDTH)
    console.print(render(plan, title=title))


def render(plan: Plan, *, title: str = "What a score takes") -> RenderableType:
    """What :func:`print_plan` prints."""
    parts: list[RenderableType] = [_work(plan, title), _layouts(plan)]
    refused = dict.fromkeys(layout["refused"] for layout in plan.layouts if "refused" in layout)
    for sentence in (*refused, *plan.status):
        line = Table.grid(padding=(0, 1))
        line.add_row("•", Text(sentence))
        parts.append(line)
    return Group(*parts)


def _work(plan: Plan, title: str) -> Table:
    table = Table(title=escape(title), title_style="bold", title_justify="left", header_style="bold")
    for heading in ("What", "Number"):
        table.add_column(heading, justify="right" if heading == "Number" else "left", no_wrap=True)
    table.add_column("Which")
    frozen = plan.num_all_parameters - plan.num_parameters
    kept = f"{amount(plan.trainable_bytes)}, and {frozen:,} frozen: {amount(plan.parameter_bytes)} in all"
    table.add_row("trainable parameters", f"{plan.num_parameters:,}", kept)
    table.add_row("buffers", f"{plan.num_buffers:,}", amount(plan.buffer_bytes))
    table.add_row("batches", f"{plan.num_batches:,}", f"{plan.num_examples:,} examples, gone over {plan.sweeps} times")
    for name, passes in plan.passes.items():
        if any(passes.values()):
            table.add_row(f"passes of {name}", f"{passes['forwards']:,}", f"forward, and {passes['backwards']:,} back")
    by = f" by {plan.hvp_method.replace('_', ' ')}" if plan.hvp_method else ""
    table.add_row(
        "passes", f"{plan.forwards:,}", f"forward, and {plan.backwards:,} back; {plan.num_hvps:,} products{by}"
    )
    if plan.flops is not None:
        table.add_row("operations", f"{plan.flops:.3g}", "floating-point, of matrix products and attention")
    return table


def _layouts(plan: Plan) -> Table:
    table = Table(header_style="bold")
    for heading in ("Processes", "Weights", "Peak memory of each", "in", "Sent by each", "Time"):
        table.add_column(heading, justify="left" if heading in ("Weights", "in") else "right", no_wrap=True)
    for layout in plan.layouts:
        table.add_row(f"{layout['processes']:,}", layout["weights"], *_figures(layout))
    return table


def _figures(layout: dict[str, Any]) -> tuple[str, str, str, str]:
    if "refused" in layout:
        return "refused", "", "", ""
    peak, seconds = layout["peak_bytes"], layout["seconds"]
    return (
        "not known" if peak is None else amount(peak),
        layout["peak_in"] or "",
        amount(layout["wire_bytes"]),
        "not known" if seconds is None else duration(seconds),
    )
