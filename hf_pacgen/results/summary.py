"""A result in about ten lines: what ``print(result)`` and a notebook show."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Mapping
from typing import Any

LINES = 10
WIDTH = 100
ORIGIN = ("model", "data")


def rows(result: Any) -> list[tuple[str, str]]:
    """What is shown of a result: its measures with their standard errors, then a few facts, as label and value."""
    facts = result.facts()
    found = [
        (facts[name].label, _value(result, name))
        for name in facts
        if facts[name].label and not facts[name].legacy and not facts[name].detail and _has(result, name)
    ]
    left_out = {name for name in facts if facts[name].label} | {_error(name) for name in facts}
    others = [
        (name.replace("_", " "), _value(result, name))
        for name in facts
        if name not in left_out and _has(result, name) and not isinstance(getattr(result, name), Mapping)
    ]
    others = [entry for entry in others if entry[0] not in ("status", "notes")]  # sentences have a line of their own
    return [*found, *others][:LINES]


def _error(name: str) -> str:
    return "stderr" if name == "mean" else f"{name}_stderr"


def text(result: Any) -> str:
    """The table in plain letters, with the first note and how many there are."""
    table = rows(result)
    width = max((len(label) for label, _ in table), default=0)
    lines = [f"{type(result).__name__}{_of(result)}", *(f"  {label:<{width}}  {value}" for label, value in table)]
    return "\n".join([*lines, *_notes(result)])


def as_html(result: Any) -> str:
    """The same for a notebook."""
    body = "".join(
        f"<tr><td style='text-align:left'>{html.escape(label)}</td><td>{html.escape(value)}</td></tr>"
        for label, value in rows(result)
    )
    notes = "".join(f"<p>{html.escape(line.strip())}</p>" for line in _notes(result))
    head = html.escape(f"{type(result).__name__}{_of(result)}")
    return f"<div><strong>{head}</strong><table>{body}</table>{notes}</div>"


def _has(result: Any, name: str) -> bool:
    value = getattr(result, name)
    return value is not None and value != () and value != {} and not (isinstance(value, float) and math.isnan(value))


def _value(result: Any, name: str) -> str:
    value, facts = getattr(result, name), result.facts()[name]
    error = getattr(result, _error(name), None)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _plain(value)
    if isinstance(value, int):
        return f"{value:,}"
    shown = f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    shown += f" ± {error:.2g}" if isinstance(error, float) and error else ""
    return f"{shown} {facts.unit}".rstrip()


def _plain(value: Any) -> str:
    if hasattr(value, "shape"):  # a tensor, of which nobody wants the elements here
        return f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"{len(value)} entries"
    if isinstance(value, (tuple, list)):
        few = ", ".join(f"{entry:.4g}" if isinstance(entry, float) else str(entry) for entry in value[:4])
        return few + (f", ... ({len(value)})" if len(value) > 4 else "")
    return textwrap.shorten(str(getattr(value, "value", value)), 70, placeholder=" ...")


def _of(result: Any) -> str:
    origin = getattr(result, "origin", None) or {}
    names = [origin.get(part, {}).get("name") for part in ORIGIN]
    known = [textwrap.shorten(_plain(name), 40, placeholder=" ...") for name in names if name]
    return f" of {' on '.join(known)}" if known else ""


def _notes(result: Any) -> list[str]:
    notes = list(result.notes)
    if not notes:
        return []
    more = f" (and {len(notes) - 1} more in .notes)" if len(notes) > 1 else ""
    return [textwrap.shorten(f"! {notes[0]}", WIDTH - len(more), placeholder=" ...") + more]
