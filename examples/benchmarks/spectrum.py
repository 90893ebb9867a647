"""The Hessian's top eigenvalues and trace of MiniLM beside hessian-eigenthings: values and time, in one run.

    python examples/benchmarks/spectrum.py --output spectrum.json
    python examples/benchmarks/spectrum.py --tweets 16 --steps 25 --repeats 1

The peer is installed by ``make benchmarks``.  Tweets are read from ``../shared/data/sentiment``.  All do the same
number of Lanczos steps with full reorthogonalization, in float32, and take turns; the reference is ours in float64,
where products are exact.  The trace is estimated from the same number of products by both, autograd's for the peer.
"""

from __future__ import annotations

import copy
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import TWEETS, Batch, minilm, pass_over, show, tweets
from torch import nn
from transformers import HfArgumentParser

from hf_pacgen import SpectrumConfig, hessian_spectrum
from hf_pacgen.results.spectrum import Spectrum


@dataclass
class Arguments:
    """What can be set; see ``--help``."""

    output: str = field(default="", metadata={"help": "Write all figures to this JSON file."})
    tweets: int = field(default=32, metadata={"help": "Tweets, in batches of 8."})
    length: int = field(default=32, metadata={"help": "Tokens of every tweet, cut or padded."})
    steps: int = field(default=25, metadata={"help": "Lanczos steps."})
    top: int = field(default=5, metadata={"help": "Eigenvalues."})
    probes: int = field(default=4, metadata={"help": "Probes for the trace, after the steps."})
    repeats: int = field(default=3, metadata={"help": "Timed repetitions; medians are reported."})
    reference_steps: int = field(default=40, metadata={"help": "Most Lanczos steps in float64; 0 leaves it out."})
    threads: int = field(default=0, metadata={"help": "Threads of torch; 0 leaves its choice."})


def ours(model: nn.Module, batches: list[Batch], arguments: Arguments, *, probes: int = 0) -> Spectrum:
    """As many steps as the peer does, converged or not."""
    config = SpectrumConfig(iterations=arguments.steps, tolerance=1e-14, probes=probes, density_iterations=1)
    return hessian_spectrum(model, batches, k=arguments.top, config=config, progress=False)


def peer_tasks(model: nn.Module, batches: list[Batch], arguments: Arguments) -> dict[str, Callable[[], list[float]]]:
    """Lanczos of the peer, by both of its products."""
    try:
        import hessian_eigenthings as peer
    except ImportError:
        pass_over("hessian-eigenthings")
        return {}

    def task(method: Any) -> Callable[[], list[float]]:
        operator = peer.HessianOperator(model, batches, lambda m, b: m(**b)["loss"], method=method)

        def run() -> list[float]:
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                found = peer.lanczos(
                    operator, k=arguments.top, max_iter=arguments.steps, reorthogonalize=True, which="LA", seed=0
                )
            return found.eigenvalues.tolist()

        return run

    names = {"hessian-eigenthings, autograd": "autograd", "hessian-eigenthings, differences": "finite_difference"}
    return {name: task(method) for name, method in names.items()}


def eigenvalue_rows(model: nn.Module, batches: list[Batch], arguments: Arguments) -> list[dict[str, Any]]:
    """Eigenvalues, their errors, and the time of each method over ours."""
    exact: list[float] = []
    if arguments.reference_steps:
        config = SpectrumConfig(iterations=arguments.reference_steps, tolerance=1e-3, probes=0)
        double = copy.deepcopy(model).double()
        began = time.perf_counter()
        reference = hessian_spectrum(double, batches, k=arguments.top, config=config, progress=False)
        exact = list(reference.eigenvalues)
        took = time.perf_counter() - began
        print(f"Reference in float64: {reference.iterations} steps, {took:.0f} s, converged: {reference.converged}")
        del double
    tasks: dict[str, Callable[[], list[float]]] = {
        "hf_pacgen": lambda: list(ours(model, batches, arguments).eigenvalues),
        **peer_tasks(model, batches, arguments),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    values: dict[str, list[float]] = {}
    for _ in range(arguments.repeats):
        for name, task in tasks.items():
            gc.collect()
            began, worked = time.perf_counter(), time.process_time()
            values[name] = task()
            times[name].append((time.perf_counter() - began, time.process_time() - worked))
            print(f"{name}: {times[name][-1][0]:.1f} s", flush=True)
    # on a machine that others use, the processor's time tells more than the clock
    wall, cpu = ({name: statistics.median(t[i] for t in taken) for name, taken in times.items()} for i in (0, 1))
    rows = []
    for name, found in values.items():
        row: dict[str, Any] = {"method": name, "seconds": wall[name], "processor seconds": cpu[name]}
        row["time / ours"] = cpu[name] / cpu["hf_pacgen"]
        row |= {f"λ_{i + 1}": value for i, value in enumerate(found)}
        if exact:
            row["largest relative error"] = max(abs(a - b) / abs(b) for a, b in zip(found, exact, strict=True))
        rows.append(row)
    if exact:
        rows.append({"method": "ours in float64", **{f"λ_{i + 1}": value for i, value in enumerate(exact)}})
    return rows


def trace_rows(model: nn.Module, batches: list[Batch], arguments: Arguments) -> list[dict[str, Any]]:
    """The trace from as many products: after the eigenvalues' steps, a few probes beside them; the peer's Hutch++."""
    result = ours(model, batches, arguments, probes=arguments.probes)
    products = arguments.steps + arguments.probes
    rows: list[dict[str, Any]] = [
        {"method": "hf_pacgen", "products": products, "trace": result.trace, "standard error": result.trace_stderr}
    ]
    try:
        import hessian_eigenthings as peer
    except ImportError:
        return rows
    operator = peer.HessianOperator(model, batches, lambda m, b: m(**b)["loss"])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        found = peer.trace(operator, num_matvecs=products, method="hutch++", seed=0)
    rows.append(
        {
            "method": "hessian-eigenthings, Hutch++",
            "products": products,
            "trace": found.estimate,
            "standard error": found.stderr,
        }
    )
    return rows


def main() -> None:
    """Measure, print and write."""
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()  # type: ignore[arg-type]
    if not TWEETS.is_file():
        sys.exit("The tweets of ../shared/data are not here, and this benchmark has no other data.")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    # batches of 8, so that an unweighted mean over batches, as the peer takes it, is right too
    model, batches = minilm(), tweets(arguments.tweets, 8, length=arguments.length)
    figures: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads(), **vars(arguments)}
    figures["eigenvalues"] = eigenvalue_rows(model, batches, arguments)
    show(
        f"{arguments.steps} Lanczos steps on MiniLM, {arguments.tweets} tweets of {arguments.length} tokens",
        figures["eigenvalues"],
    )
    figures["trace"] = trace_rows(model, batches, arguments)
    show("The trace", figures["trace"])
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
