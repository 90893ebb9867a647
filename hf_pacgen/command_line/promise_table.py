"""A promise as the command prints it."""

from __future__ import annotations

from collections.abc import Iterator

from hf_pacgen.command_line.printing import open_console, print_notes, quantities
from hf_pacgen.results.certificate import rounded_up
from hf_pacgen.results.promise import ABSTAIN, SETS, Promise, rounded_down
from hf_pacgen.show.tables import number


def print_promise(result: Promise, *, title: str) -> None:
    """Print the statement, the numbers it stands on, and what was taken for granted."""
    console = open_console()
    console.print(f"[bold]{result.statement}[/]\n", highlight=False)
    console.print(quantities(title, _rows(result)))
    print_notes(console, result.notes)


def _rows(result: Promise) -> Iterator[tuple[str, str, str]]:
    errors = f"{result.num_errors:,} errors" if result.num_errors is not None else f"mean {result.loss}"
    yield "bound", rounded_up(result.error_bound), f"on the expected error of a new {result.unit} ({result.method})"
    yield "held-out error", number(result.mean_loss), f"{errors} on the {result.num_examples:,} held-out {result.unit}s"
    if result.rule is not None and result.threshold is not None:
        # what is promised is rounded down, as in the statement
        what = {ABSTAIN: "least confidence at which to answer", SETS: "least probability of a class in the set"}
        yield "threshold", f"{result.threshold:.6g}", what[result.rule]
        covers = {ABSTAIN: "answered", SETS: "hold the label"}[result.rule]
        yield "coverage", f"{100 * (result.coverage or 0):.1f} %", f"of the held-out {result.unit}s {covers}"
        yield "  promised", rounded_down(result.coverage_bound or 0), f"of new {result.unit}s, at least"
    if result.set_size is not None:
        yield "set size", f"{result.set_size:.2f}", "classes in a set, on average"
    yield "δ", number(result.delta), "probability that any of this fails"
    if result.share != result.delta:
        yield "  of each bound", number(result.share), "its part, for each promise and each candidate"
    if result.num_candidates > 1:
        yield "candidates", f"{result.num_candidates:,}", "compared on these examples, and paid for"
