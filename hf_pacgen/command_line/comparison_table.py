"""A comparison for people: a row for every run, the order by every measure, and a verdict."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_pacgen.command_line.comparison_file import correlations
from hf_pacgen.command_line.printing import print_notes
from hf_pacgen.errors import few
from hf_pacgen.maths.rank_correlation import rank_interval
from hf_pacgen.measures.ranking import Order, orders, ranked, stderr_of, unranked
from hf_pacgen.results.measures import MEASURES, Measures
from hf_pacgen.show.tables import number, percent, spread

WIDTH = 80  # where the output is no terminal
OTHER = "other loss:"
NAME = 26  # most columns of a run's name in one line
FIRST = "loss test_loss gap kl_complexity kl_complexity_per_parameter relative_sharpness kl_curvature".split()
"""What is looked at first; the others follow in the order of their results."""
DECIDES = ("kl_complexity_per_parameter", "kl_complexity")
"""By what the verdict is made: K(η), per parameter between sizes, which went with the gap best."""


def natural(name: str) -> list[Any]:
    """A key that sorts checkpoint-200 before checkpoint-1000."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def print_comparison(rows: Sequence[Measures], *, reused: int = 0, left_out: Sequence[str] = ()) -> None:
    """Print a row for every run, what does not fit below, the order and a verdict, and what limits the numbers."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    examples = " / ".join(f"{n:,}" for n in sorted({row.num_examples for row in rows}))
    count = f"{len(rows)} run{'s' * (len(rows) != 1)}"
    title = f"{count} on {examples} training examples (η = {number(rows[0].eta)}); lower is better"
    chosen = ranked([row.loss for row in rows])
    for table in _tables(rows, chosen, console.width):
        table.title, title = title, ""
        console.print(table, "")
    found = orders(rows)
    _print_order(console, found)
    _print_correlations(console, rows, len(chosen))
    if len(rows) > 1:
        console.print(f"[bold]Verdict:[/] {escape(verdict(rows, found))}", highlight=False)
    if len({row.num_parameters for row in rows}) > 1:  # a sum over more weights is larger by itself
        console.print("The runs differ in their number of parameters: compare Ψ/m and K(η)/m.", highlight=False)
    said: dict[str, list[str]] = {}  # a sentence on several runs is printed once
    for row in rows:
        for sentence in row.status:
            said.setdefault(sentence, []).append(row.name)
    of_all = len(rows) if len(rows) > 1 else 0
    notes = [s if len(names) == of_all else f"{', '.join(names)}: {s}" for s, names in said.items()]
    if reused:
        notes.append(f"{reused} of {count} were in the file already, and were not measured again.")
    if left_out:
        notes.append(f"The file had other runs, which were not named and are no longer in it: {few(left_out)}.")
    print_notes(console, notes)


def _columns(rows: Sequence[Measures]) -> list[str]:
    known = [field for field in MEASURES if any(getattr(row, field) is not None for row in rows)]
    if len({row.num_parameters for row in rows}) == 1:  # both have the same order
        known = [field for field in known if not field.endswith("_per_parameter")]
    return [field for field in FIRST if field in known] + [field for field in known if field not in FIRST]


def _tables(rows: Sequence[Measures], chosen: Sequence[int], width: int) -> list[Table]:
    """As many tables as it takes for every number to stay on one line, each with the runs' names."""
    name = max(len(OTHER), min(NAME, max(len(row.name) for row in rows)))
    made: list[list[str]] = [[]]
    room = width - name
    for field in _columns(rows):
        needed = _width(rows, field) + 2  # with what is between columns
        if needed > room and made[-1]:
            made.append([])
            room = width - name
        made[-1].append(field)
        room -= needed
    return [_table(rows, chosen, fields, name) for fields in made]


def _width(rows: Sequence[Measures], field: str) -> int:
    head = max(map(len, MEASURES[field].split()))
    return max(head, *(len(_cell(row, field)) for row in rows))


def _table(rows: Sequence[Measures], chosen: Sequence[int], fields: Sequence[str], name: int) -> Table:
    style: dict[str, Any] = {"title_style": "bold", "title_justify": "left", "header_style": "bold"}
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, **style)
    table.add_column("run", width=name, overflow="fold")
    for field in fields:
        table.add_column(MEASURES[field].strip(), justify="right", width=_width(rows, field), vertical="bottom")
    apart = [i for i in range(len(rows)) if i not in chosen] if chosen else []
    for i in chosen or range(len(rows)):
        table.add_row(escape(rows[i].name), *(_cell(rows[i], field) for field in fields))
    if apart:
        table.add_section()
        table.add_row(OTHER, style="italic")
        for i in apart:
            table.add_row(escape(rows[i].name), *(_cell(rows[i], field) for field in fields))
    return table


def _cell(row: Measures, field: str) -> str:
    value = getattr(row, field)
    if value is None:  # in a file of an older release, say
        return ""
    if field.endswith("fraction"):
        return percent(value)
    # Lanczos finds it from below
    if field == "largest_eigenvalue" and not row.largest_eigenvalue_converged:
        return f"≥ {number(value)}"
    return number(value) + spread(stderr_of(row, field))


def _print_order(console: Console, found: dict[str, Order]) -> None:
    if not found:
        return
    console.print("[bold]Runs of equal training loss by each measure, lowest first[/]")
    for field, made in found.items():
        if field not in ("loss",):  # which is equal, by what they were chosen for
            console.print(f"  {Measures.facts()[field].label}: {escape(str(made))}", highlight=False)
    if any(True in made.tied for made in found.values()):
        console.print("  ≈: not distinguishable, since the 95 % intervals overlap.", highlight=False)
    if any(not made.is_judged for made in found.values()):
        console.print("  ?: a standard error is unknown, so ties cannot be judged.", highlight=False)


def _print_correlations(console: Console, rows: Sequence[Measures], count: int) -> None:
    if not (found := correlations(rows)):
        return
    head = f"Rank correlation with the gap, n = {count} runs of equal training loss (95 % interval)"
    console.print(f"[bold]{escape(head)}[/]", highlight=False)
    for field, value in found.items():
        low, high = rank_interval(value, count)
        line = f"  {Measures.facts()[field].label}: {value:+.2f} [{low:+.2f}, {high:+.2f}]"
        console.print(escape(line), highlight=False)


def verdict(rows: Sequence[Measures], found: dict[str, Order]) -> str:
    """One line: which run is lowest, and whether it can be told from the next; or why there is none."""
    left = unranked(rows)
    made = next((found[field] for field in DECIDES if field in found), None)
    if made is None:
        return left or "none, since K(η) is not known of all runs."
    label = "K(η)/m" if DECIDES[0] in found else "K(η)"
    lead = _lead(made)
    if made.tied[0] is None:
        first = f"{lead[0]} is lowest by {label}; whether it can be told from {made.names[1]} is unknown."
    elif len(lead) == 1:
        first = f"{lead[0]} is lowest by {label}, of {len(made.names)} runs of equal training loss."
    else:
        first = f"no single one: {' ≈ '.join(lead)} are lowest by {label}, and cannot be told apart."
    other = found.get("relative_sharpness")
    if other is not None and not set(_lead(other)) & set(lead):
        first += f" By relative sharpness it is {' ≈ '.join(_lead(other))}: the two do not agree."
    return f"{first} {left}" if left else first


def _lead(order: Order) -> Sequence[str]:
    """The lowest run, and those that cannot be told from it."""
    return order.names[: next((i for i, tie in enumerate(order.tied, start=1) if tie is False), len(order.names))]
