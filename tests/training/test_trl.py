"""The trainers of TRL: their own losses are scored, by the callback as by the PACGenTrainer, and leave no trace."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import saved_models
import torch
import training_runs as runs
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from hf_pacgen import NoiseConfig, PACGenCallback, PACGenTrainer, ScoreConfig

trl = pytest.importorskip("trl")
SCORE = ScoreConfig(lipschitz_directions=0, passes=1)
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}{{ m['content'] }} {% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model and its tokenizer."""
    place = tmp_path_factory.mktemp("model")
    runs.llama(vocab_size=16, max_position_embeddings=64).save_pretrained(place)  # type: ignore[operator]
    saved_models.tokenizer(eos_token="[SEP]", chat_template=TEMPLATE).save_pretrained(place)
    return place


def rewards() -> Any:
    torch.manual_seed(0)
    sizes: Any = runs.SIZES | {"vocab_size": 16, "num_labels": 1, "pad_token_id": 0, "max_position_embeddings": 64}
    return LlamaForSequenceClassification(LlamaConfig(**sizes))


def data(kind: str) -> Dataset:
    drawn = random.Random(0)

    def text(count: int) -> str:
        return " ".join(drawn.choice(saved_models.WORDS) for _ in range(count))

    if kind == "texts":
        return Dataset.from_dict({"text": [text(3 + i % 6) for i in range(24)]})
    if kind == "chats":
        turns = [[("user", text(3)), ("assistant", text(2 + i % 4))] for i in range(24)]
        return Dataset.from_dict({"messages": [[{"role": r, "content": c} for r, c in turn] for turn in turns]})
    columns = {"prompt": [text(2) for _ in range(16)], "chosen": [text(2 + i % 3) for i in range(16)]}
    return Dataset.from_dict(columns | {"rejected": [text(3) for _ in range(16)]})


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "plain": ("SFT", "texts", {"max_length": 32}),
    "assistant only": ("SFT", "chats", {"max_length": 32, "assistant_only_loss": True}),
    "packing": ("SFT", "texts", {"max_length": 16, "packing": True}),
    "padding free": ("SFT", "texts", {"max_length": None, "padding_free": True}),
    "smoothing": ("SFT", "texts", {"max_length": 32, "label_smoothing_factor": 0.1}),
    "rewards": ("Reward", "pairs", {"max_length": 32}),
    "preferences": ("DPO", "pairs", {"max_length": 32}),
}


def made(shell: str, case: str, folder: Path, tmp_path: Path) -> Any:
    name, rows, settings = CASES[case]
    kind, config = getattr(trl, f"{name}Trainer"), getattr(trl, f"{name}Config")
    args = runs.arguments(
        config,
        output_dir=str(tmp_path),
        max_steps=1,
        learning_rate=0.0,
        bf16=False,
        per_device_eval_batch_size=4,
        gradient_checkpointing=False,
        **settings,
    )
    model = rewards() if name == "Reward" else LlamaForCausalLM.from_pretrained(folder)
    tokenizer = saved_models.tokenizer(eos_token="[SEP]", chat_template=TEMPLATE)
    common = {"model": model, "args": args, "train_dataset": data(rows), "processing_class": tokenizer}
    if shell == "callback":
        return kind(callbacks=[PACGenCallback(score=SCORE, score_on="end")], **common)
    return type("Both", (PACGenTrainer, kind), {})(score=SCORE, **common)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_the_loss_of_trls_trainers_is_scored(case: str, folder: Path, tmp_path: Path) -> None:
    trainer = made("trainer", case, folder, tmp_path)
    trainer.train()
    logged = copy.deepcopy(trainer._metrics)
    result = trainer.pacgen()
    assert trainer._metrics == logged  # a score adds nothing to what the trainer logs
    plain = made("callback", case, folder, tmp_path)
    plain.train()
    callback = next(c for c in plain.callback_handler.callbacks if isinstance(c, PACGenCallback))
    other = callback.last_score
    assert other is not None
    assert (other.loss, other.score) == pytest.approx((result.loss, result.score), rel=1e-6)
    assert other.hessian_trace == pytest.approx(result.hessian_trace, rel=1e-6)
    # pooled over batches by what the trainer itself divides by
    total = count = 0.0
    trainer.model.eval()
    for batch in trainer.get_train_dataloader():
        labels = batch.get("labels")
        items = len(batch["input_ids"]) if labels is None or "SFT" not in CASES[case][0] else None
        if items is None:
            items = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += trainer.compute_loss(trainer.model, dict(batch)).item() * items
        count += items
    assert result.loss == pytest.approx(total / count, rel=1e-5)
    assert result.estimator == ("hutchinson" if case == "smoothing" else "blend")
    assert result.num_examples == {"pairs": 16}.get(CASES[case][1], 24)


@pytest.mark.filterwarnings("ignore")
def test_training_trls_way_is_what_a_sentence_is_compared_with(folder: Path, tmp_path: Path) -> None:
    """The model's own loss stands for the trainer's, which has no logits, while both agree."""
    from hf_pacgen.data.batches import Batches
    from hf_pacgen.data.objective import Objective
    from hf_pacgen.training.trainer_loss import loss_of_trainer

    trainer = made("trainer", "plain", folder, tmp_path)
    loader = trainer.get_train_dataloader()
    batches = Batches(loader.dataset, model=trainer.model, collate_fn=loader.collate_fn)
    objective = Objective(trainer.model, batches, loss_fn=loss_of_trainer(trainer))
    trainer.model.eval()
    objective.inspect()
    assert objective.checks["the loss of a batch"].endswith("and equals Both.compute_loss")
    trainer.args.loss_type = "dft"  # another loss, from the second batch on
    index, batch = list(batches.every())[1]
    with pytest.raises(ValueError, match="The loss of batch 1 is"):
        objective.loss(batch, index)


def online(shell: str, folder: Path, tmp_path: Path, **ours: Any) -> tuple[Any, list[str]]:
    """A GRPOTrainer, and all that it writes."""
    written: list[str] = []

    def reward(completions: list[str], **_: Any) -> list[float]:
        written.extend(completions)
        return [float(len(text) % 3) for text in completions]

    settings: dict[str, Any] = {"num_generations": 2, "max_completion_length": 4, "learning_rate": 0.0, "max_steps": 2}
    args = runs.arguments(
        trl.GRPOConfig, output_dir=str(tmp_path), bf16=False, gradient_checkpointing=False, **settings
    )
    common = {"model": LlamaForCausalLM.from_pretrained(folder), "args": args, "reward_funcs": reward}
    common |= {"train_dataset": data("pairs").remove_columns(["chosen", "rejected"])}
    common |= {"processing_class": saved_models.tokenizer(eos_token="[SEP]", chat_template=TEMPLATE)}
    if shell == "trainer":
        return type("Both", (PACGenTrainer, trl.GRPOTrainer), {})(**ours, **common), written
    callbacks = [PACGenCallback(**ours)] if shell == "callback" else []
    return trl.GRPOTrainer(callbacks=callbacks, **common), written


@pytest.mark.filterwarnings("ignore")
def test_online_training_writes_what_the_clean_model_writes(folder: Path, tmp_path: Path) -> None:
    """And its gradients are those at the noisy weights."""
    found = {}
    noise = NoiseConfig(shape="isotropic", scale=0.05, draw="step")  # type: ignore[arg-type]
    for shell in ("plain", "trainer", "callback"):
        trainer, written = online(shell, folder, tmp_path, **({} if shell == "plain" else {"noise": noise}))
        trainer.train()
        norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
        found[shell] = (written, norms)
    assert found["plain"][0] and found["plain"][0] == found["trainer"][0] == found["callback"][0]
    assert found["trainer"][1] == found["callback"][1] and sum(found["trainer"][1]) != sum(found["plain"][1])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "hutchinson": (
        {"noise": {"curvature": "hutchinson"}},
        r"not begun, because curvature='hutchinson' cannot be.*'price'",
    ),
    "rho": ({"noise": {"rho": "estimate"}}, r"not begun, because rho='estimate' cannot be.*Use curvature='price' and"),
    "score": ({"score": SCORE, "score_on": "end"}, r"not begun, because its score.*\(GRPO, RLOO\).*\(score=None\)"),
    "pairs": ({"noise": {"antithetic": True}}, "makes its batches as it trains .* Use a recipe of one gradient"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REFUSED)
def test_what_online_training_cannot_give_is_refused_before_it_begins(case: str, folder: Path, tmp_path: Path) -> None:
    ours, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        trainer, written = online("trainer" if case == "pairs" else "callback", folder, tmp_path, **ours)
        trainer.train()
    assert case == "pairs" or (trainer.state.global_step == 0 and not written)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", ["rows", "ascent", "sam", "mixed", "consistency"])
def test_trls_trainers_take_every_recipe(recipe: str, folder: Path, tmp_path: Path) -> None:
    """Weights are clean between micro-batches, and trained otherwise than without."""
    finals = []
    # rows and ascent follow the run by themselves, and three steps are too few for that
    size = {"scale": 0.15} if recipe in ("rows", "ascent") else {}
    for noise in (None, {"recipe": recipe, **size}):
        plain = made("callback", "plain", folder, tmp_path)
        args = plain.args
        args.max_steps, args.learning_rate, args.gradient_accumulation_steps = 3, 1e-3, 2
        recorder = runs.Recorder()
        kind = type("Both", (PACGenTrainer, trl.SFTTrainer), {})
        model = LlamaForCausalLM.from_pretrained(folder)
        tokenizer = saved_models.tokenizer(eos_token="[SEP]", chat_template=TEMPLATE)
        common: Any = {"train_dataset": data("texts"), "processing_class": tokenizer, "callbacks": [recorder]}
        kind(model=model, args=args, noise=noise, **common).train()
        assert runs.same(runs.weights(model), recorder.ended[-1]) and len(recorder.ended) == 3
        assert all(runs.same(end, begin) for end, begin in zip(recorder.ended, recorder.begun[1:], strict=False))
        finals.append(runs.weights(model))
    assert runs.difference(*finals) > 1e-5
