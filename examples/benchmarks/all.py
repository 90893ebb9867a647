"""Every figure that was promised, measured and wanted, in one table; runs the benchmarks whose results are missing.

python examples/benchmarks/all.py               # runs what has no file in results/ yet, then prints the table
python examples/benchmarks/all.py --again       # measures everything anew (hours)
python examples/benchmarks/all.py --read_only   # only prints the table
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import HfArgumentParser

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
EVIDENCE = HERE.parent / "evidence" / "correlations.json"
NAMES = ("curvature", "losses", "coverage_of_errors", "spectrum", "noise", "certificate", "promises", "scale", "house")
LEVELS = tuple(f"relative sharpness[{level}]" for level in ("0.03", "0.1", "0.3", "1"))
Figure = tuple[str, float, str, float]
"""What, measured, "<=" or ">=", wanted."""


@dataclass
class Arguments:
    """What can be set; see ``--help``."""

    again: bool = field(default=False, metadata={"help": "Measure everything anew."})
    read_only: bool = field(default=False, metadata={"help": "Measure nothing."})


def find(rows: list[dict[str, Any]], key: str, value: str) -> dict[str, Any]:
    """The row whose ``key`` is, or begins with, a value."""
    return next((row for row in rows if str(row.get(key, "")).startswith(value)), {})


def curvature(found: dict[str, Any]) -> Iterator[Figure | None]:
    """Figures of ``curvature.py``."""
    for row in found.get("diagonal", []):
        if "hutchinson, 16 / curvlinops, 8 products" in row:
            ratio = row["hutchinson, 16 / curvlinops, 8 products"]
            yield "diagonal: error of Hutchinson / curvlinops, digits", ratio, "<=", 1 / 3
            yield (
                "diagonal: error of the blend / curvlinops, digits",
                row["blend, 17 / curvlinops, 8 products"],
                "<=",
                1 / 5,
            )
        for budget in ("3", "17"):
            ratio = row.get(f"blend / better part, {budget}")
            yield (
                None
                if ratio is None
                else (f"blend / better part, {row['model']}, {budget} gradients", ratio, "<=", 1.15)
            )
    rows = found.get("products", [])
    auto, one, many = (find(rows, "method", n) for n in ("auto", "hutchinson, probes: 1", "hutchinson, probes: 16"))
    memory, buffers = "extra memory / gradient's", "over a gradient, in parameter-sized buffers"
    if auto:
        yield "product: time / gradient, MiniLM", auto["time / gradient"], "<=", 2.2
        yield "product: relative error", auto["relative error"], "<=", 1e-3
    if memory in auto and one:
        yield "product: extra memory / gradient's", auto[memory], "<=", 1.5
        many = next(row for row in rows if row["method"] == "hutchinson, probes: 16")
        yield "memory with 16 probes / with 1", many[memory] / one[memory], "<=", 1.05
        yield "score: buffers over a gradient", find(rows, "method", "pacgen()")[buffers], "<=", 3.0
    for row in found.get("cost", []):
        yield (
            f"score of 512 tweets, {row['estimator']}: gradient passes",
            row["gradient passes"],
            "<=",
            row["wanted at most"],
        )


def spectrum(found: dict[str, Any]) -> Iterator[Figure | None]:
    """Figures of ``spectrum.py``."""
    for row in found.get("eigenvalues", []):
        if str(row["method"]).startswith("hessian-eigenthings"):
            yield f"spectrum: time of {row['method']} / ours", row["time / ours"], ">=", 1.0


def noise(found: dict[str, Any]) -> Iterator[Figure | None]:
    """Figures of ``noise.py``."""
    step = found.get("step", [])
    price = find(step, "training", "shaped noise, price").get("step / plain step")
    yield None if price is None else ("noise: step / plain step, MiniLM", price, "<=", 1.10)
    ivon = find(step, "training", "IVON").get("step / plain step")
    yield None if price is None or ivon is None else ("noise: its step / IVON's", price / ivon, "<=", 1.0)
    buffers = "over plain, in parameter-sized buffers"
    used = find(found.get("memory", []), "training", "shaped noise, price").get(buffers)
    yield None if used is None else ("noise: buffers over plain training", used, "<=", 2.0)
    for row in found.get("mnist", []):
        wanted = 0.9 if row["labels"].startswith("0 %") else 3.5
        if row["training"] == "shaped, default":  # the other rows say what was tried
            yield f"MNIST, {row['labels']}: {row['training']}, points over plain", row["over plain"], ">=", wanted
    for row in found.get("tweets", []):
        if row["training"].startswith("shaped"):
            yield f"500 tweets: {row['training']}, points over plain", row["over plain"], ">=", 0.0


def certificate(found: list[dict[str, Any]]) -> Iterator[Figure | None]:
    """Figures of ``certificate.py``."""
    wanted: dict[str, Callable[[dict[str, Any]], float]] = {
        "MiniLM + head, prior N": lambda row: 0.25,
        "MiniLM + head, prior of half": lambda row: 1.25 * row["test_error"] + 0.02,
        "MiniLM + LoRA": lambda row: row["majority_error"],
        "MNIST": lambda row: 0.03,
    }
    for name, limit in wanted.items():
        if row := find(found, "name", name):
            yield f"certified error, {row['name']}", row["certified"], "<=", limit(row)


def promises(found: dict[str, Any]) -> Iterator[Figure | None]:
    """Figures of ``promises.py``: what fails too often, and what progressive promises beside half of the data."""
    for name, by_size in found.items():
        for count, draws in by_size.items():
            rows = list(draws.values())
            for way in dict.fromkeys(way for row in rows for way in row):
                pairs = [row[way] for row in rows if way in row]
                failed, most = sum(bound < true for bound, true, _ in pairs) / len(pairs), 0.05
                # as many as so few draws may have where the probability is δ
                most += 2 * (most * (1 - most) / len(pairs)) ** 0.5
                yield f"{name}, {int(count):,} examples, {way}: failed of {len(pairs)}", failed, "<=", most
            if int(count) <= 1000:
                gaps = [100 * (row["progressive"][0] - row["split 0.5"][0]) for row in rows]
                what = f"{name}, {int(count):,} examples: progressive over half, points"
                yield what, sum(gaps) / len(gaps), "<=", 0.0


def scale(found: dict[str, Any]) -> Iterator[Figure | None]:
    """Figures of ``scale.py``."""
    if "throughput" in found:
        yield "throughput of 2 processes / 1", found["throughput"]["ratio"], ">=", 1.85
    if "linear" in found:
        yield "time of a product ~ parameters^x, x", found["linear"]["exponent"], "<=", 1.1
    if "large" in found:
        row = found["large"][0] if isinstance(found["large"], list) else found["large"]
        yield "494M parameters: peak / weights", row["peak / weights"], "<=", 6.0


def house(found: dict[str, Any]) -> Iterator[Figure | None]:
    """Figures of ``house.py``."""
    for part in ("entered", "files", "cost"):
        for row in found.get(part, []):
            if row["goal"] is not None:
                yield row["way"], row["now"], "<=", row["goal"]


def evidence(found: dict[str, Any]) -> Iterator[Figure | None]:
    """Kendall's τ with the gap in loss, from the runs of ``generalization_sweep.py``."""
    lenets = found.get("lenet", {}).get("rows", {}).get("gap in loss", [])
    names = ("K/m[0.1, max of 2]", "K/m[1 rms, median]", "kl_excess/m[1 rms, median]", "kl_curvature/m")
    others = [find(lenets, "measure", n) for n in ("trace", "lambda_max", *LEVELS)]
    for name in names:
        row = find(lenets, "measure", name)
        if row and all(others):
            best = max(other["granulated"] for other in others)
            yield (
                f"LeNets, {name}: granulated τ, beside trace, λ_max and relative sharpness",
                row["granulated"],
                ">=",
                best,
            )
    for task, wanted in (("vit", 0.5), ("wrong", 0.38)):
        row = find(found.get(task, {}).get("rows", {}).get("gap in loss", []), "measure", names[1])
        if row:
            yield f"{task}, {names[1]}: granulated τ", row["granulated"], ">=", wanted


def losses(found: dict[str, Any]) -> Iterator[Figure | None]:
    """Error of the blend's diagonal by loss, of ``losses.py``."""
    for kind, row in found.items():
        for name, ratio in row.items():
            if name.startswith("blend / better"):
                yield f"{kind}, {name} gradients", ratio, "<=", 1.15


def coverage(found: dict[str, Any]) -> Iterator[Figure | None]:
    """How often ± holds, of ``coverage_of_errors.py``: the least of all values of a network."""
    for network, parts in found.items():
        for part in ("all examples", "half of them"):
            row = {name: value["covered"] for name, value in parts[part].items() if value["covered"] is not None}
            if row:
                least = min(row, key=lambda name: row[name])
                yield f"{network}, {part}: 95 % intervals with the exact value, least ({least})", row[least], ">=", 0.85


READERS: dict[str, Callable[[Any], Iterator[Figure | None]]] = {
    "curvature": curvature,
    "losses": losses,
    "coverage_of_errors": coverage,
    "spectrum": spectrum,
    "noise": noise,
    "certificate": certificate,
    "promises": promises,
    "scale": scale,
    "house": house,
}


def shown(figure: Figure) -> tuple[str, str, str, str]:
    """The cells of a figure."""
    what, measured, relation, wanted = figure
    met = measured <= wanted if relation == "<=" else measured >= wanted

    def number(value: float) -> str:
        return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"

    return what, number(measured), f"{relation} {number(wanted)}", "" if met else "missed"


def main() -> None:
    """Measure what is missing, and print the table."""
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()  # type: ignore[arg-type]
    RESULTS.mkdir(exist_ok=True)
    table = Table("benchmark", "figure", "measured", "wanted", "", title="hf_pacgen, measured")
    for name in NAMES:
        path = RESULTS / f"{name}.json"
        if not arguments.read_only and (arguments.again or not path.is_file()):
            subprocess.run([sys.executable, str(HERE / f"{name}.py"), "--output", str(path)], check=True)
        if not path.is_file():
            table.add_row(name, "not measured", "", "", "")
            continue
        for figure in READERS[name](json.loads(path.read_text(encoding="utf-8"))):
            if figure is not None:
                table.add_row(name, *shown(figure))
    if EVIDENCE.is_file():
        for figure in filter(None, evidence(json.loads(EVIDENCE.read_text(encoding="utf-8")))):
            table.add_row("evidence", *shown(figure))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
