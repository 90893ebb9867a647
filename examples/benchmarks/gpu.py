"""Everything that wants a GPU, in one run of eight minutes: products, training steps, a score of 8B parameters, tests.

    python examples/benchmarks/gpu.py --output examples/benchmarks/results/gpu.json
    python examples/benchmarks/gpu.py --device cpu --tiny    # the same course with tiny models, to see that it runs

All models have random weights, made of their configurations.  Figures are written and shown after each part, so that
a run that is cut short keeps what it has.  What is not there (an attention kernel, peft, curvlinops), what does not fit
and what there is no time for is said in a row of its own.
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import tempfile
import time
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import record, show
from rich.console import Console
from scale import peer_products
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)
from transformers import logging as transformers_logging

from hf_pacgen import NoiseConfig, PACGenTrainer, ScoreConfig, pacgen, plan
from hf_pacgen.config import CurvatureSource, HVPMethod
from hf_pacgen.curvature.hvp import HessianProduct
from hf_pacgen.curvature.weight_space import WeightSpace
from hf_pacgen.measures.session import session
from hf_pacgen.model.traces import LiveMemory

PARTS = ["products", "large_products", "steps", "score", "tests"]
ROOT = Path(__file__).resolve().parents[2]
Batch = dict[str, Tensor]


@dataclass
class Arguments:
    """What can be set; see ``--help``."""

    output: str = field(default="", metadata={"help": "Write all figures to this JSON file; parts not run stay."})
    parts: list[str] = field(default_factory=lambda: list(PARTS), metadata={"help": f"Which of {', '.join(PARTS)}."})
    device: str = field(default="cuda", metadata={"help": "Device, 'cuda' or 'cpu'."})
    tiny: bool = field(default=False, metadata={"help": "Tiny models, to see that the script runs to its end."})
    minutes: float = field(default=8.0, metadata={"help": "Begin nothing new after so many minutes."})
    repeats: int = field(default=5, metadata={"help": "Timed repetitions, after one that is not; medians count."})


class Bench:
    """The device, its clock and its memory, and the time that is left."""

    def __init__(self, arguments: Arguments) -> None:
        self.device, self.tiny, self.repeats = torch.device(arguments.device), arguments.tiny, arguments.repeats
        self.end = time.monotonic() + 60 * arguments.minutes
        self.cuda = self.device.type == "cuda"

    @property
    def late(self) -> bool:
        """Whether there is no time for anything new."""
        return time.monotonic() > self.end

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.cuda:
            torch.cuda.synchronize()

    def clear(self) -> None:
        """Give back what nobody holds."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def seconds(self, task: Callable[[], Any]) -> float:
        """Median of a few runs, after one that is not counted; of a slow one, of fewer."""
        times: list[float] = []
        for number in range(self.repeats + 1):
            self.wait()
            began = time.perf_counter()
            task()
            self.wait()
            times.append(time.perf_counter() - began)
            if number and sum(times) > 10:
                break
        return statistics.median(times[1:])

    def peak(self, task: Callable[[], Any]) -> int:
        """Bytes at the peak of a task, what was there before included on a GPU only."""
        self.clear()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            task()
            self.wait()
            return torch.cuda.max_memory_allocated()
        with LiveMemory() as memory:
            task()
        return memory.peak


# ------------------------------------------------------------------------------------------------------- models


def bert(bench: Bench, attention: str) -> tuple[nn.Module, Batch]:
    """MiniLM's shape, 16 x 64 tokens."""
    sizes: dict[str, Any] = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}
    sizes |= {"intermediate_size": 1536, "num_labels": 2, "attn_implementation": attention}
    if bench.tiny:
        sizes |= {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        sizes |= {"vocab_size": 64}
    model = BertForSequenceClassification(BertConfig(**sizes))
    tokens = torch.randint(1, model.config.vocab_size, (2, 8) if bench.tiny else (16, 64), device=bench.device)
    return model, {"input_ids": tokens, "labels": torch.arange(len(tokens), device=bench.device) % 2}


def gpt2(bench: Bench, attention: str) -> tuple[nn.Module, Batch]:
    """GPT-2 small, 8 x 512 tokens."""
    sizes: dict[str, Any] = {"attn_implementation": attention}
    if bench.tiny:
        sizes |= {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0}
    return causal(bench, GPT2LMHeadModel(GPT2Config(**sizes)), (8, 512))


def llama(bench: Bench, attention: str, *, size: str = "1B") -> tuple[nn.Module, Batch]:
    """Llama's shapes, 1 x 512 tokens."""
    shapes = {"1B": (2048, 8192, 16, 32), "8B": (4096, 14336, 32, 32)}
    width, inner, layers, heads = (16, 32, 2, 2) if bench.tiny else shapes[size]
    config = LlamaConfig(
        vocab_size=64 if bench.tiny else 128256,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads if bench.tiny else 8,
        max_position_embeddings=8192,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    return causal(bench, LlamaForCausalLM(config), (1, 512))


def causal(bench: Bench, model: Any, shape: tuple[int, int]) -> tuple[nn.Module, Batch]:
    tokens = torch.randint(model.config.vocab_size, (2, 8) if bench.tiny else shape, device=bench.device)
    return model, {"input_ids": tokens, "labels": tokens}


Make = Callable[..., tuple[nn.Module, Batch]]


def made(bench: Bench, make: Make, dtype: torch.dtype, attention: str = "sdpa") -> tuple[nn.Module, Batch]:
    """A model on the device, in its data type from the beginning: 8B parameters of float32 take 32 GB."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with bench.device:
            model, batch = make(bench, attention)
    finally:
        torch.set_default_dtype(torch.float32)
    return model.eval(), batch


def with_adapter(model: nn.Module) -> nn.Module:
    """LoRA of rank 16 on all linear layers."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))  # type: ignore[arg-type]


@contextmanager
def said(row: dict[str, Any]) -> Iterator[None]:
    """What cannot be measured stands in its row, in words."""
    try:
        yield
    except torch.OutOfMemoryError:
        row["why not"] = "the device is out of memory"
    except (ImportError, ValueError, RuntimeError, NotImplementedError) as error:
        row["why not"] = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


# ----------------------------------------------------------------------------------------------------- products


def products_of(bench: Bench, about: dict[str, Any], model: nn.Module, batch: Batch, *, peers: bool) -> Iterator[Any]:
    """A row for a gradient, for each way to make a product, and for each peer that is installed."""

    def gradient() -> None:
        model.zero_grad(set_to_none=True)
        model(**batch)["loss"].backward()
        model.zero_grad(set_to_none=True)

    def measured(name: str, task: Callable[[], Any], row: dict[str, Any]) -> dict[str, Any]:
        if bench.late:
            return row | {"why not": "no time is left"}
        with said(row):
            found = {"seconds": bench.seconds(task), "peak, GB": bench.peak(task) / 1e9}
            if name == "gradient":
                once.update(found)
            ratios = {f"{what.partition(',')[0]} / gradient's": found[what] / once[what] for what in found}
            row |= found | ratios
        model.zero_grad(set_to_none=True)
        bench.clear()
        return row

    once: dict[str, float] = {}
    yield measured("gradient", gradient, about | {"what": "gradient"})
    for method in (m for m in HVPMethod if not m.facts.chooses):
        row: dict[str, Any] = about | {"what": method.value}
        if bench.late:
            yield row | {"why not": "no time is left"}
            continue
        with said(row), session(model, [batch], derivatives=True, progress=False) as (objective, _):
            with WeightSpace(objective) as space:
                # of one batch, without the checks that a measure begins with
                product, signs = HessianProduct(space, method), space.signs(0, "benchmark")
                row = measured(method.value, partial(product, batch, 0, signs), row)
        yield row
    if peers and not bench.tiny and not bench.late:
        vector = {name: torch.randn_like(p) for name, p in model.named_parameters() if p.requires_grad}
        for name, task in peer_products(model, batch, vector).items():
            yield measured(name, task, about | {"what": name})


def products(bench: Bench) -> list[dict[str, Any]]:
    """Products of each method over a gradient: data types and attention kernels, three small models."""
    rows = []
    for name, make in {"MiniLM": bert, "GPT-2": gpt2, "1B": llama}.items():
        for precision in ("float32", "tf32", "bfloat16"):
            for attention in ("sdpa", "flash_attention_2"):
                about = {"model": name, "precision": precision, "attention": attention}
                if attention != "sdpa" and precision != "bfloat16":  # it has no kernel for float32
                    continue
                if precision == "tf32" and not bench.cuda:
                    rows.append(about | {"why not": "a CPU has no tf32"})
                    continue
                row: dict[str, Any] = dict(about)
                with said(row), tf32(precision == "tf32"):
                    if attention != "sdpa" and not bench.cuda:
                        raise ImportError("flash attention is for GPUs")
                    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
                    model, batch = made(bench, make, dtype, attention)
                    peers = name == "GPT-2" and attention == "sdpa"
                    rows.extend(products_of(bench, about, model, batch, peers=peers))
                    del model, batch
                if "why not" in row:
                    rows.append(row)
                bench.clear()
    return rows


@contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """Matrix products of float32 with fewer digits, while inside."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if wanted else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def large_products(bench: Bench) -> list[dict[str, Any]]:
    """The same of 8B parameters in bfloat16, of an adapter and of all weights."""
    rows: list[dict[str, Any]] = []
    for scored in ("LoRA", "all weights"):
        about = {"model": "8B", "precision": "bfloat16", "scored": scored}
        row: dict[str, Any] = dict(about)
        with said(row):
            model, batch = made(bench, partial(llama, size="8B"), torch.bfloat16)
            model = with_adapter(model) if scored == "LoRA" else model
            rows.extend(products_of(bench, about, model, batch, peers=False))
            del model, batch
        if "why not" in row:
            rows.append(row)
        bench.clear()
    return rows


# -------------------------------------------------------------------------------------------------------- steps


class Copies(Dataset[Batch]):
    """One batch's examples, again and again."""

    def __init__(self, batch: Batch, size: int) -> None:
        self.batch, self.size = {name: value.cpu() for name, value in batch.items()}, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Batch:
        return {name: value[index % len(value)] for name, value in self.batch.items()}


def recipes() -> dict[str, dict[str, Any]]:
    """Settings of every recipe of the noise that there is; without recipes, of every source of curvature."""
    hint = typing.get_type_hints(NoiseConfig).get("recipe")
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if isinstance(kind, type) and issubclass(kind, Enum)]
    found = {f"recipe {member.value}": {"recipe": member} for kind in kinds for member in kind}
    return found or {f"curvature {source.value}": {"curvature": source} for source in CurvatureSource}


def step_seconds(bench: Bench, batch: Batch, settings: dict[str, Any] | None) -> float:
    """Of one optimizer step in transformers' Trainer."""
    model, _ = made(bench, gpt2, torch.float32)
    steps, size = (4, len(batch["labels"])) if bench.tiny else (40, len(batch["labels"]))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=size,
            use_cpu=not bench.cuda,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        common: dict[str, Any] = {"model": model, "args": arguments, "train_dataset": Copies(batch, steps * size)}
        noisy = settings is not None
        trainer = PACGenTrainer(**common, noise=NoiseConfig(**settings)) if noisy else Trainer(**common)
        bench.wait()
        began = time.perf_counter()
        trainer.train()
        bench.wait()
        return (time.perf_counter() - began) / steps


def steps(bench: Bench) -> list[dict[str, Any]]:
    """A step with noise over a plain one, GPT-2 small in float32, 8 x 512 tokens."""
    _, batch = made(bench, gpt2, torch.float32)
    plain = [step_seconds(bench, batch, None) for _ in range(1 if bench.tiny else 2)]
    rows: list[dict[str, Any]] = [{"noise": "none", "seconds": min(plain), "/ plain": 1.0}]
    for name, settings in recipes().items():
        row: dict[str, Any] = {"noise": name}
        if bench.late:
            row["why not"] = "no time is left"
        else:
            with said(row):
                seconds = step_seconds(bench, batch, settings)
                row |= {"seconds": seconds, "/ plain": seconds / min(plain)}
        bench.clear()
        rows.append(row)
    return rows


# -------------------------------------------------------------------------------------------------------- score


def score(bench: Bench) -> list[dict[str, Any]]:
    """The score of an 8B Llama in bfloat16, 8 sequences of 512 tokens, beside what its plan says."""
    quiet = ScoreConfig(estimator="gauss_newton", passes=1, lipschitz_directions=0)
    ways = {"LoRA": ScoreConfig(), "all weights, Gauss-Newton": quiet, "all weights": ScoreConfig()}
    rows: list[dict[str, Any]] = []
    for name, config in ways.items():
        row: dict[str, Any] = {"scored": name}
        if bench.late:
            rows.append(row | {"why not": "no time is left"})
            continue
        with said(row):
            model, batch = made(bench, partial(llama, size="8B"), torch.bfloat16)
            model = with_adapter(model) if name == "LoRA" else model
            batches = [batch] * (2 if bench.tiny else 8)
            made_plan = plan(model, batches, config=config, timed=False, progress=False)
            planned = made_plan.layout()["peak_bytes"]
            row |= {"planned peak, GB": None if planned is None else planned / 1e9}
            results: list[Any] = []
            work = partial(kept, results, model, batches, config)
            peak = bench.peak(work)
            weights = 0 if bench.cuda else made_plan.parameter_bytes
            row |= {"forward": made_plan.forwards, "backward": made_plan.backwards, "peak, GB": (peak + weights) / 1e9}
            row |= {
                "seconds": results[0].seconds,
                "hvp": results[0].hvp_method,
                "parameters": results[0].num_parameters,
            }
        model = batch = batches = None  # type: ignore[assignment]
        bench.clear()
        rows.append(row)
    return rows


def kept(results: list[Any], model: nn.Module, batches: list[Batch], config: ScoreConfig) -> None:
    results.append(pacgen(model, batches, config=config, progress=False))


def tests(bench: Bench) -> list[dict[str, Any]]:
    """The tests that need a device: pytest -m cuda."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "cuda",
        "-n0",
        "-p",
        "no:cacheprovider",
        str(ROOT / "tests" / "cuda"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    last = (done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]])[-1]
    return [{"exit code": done.returncode, "said": last}]


def main() -> None:
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()  # type: ignore[arg-type]
    transformers_logging.set_verbosity_error()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(
            "There is no CUDA GPU here: expected one. Give --device cpu --tiny to see that the script runs."
        )
    bench = Bench(arguments)

    def part(work: Callable[[Bench], list[dict[str, Any]]]) -> Callable[[], Any]:
        def run() -> list[dict[str, Any]]:
            rows = work(bench)
            show(str(work.__doc__).splitlines()[0], rows)
            return rows

        return run

    name = torch.cuda.get_device_name() if bench.cuda else None
    about = {"torch": torch.__version__, "gpu": name, "tiny": arguments.tiny}
    works = (products, large_products, steps, score, tests)
    record(arguments.parts, {work.__name__: part(work) for work in works}, arguments.output, **about)
    Console(stderr=True).print(f"[dim]{(arguments.minutes * 60 - bench.end + time.monotonic()) / 60:.1f} minutes[/]")


if __name__ == "__main__":
    main()
