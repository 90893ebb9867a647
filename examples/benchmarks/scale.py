"""Scale: throughput of two processes, peak memory of a large model, cost against the number of parameters.

    python examples/benchmarks/scale.py --output examples/benchmarks/results/scale.json
    python examples/benchmarks/scale.py --parts linear large
    python examples/benchmarks/scale.py --parts plans    # what plan() says, against scores that are run

Every figure is measured in processes of its own with one thread each.  The rows of a GPU (GPT-2 small beside
curvlinops and hessian-eigenthings, an 8B Llama) are measured where there is one.  ``large`` takes up to 12 GB.
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from common import TWEETS, absent, gradients, interleaved, minilm, pass_over, record, show, tweets
from rich.console import Console
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from hf_pacgen import ScoreConfig, hessian_vector_product, pacgen, plan

PARTS = ["throughput", "linear", "large", "plans", "gpt2_cuda", "llama_cuda"]
WANTED = {"throughput": 1.85, "exponent": 1.1, "peak / weights": 6.0, "planned memory": 0.15, "planned time": 0.30}


@dataclass
class Arguments:
    """What can be set; see ``--help``."""

    output: str = field(default="", metadata={"help": "Write all figures to this JSON file; parts not run stay."})
    parts: list[str] = field(default_factory=lambda: list(PARTS), metadata={"help": f"Which of {', '.join(PARTS)}."})
    rounds: int = field(default=3, metadata={"help": "Times that one and two processes take turns; the best counts."})
    tweets: int = field(default=256, metadata={"help": "Tweets of the throughput."})
    batch_size: int = field(default=1, metadata={"help": "Sequences in a batch of the large model, of 8 in all."})
    case: str = field(default="", metadata={"help": "Case of a plan; used by the others."})
    worker: str = field(default="", metadata={"help": "The part to measure in this very process; used by the others."})


# ----------------------------------------------------------------------------------------- parts, each in a process


def throughput(arguments: Arguments) -> dict[str, Any]:
    """Seconds of one score of MiniLM; the processes of ``torchrun`` share the batches out."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, batches = minilm(), tweets(arguments.tweets, 8)
    pacgen(model, batches[:2], accelerator=accelerator, progress=False)  # memory is touched, kernels are chosen
    accelerator.wait_for_everyone()
    result = pacgen(model, batches, accelerator=accelerator, progress=False)
    return {"seconds": result.seconds, "score": result.score, "trace": result.hessian_trace}


def linear(arguments: Arguments) -> dict[str, Any]:
    """Time of a Hessian-vector product of GPT-2-like models, four layers each, on the same 4 x 64 tokens."""
    times, sizes = {}, []
    for width in (144, 288, 576, 1152):
        config = GPT2Config(
            vocab_size=512, n_embd=width, n_layer=4, n_head=width // 48, n_positions=64, bos_token_id=0, eos_token_id=0
        )
        torch.manual_seed(0)
        model, tokens = GPT2LMHeadModel(config).eval(), torch.randint(512, (4, 64))
        batch, size = {"input_ids": tokens, "labels": tokens}, sum(p.numel() for p in model.parameters())
        vector = {name: torch.randn_like(p) for name, p in model.named_parameters()}
        tasks: dict[str, Callable[[], Any]] = {"gradient": lambda m=model, b=batch: gradients(m, [b])}
        tasks["product"] = lambda m=model, b=batch, v=vector: hessian_vector_product(m, [b], v)
        times[size] = interleaved(tasks, 5)
        sizes.append(size)
    logs = [(math.log(size), math.log(times[size]["product"])) for size in sizes]
    slope = statistics.linear_regression(*zip(*logs, strict=True)).slope
    return {"seconds": {str(size): times[size] for size in sizes}, "exponent": slope}


def large(arguments: Arguments) -> dict[str, Any]:
    """A Qwen2-0.5B-shaped model of random weights, float32, on 8 sequences of 128 tokens."""
    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).eval()
    tokens = torch.randint(config.vocab_size, (8, 128))
    batches = [{"input_ids": part, "labels": part} for part in tokens.split(arguments.batch_size)]
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    began = time.perf_counter()
    gradients(model, batches)
    gradient = time.perf_counter() - began
    peak_of_gradient = _peak()
    model.zero_grad(set_to_none=True)
    result = pacgen(model, batches, config=ScoreConfig(passes=1), progress=False)
    equivalents = (2 * result.num_hvps + result.num_gradients) / len(batches)
    return {
        "parameters": result.num_parameters,
        "sequences in a batch": arguments.batch_size,
        "weights, GB": weights / 1e9,
        "peak / weights": _peak() / weights,
        "peak of a gradient / weights": peak_of_gradient / weights,
        "seconds": result.seconds,
        "seconds of a gradient of all data": gradient,
        "gradients of all data": result.seconds / gradient,
        "seconds per gradient-equivalent": result.seconds / equivalents,
        "loss": result.loss,
        "rho": result.hessian_lipschitz,
    }


CASES: dict[str, tuple[torch.dtype, tuple[int, int], dict[str, Any]]] = {
    "float32, small batches": (torch.float32, (1, 32), {"passes": 1}),
    "float32, large batches": (torch.float32, (8, 128), {"passes": 1}),
    "float32, Gauss-Newton alone": (
        torch.float32,
        (4, 64),
        {"passes": 1, "estimator": "gauss_newton", "lipschitz_directions": 0},
    ),
    "float32, reverse over reverse": (torch.float32, (2, 64), {"passes": 1, "hvp": "reverse_over_reverse"}),
    "bfloat16": (torch.bfloat16, (1, 32), {"passes": 1}),
}
"""Data type, sequences and tokens of a batch, settings."""


def case(name: str) -> tuple[nn.Module, list[dict[str, Tensor]], ScoreConfig]:
    """A GPT-2-like model of 16M parameters, and 6 batches."""
    dtype, shape, settings = CASES[name]
    sizes: dict[str, Any] = {"vocab_size": 4096, "n_embd": 512, "n_layer": 4, "n_head": 8, "n_positions": 128}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).to(dtype).eval()
    tokens = [torch.randint(4096, shape) for _ in range(6)]
    return model, [{"input_ids": t, "labels": t} for t in tokens], ScoreConfig(**settings)


def planned(arguments: Arguments) -> dict[str, Any]:
    """What plan() says of a case."""
    model, batches, config = case(arguments.case)
    began = time.perf_counter()
    made = plan(model, batches, config=config, progress=False)
    layout = made.layout()
    figures = {"forwards": made.forwards, "backwards": made.backwards, "peak, MB": layout["peak_bytes"] / 1e6}
    return figures | {"seconds": made.seconds, "seconds of the plan": time.perf_counter() - began}


def scored(arguments: Arguments) -> dict[str, Any]:
    """What its score takes: memory as the system sees it, without what Python and the libraries have."""
    model, batches, config = case(arguments.case)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    warm = torch.zeros(1, 2, dtype=torch.long)  # what is loaded with the first pass is not the score's
    tiny = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=8, bos_token_id=0, eos_token_id=0))
    pacgen(tiny, [{"input_ids": warm, "labels": warm}], progress=False)
    before = psutil.Process().memory_info().rss - weights
    result = pacgen(model, batches, config=config, progress=False)
    return {"peak, MB": (_peak() - before) / 1e6, "seconds": result.seconds}


def compare_plans(arguments: Arguments) -> list[dict[str, Any]]:
    rows = []
    for name in CASES:
        arguments.case = name
        said, real = measure("planned", arguments), measure("scored", arguments)
        rows.append(
            {
                "case": name,
                "backwards": said["backwards"],
                "peak planned, MB": said["peak, MB"],
                "peak, MB": real["peak, MB"],
                "ratio of peaks": said["peak, MB"] / real["peak, MB"],
                "seconds planned": said["seconds"],
                "seconds": real["seconds"],
                "ratio of seconds": said["seconds"] / real["seconds"],
                "seconds of the plan": said["seconds of the plan"],
            }
        )
    return rows


def _peak() -> float:
    """Peak resident memory of this process, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def gpt2_cuda(arguments: Arguments) -> list[dict[str, Any]]:
    """One Hessian-vector product of GPT-2 small over one gradient, beside two peers."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config()).to("cuda", dtype).eval()
        tokens = torch.randint(50257, (8, 512), device="cuda")
        batch = {"input_ids": tokens, "labels": tokens}
        vector = {name: torch.randn_like(p) for name, p in model.named_parameters()}
        tasks: dict[str, Callable[[], Any]] = {
            "gradient": lambda m=model, b=batch: gradients(m, [b]),
            "hf_pacgen": lambda m=model, b=batch, v=vector: hessian_vector_product(m, [b], v),
            **peer_products(model, batch, vector),
        }
        times = interleaved({name: _synchronized(task) for name, task in tasks.items()}, 5)
        memory = {name: _peak_on_gpu(task) for name, task in tasks.items()}
        for name in tasks:
            rows.append(
                {
                    "weights": str(dtype).removeprefix("torch."),
                    "what": name,
                    "time / gradient": times[name] / times["gradient"],
                    "peak / gradient's": memory[name] / memory["gradient"],
                }
            )
    return rows


def peer_products(model: nn.Module, batch: dict[str, Tensor], vector: dict[str, Tensor]) -> dict[str, Any]:
    """The same product by those peers that are installed."""
    tasks: dict[str, Any] = {}
    flat = torch.cat([v.reshape(-1) for v in vector.values()])
    math_only = torch.nn.attention.SDPBackend.MATH

    def shifted(logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())

    try:
        from hessian_eigenthings import HessianOperator
    except ImportError:
        pass_over("hessian-eigenthings")
    else:
        operator = HessianOperator(model, [batch], lambda m, b: m(**b)["loss"])

        def eigenthings() -> Tensor:
            with torch.nn.attention.sdpa_kernel(math_only):
                return operator.matvec(flat)

        tasks["hessian-eigenthings"] = eigenthings
    try:
        from curvlinops.hessian import HessianLinearOperator
    except ImportError:
        pass_over("curvlinops")
    else:

        class Logits(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, x: dict[str, Tensor]) -> Tensor:
                return self.model(input_ids=x["input_ids"])["logits"]

        class Shifted(nn.CrossEntropyLoss):
            def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
                return shifted(logits, labels)

        peer = HessianLinearOperator(
            Logits(),
            Shifted(),
            list(model.parameters()),
            [({"input_ids": batch["input_ids"]}, batch["labels"])],
            check_deterministic=False,
            batch_size_fn=lambda x: x["input_ids"].shape[0],
        )

        def curvlinops() -> Tensor:
            with torch.nn.attention.sdpa_kernel(math_only):
                return peer @ flat

        tasks["curvlinops"] = curvlinops
    return tasks


def llama_cuda(arguments: Arguments) -> dict[str, Any]:
    """The score of an 8B Llama of random bfloat16 weights on one batch of 1 x 512 tokens."""
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    tokens = torch.randint(config.vocab_size, (1, 512), device="cuda")
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    torch.cuda.reset_peak_memory_stats()
    result = pacgen(model, [{"input_ids": tokens, "labels": tokens}], progress=False)
    return {
        "parameters": result.num_parameters,
        "weights, GB": weights / 1e9,
        "peak, GB": torch.cuda.max_memory_allocated() / 1e9,
        "seconds": result.seconds,
        "hvp": result.hvp_method,
    }


def _synchronized(task: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        task()
        torch.cuda.synchronize()

    return run


def _peak_on_gpu(task: Callable[[], Any]) -> float:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    task()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated())


# --------------------------------------------------------------------------------------------------- the whole


WORKERS: dict[str, Callable[[Arguments], Any]] = {
    "throughput": throughput,
    "linear": linear,
    "large": large,
    "planned": planned,
    "scored": scored,
    "gpt2_cuda": gpt2_cuda,
    "llama_cuda": llama_cuda,
}


def measure(part: str, arguments: Arguments, processes: int = 1) -> Any:
    """Run a part in processes of its own, and read what the first of them printed last."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if part == "throughput" else []), __file__, "--worker", part]
    command += ["--tweets", str(arguments.tweets), "--batch_size", str(arguments.batch_size), "--case", arguments.case]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    # glibc keeps freed blocks of up to 32 MB to itself, unless told that large ones go back to the system
    environment["MALLOC_MMAP_THRESHOLD_"] = str(1 << 20)
    Console(stderr=True).print(f"[dim]{part}, {processes} process(es)[/]")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{part} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare_throughput(arguments: Arguments) -> dict[str, Any]:
    rounds = [[measure("throughput", arguments, processes) for processes in (1, 2)] for _ in range(arguments.rounds)]
    one, two = (min(row[i]["seconds"] for row in rounds) for i in range(2))
    return {
        "tweets": arguments.tweets,
        "1 process, tweets/s": arguments.tweets / one,
        "2 processes, tweets/s": arguments.tweets / two,
        "ratio": one / two,
        "wanted at least": WANTED["throughput"],
        "relative difference of the trace": abs(rounds[0][1]["trace"] / rounds[0][0]["trace"] - 1),
    }


def report(part: str, arguments: Arguments) -> Any:
    """Measure a part and show it; None where it cannot be measured here."""
    if part.endswith("_cuda") and not torch.cuda.is_available():
        Console().print(f"[yellow]{part}: there is no CUDA GPU here; its rows are left out[/]")
        return None
    if part == "throughput" and absent(part, TWEETS):
        return None
    compared = {"throughput": compare_throughput, "plans": compare_plans}
    figures = compared[part](arguments) if part in compared else measure(part, arguments)
    if part == "plans":
        show("What plan() says, over what a score takes (wanted: memory within 15 %, time within 30 %)", figures)
    elif part == "linear":
        rows = [{"parameters": size, **times} for size, times in figures["seconds"].items()]
        show("Seconds of a gradient and of a Hessian-vector product, batch 4 x 64", rows)
        Console().print(f"time of a product ~ parameters^{figures['exponent']:.2f} (wanted: at most 1.1)")
    else:
        show(str((WORKERS[part].__doc__ or part).splitlines()[0]), figures if isinstance(figures, list) else [figures])
    return figures


def main() -> None:
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()  # type: ignore[arg-type]
    if arguments.worker:
        torch.set_num_threads(1)
        figures = WORKERS[arguments.worker](arguments)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(figures))
        return
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    about = {"torch": torch.__version__, "machine": platform.machine(), "cores": os.cpu_count(), "gpu": gpu}
    tasks = {part: lambda part=part: report(part, arguments) for part in PARTS}
    record(arguments.parts, tasks, arguments.output, **about)


if __name__ == "__main__":
    main()
