"""What the commands print: tables of quantities, and sentences under them."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from hf_pacgen.show.advice import consistent
from hf_pacgen.show.tables import PLAIN_WIDTH


def open_console(widest: RenderableType | None = None) -> Console:
    """Standard output; in a file it is as wide as a page, or as ``widest`` needs."""
    console = Console()
    if console.is_terminal:  # rich asks it for its width
        return console
    needed = 0 if widest is None else Console(width=10_000).measure(widest).maximum
    return Console(width=max(PLAIN_WIDTH, needed))


def titled(title: str) -> Table:
    """A table without columns yet."""
    return Table(title=escape(title), title_style="bold", title_justify="left", header_style="bold")


def quantities(title: str, rows: Iterable[tuple[str, str, str]]) -> Table:
    """Quantities with their values, and what these say."""
    table = titled(title)
    table.add_column("Quantity", no_wrap=True)
    table.add_column("Value", justify="right", no_wrap=True)  # digits must not be folded
    table.add_column("What it says")
    for row in rows:
        table.add_row(*map(escape, row))  # a name in brackets is no markup
    return table


def print_notes(console: Console, notes: Iterable[str]) -> None:
    """What limits the numbers, a sentence a line."""
    for note in consistent(notes):
        console.print(f"• {escape(note)}", highlight=False)
