"""Error of the Hessian's diagonal for every common kind of loss, on tiny models whose exact diagonal is known.

    python examples/benchmarks/losses.py --output losses.json
    python examples/benchmarks/losses.py --parts regression questions --seeds 20

Medians over seeds of the relative error ‖D̂ - D‖/‖D‖ of a trained model, by the gradients of a batch that an estimate
costs: 2 for a product, 1 or 2 for a Gauss-Newton gradient.  "blend / better" is to the better of Hutchinson and
Gauss-Newton with as many passes as the blend makes of each.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as t
from common import record, show
from torch import Tensor, nn
from torch.nn import functional

from hf_pacgen import ScoreConfig, hessian_diagonal, hessian_vector_product

Batches = list[dict[str, Tensor]]
Loss = Callable[[Any, Any], tuple[Tensor, Any]]
EXAMPLES, BATCH = 64, 8
SIZES: dict[str, Any] = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 6}
TEXT: dict[str, Any] = SIZES | {"vocab_size": 12, "max_position_embeddings": 12, "pad_token_id": 0}
T5: dict[str, Any] = {"vocab_size": 12, "d_model": 4, "d_kv": 2, "d_ff": 6, "num_layers": 1, "num_heads": 2}
EXPERTS: dict[str, Any] = {"num_local_experts": 3, "num_experts_per_tok": 2, "num_key_value_heads": 2}
EXPERTS |= {"experts_implementation": "eager"}  # grouped products are not made for float64
SPEECH: dict[str, Any] = SIZES | {"vocab_size": 6, "conv_dim": (4, 4), "conv_stride": (4, 4), "conv_kernel": (4, 4)}
SPEECH |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0}
SPEECH |= {"feat_extract_norm": "layer", "ctc_loss_reduction": "mean", "pad_token_id": 0}


@dataclass
class Arguments:
    """What can be set; see ``--help``."""

    output: str = field(default="", metadata={"help": "Write all figures to this JSON file."})
    parts: list[str] = field(default_factory=list, metadata={"help": "Which kinds of losses; by default all."})
    seeds: int = field(default=11, metadata={"help": "Seeds of each estimate; medians are reported."})
    steps: int = field(default=60, metadata={"help": "Steps of training before the diagonal is taken."})


@dataclass(frozen=True)
class Problem:
    """A model, what a row of its data has besides ``input_ids``, and the loss where it is not the model's own."""

    make: Callable[[], nn.Module]
    columns: Callable[[Tensor], dict[str, Tensor]]
    loss_fn: Loss | None = None
    likelihood: str | None = None


def of(model: str, sizes: dict[str, Any] = TEXT, **changes: Any) -> Callable[[], nn.Module]:
    """A tiny model of a class of transformers."""
    kind = getattr(t, model)
    return lambda: kind(kind.config_class(**(sizes | changes)))


def numbers(*shape: int) -> Tensor:
    return torch.randn(EXAMPLES, *shape)


def classes(ids: Tensor, count: int) -> Tensor:
    """Labels that the tokens tell, four in five times."""
    known = ids[:, 1] % count
    return torch.where(torch.rand(len(ids)) < 0.2, torch.randint(0, count, (len(ids),)), known)


def some(labels: Tensor) -> Tensor:
    return labels.masked_fill(torch.rand(labels.shape) < 0.4, -100)


def smoothed(model: Any, batch: Any) -> tuple[Tensor, int]:
    logits = model(input_ids=batch["input_ids"]).logits
    return functional.cross_entropy(logits, batch["labels"], label_smoothing=0.1, reduction="sum"), len(logits)


def weighted(model: Any, batch: Any) -> tuple[Tensor, int]:
    logits, weight = model(input_ids=batch["input_ids"]).logits, torch.tensor([4.0, 1.0, 0.25]).double()
    return functional.cross_entropy(logits, batch["labels"], weight=weight, reduction="sum"), len(logits)


def contrastive(model: Any, batch: Any) -> tuple[Tensor, int]:
    features = model(input_ids=batch["input_ids"]).logits
    pairs = 3 * features @ features.roll(1, dims=0).t()
    return functional.cross_entropy(pairs, torch.arange(len(features)), reduction="sum"), len(features)


BERT = "BertForSequenceClassification"
PROBLEMS = {
    "regression": Problem(of(BERT, num_labels=1), lambda x: {"labels": (x[:, 1] - x[:, 2]) / 4 + 0.3 * numbers()}),
    "binary": Problem(
        of(BERT, num_labels=1, problem_type="multi_label_classification"),
        lambda x: {"labels": classes(x, 2).double()[:, None]},
    ),
    "several labels": Problem(
        of(BERT, num_labels=4, problem_type="multi_label_classification"),
        lambda x: {"labels": (x[:, 1:5] + 3 * numbers(4) > 7).double()},
    ),
    "questions": Problem(
        of("BertForQuestionAnswering"),
        lambda x: {"start_positions": x.argmax(1), "end_positions": x.argmin(1)},
    ),
    "translation": Problem(of("T5ForConditionalGeneration", T5, decoder_start_token_id=0), lambda x: {"labels": x + 0}),
    "masked tokens": Problem(of("BertForMaskedLM"), lambda x: {"labels": some(x)}),
    "next token": Problem(of("LlamaForCausalLM", num_key_value_heads=2), lambda x: {"labels": x}),
    "tokens": Problem(of("BertForTokenClassification", num_labels=3), lambda x: {"labels": some(x % 3)}),
    "segmentation": Problem(
        of(
            "SegformerForSemanticSegmentation",
            {"num_encoder_blocks": 1, "depths": [1], "sr_ratios": [1], "hidden_sizes": [4], "patch_sizes": [3]}
            | {"strides": [2], "num_attention_heads": [1], "mlp_ratios": [1], "decoder_hidden_size": 4}
            | {"num_labels": 3},
        ),
        lambda x: {"pixel_values": numbers(3, 8, 8), "labels": torch.randint(0, 3, (len(x), 8, 8))},
    ),
    "mixture of experts": Problem(
        of("MixtralForCausalLM", TEXT | EXPERTS, output_router_logits=True, router_aux_loss_coef=0.5),
        lambda x: {"labels": x},
    ),
    "label smoothing": Problem(of(BERT, num_labels=3), lambda x: {"labels": classes(x, 3)}, smoothed),
    "class weights": Problem(of(BERT, num_labels=3), lambda x: {"labels": classes(x, 3)}, weighted),
    "CTC": Problem(
        of("Wav2Vec2ForCTC", SPEECH),
        lambda x: {"input_values": numbers(160), "labels": 1 + x[:, :3] % 5},
    ),
    "contrastive": Problem(of(BERT, num_labels=3), lambda x: {"labels": classes(x, 3)}, contrastive),
}


def made(problem: Problem, steps: int) -> tuple[nn.Module, Batches]:
    """The model after some steps of training, and its data, in float64."""
    torch.manual_seed(0)
    ids = torch.randint(3, 12, (EXAMPLES, 6))
    columns: dict[str, Tensor] = problem.columns(ids)
    if not {"pixel_values", "input_values"} & columns.keys():
        columns = {"input_ids": ids, **columns}
    columns = {k: v.double() if v.is_floating_point() else v for k, v in columns.items()}
    batches = [{k: v[i : i + BATCH] for k, v in columns.items()} for i in range(0, EXAMPLES, BATCH)]
    model = problem.make().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        loss = loss_of(model.train(False), problem, batches[step % len(batches)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), batches


def loss_of(model: Any, problem: Problem, batch: Any) -> Tensor:
    if problem.loss_fn is None:
        loss: Tensor = model(**batch).loss
        return loss
    total, units = problem.loss_fn(model, batch)
    return total / units


def flat(found: Any) -> Tensor:
    return torch.cat([v.reshape(-1).double() for v in found.values.values()])


def exact(model: nn.Module, batches: Batches, options: dict[str, Any]) -> Tensor:
    """The diagonal by derivatives of the gradient's entries, or by differences of it where it has none (CTC)."""
    try:
        return flat(hessian_diagonal(model, batches, config=ScoreConfig(estimator="exact"), **options))
    except ValueError:
        found = []
        for name, parameter in model.named_parameters():
            for entry in range(parameter.numel()):
                along = {n: torch.zeros_like(p, requires_grad=False) for n, p in model.named_parameters()}
                along[name].view(-1)[entry] = 1
                product = hessian_vector_product(model, batches, along, method="finite_difference", **options)
                found.append(product[name].flatten()[entry].double())
        return torch.stack(found)


def errors(name: str, arguments: Arguments) -> dict[str, Any]:
    """One row of the table: median errors by estimator and cost."""
    problem = PROBLEMS[name]
    model, batches = made(problem, arguments.steps)
    options: Any = {"loss_fn": problem.loss_fn, "progress": False}
    truth = exact(model, batches, options)
    row: dict[str, Any] = {"loss": name, "weights": truth.numel(), "seeds": arguments.seeds}

    def median(estimator: str, passes: int) -> tuple[float, int]:
        found, cost = [], 0
        for seed in range(arguments.seeds):
            config = ScoreConfig(estimator=estimator, passes=passes, seed=seed)
            estimate = hessian_diagonal(model, batches, config=config, **options)
            found.append(float((flat(estimate) - truth).norm() / truth.norm()))
            row["value"] = estimate.loss
            cost = round((2 * estimate.num_hvps + estimate.num_gradients) / len(batches))
            row["used"] = estimate.estimator
        return statistics.median(found), cost

    for passes in (1, 8):
        probes, _ = median("hutchinson", passes)
        quiet, _ = median("gauss_newton", 1)
        used = row.pop("used")
        blend, cost = median("blend", passes)
        row["used"] = row.pop("used") if row["used"] == used else used
        few, _ = median("gauss_newton", cost if used == "gauss_newton" else 1)
        row |= {f"hutchinson, {2 * passes}": probes, "gauss_newton, 1": quiet, f"gauss_newton, {cost}": few}
        row |= {f"blend, {cost}": blend, f"blend / better, {cost}": blend / min(probes, quiet)}
        row[f"blend / better at equal cost, {cost}"] = blend / min(probes, few)
    return row


def main() -> None:
    """Measure the kinds that were asked for, and print them as a table."""
    (arguments,) = t.HfArgumentParser(Arguments).parse_args_into_dataclasses()  # type: ignore[arg-type]
    torch.set_num_threads(1)
    t.logging.set_verbosity_error()
    rows: list[dict[str, Any]] = []

    def one(name: str) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            rows.append(errors(name, arguments))
            show("Relative error of the Hessian diagonal, by kind of loss", rows[-1:])
            return rows[-1]

        return run

    record(arguments.parts or list(PROBLEMS), {name: one(name) for name in PROBLEMS}, arguments.output)
    show("Relative error of the Hessian diagonal, by kind of loss", rows)


if __name__ == "__main__":
    main()
