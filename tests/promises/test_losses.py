"""Errors are read from the outputs of every kind of model, or a sentence says why not."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import transformers as t
from kinds_of_models import COUNT, KINDS
from promised import promised
from torch import Tensor, nn
from torch.utils.data import Dataset

from hf_pacgen.maths.held_out_bounds import betting_bound, exact_error_bound

ZERO_ONE = ["BERT", "DistilBERT", "ALBERT (shared layers)", "Llama, sequences", "ViT", "ResNet (batch norm)"]
ZERO_ONE += ["BERT, return_dict=False", "wav2vec 2.0, sequences", "BERT, multiple choice", "BERT, bfloat16"]
TOKENS = ["RoBERTa, tokens", "ELECTRA, tokens", "LayoutLM, tokens", "BERT, masked tokens"]
GENERATING = ["GPT-2", "Llama", "Mixtral (mixture of experts)", "T5", "BART", "Whisper", "LoRA", "Prompt tuning"]
REFUSED = {
    "BERT, regression": "is a regression model .* Pass error_fn",
    "YOLOS (detection)": r"no errors that can be counted: expected logits \(examples, classes\).* Pass error_fn",
    "SegFormer (255 ignored)": "no errors that can be counted",
    "wav2vec 2.0, CTC": "no errors that can be counted|has an example without a label|has the label",
    "CLIP (contrastive)": "has no labels: expected one of labels, label, label_ids",
    "ViT-MAE (random masks)": "has no labels",
    "PatchTST (time series)": "has no labels",
}


class Examples(Dataset[dict[str, Any]]):
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._single(self.rows[index])

    def _single(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._single(entry) for key, entry in value.items()}
        return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def subject(name: str) -> tuple[nn.Module, Examples]:
    model, rows = KINDS[name].make(), KINDS[name].rows()
    if not {"float16", "bfloat16"} & {KINDS[name].precision}:
        model = model.float()
    return model, Examples(rows)


def one_by_one(model: nn.Module, data: Examples) -> list[tuple[Tensor, Tensor]]:
    """Logits and labels of every example by itself, in evaluation mode."""
    model.eval()
    found = []
    for row in data.rows:
        batch = {k: v[None].float() if v.is_floating_point() else v[None] for k, v in row.items()}
        with torch.no_grad():
            outputs: Any = model(**batch)
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[1]
        found.append((logits[0], row["labels"]))
    return found


@pytest.mark.parametrize("name", ZERO_ONE)
def test_classes(name: str) -> None:
    model, data = subject(name)
    result = promised(model, data, batch_size=4)
    errors = sum(int(logits.argmax(-1) != label) for logits, label in one_by_one(model, data))
    assert (result.num_errors, result.num_examples, result.loss, result.unit) == (errors, COUNT, "zero_one", "example")
    assert result.error_bound == exact_error_bound(errors, COUNT, 0.05)
    if name == "BERT":  # of a single label the share of wrong ones is 0 or 1 by its nature
        share = promised(model, data, loss="token_error")
        assert share.num_errors == errors and share.error_bound == result.error_bound


@pytest.mark.parametrize("name", TOKENS)
def test_tokens_count_by_sequence(name: str) -> None:
    model, data = subject(name)
    result = promised(model, data, batch_size=4)
    pairs = [(logits[label != -100].argmax(-1), label[label != -100]) for logits, label in one_by_one(model, data)]
    losses = [float((found != label).double().mean()) for found, label in pairs]
    assert (result.num_errors, result.num_examples, result.unit) == (None, COUNT, "sequence")
    assert result.error_bound == pytest.approx(betting_bound(losses, 0.05), abs=1e-9)
    whole = promised(model, data, batch_size=4, loss="exact_match")
    assert whole.num_errors == sum(loss > 0 for loss in losses) and whole.unit == "sequence"


@pytest.mark.parametrize("name", GENERATING)
def test_models_that_write_need_a_loss(name: str) -> None:
    model, data = subject(name)
    with pytest.raises(
        ValueError, match="writes text, and nobody but you knows which text is an error: pass loss='token"
    ):
        promised(model, data)
    result = promised(model, data, loss="token_error", batch_size=4)
    assert result.num_examples == COUNT and result.unit == "sequence" and 0 < result.mean_loss <= 1
    assert promised(model, data, loss="token_error", batch_size=1).mean_loss == pytest.approx(result.mean_loss)
    if name in ("GPT-2", "T5"):
        shift = int(name == "GPT-2")
        losses = []
        for logits, label in one_by_one(model, data):
            scored, wanted = logits[: len(logits) - shift], label[shift:]
            losses.append(float((scored.argmax(-1) != wanted)[wanted != -100].double().mean()))
        assert result.mean_loss == pytest.approx(sum(losses) / COUNT)


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[name]):
        promised(*subject(name))


def test_several_labels() -> None:
    model, data = subject("BERT, several labels")
    result = promised(model, data)
    pairs = one_by_one(model, data)
    errors = sum(int(((logits > 0) != label.bool()).any()) for logits, label in pairs)
    assert (result.loss, result.num_errors, result.unit) == ("exact_match", errors, "example")
    share = promised(model, data, loss="token_error")
    assert share.mean_loss == pytest.approx(sum(float(((z > 0) != y.bool()).double().mean()) for z, y in pairs) / COUNT)
    assert 0 <= promised(model, data, loss="f1").mean_loss <= 1
    brier = sum(float((z.double().sigmoid() - y).square().mean()) for z, y in pairs) / COUNT
    assert promised(model, data, loss="brier").mean_loss == pytest.approx(brier, abs=1e-6)
    with pytest.raises(
        ValueError, match=r"loss='zero_one' is of examples with one class, and these have several labels"
    ):
        promised(model, data, loss="zero_one")
    with pytest.raises(
        ValueError, match="max_error and coverage are of examples with one class, and these have several"
    ):
        promised(model, data, max_error=0.5)


def test_answers_to_questions() -> None:
    model, data = subject("BERT, questions")
    result = promised(model, data)
    errors, f1 = 0, 0.0
    for row in data.rows:
        with torch.no_grad():
            outputs: Any = model.eval()(**{k: v[None] for k, v in row.items()})
        first, last = int(outputs.start_logits.argmax()), int(outputs.end_logits.argmax())
        found, wanted = set(range(first, last + 1)), set(range(row["start_positions"], row["end_positions"] + 1))
        errors += (first, last) != (int(row["start_positions"]), int(row["end_positions"]))
        f1 += 2 * len(found & wanted) / max(len(found) + len(wanted), 1) if found or wanted else 1.0
    assert (result.loss, result.num_errors) == ("exact_match", errors)
    assert promised(model, data, loss="f1").mean_loss == pytest.approx(1 - f1 / COUNT)


def test_an_answer_beyond_the_text_cannot_be_found() -> None:
    class Last(nn.Module):
        def forward(self, scores: Tensor, start_positions: Tensor, end_positions: Tensor) -> dict[str, Tensor]:
            return {"start_logits": scores, "end_logits": scores}

    ends = torch.tensor([4, 4, 99])
    batch = {"scores": torch.arange(15.0).view(3, 5), "start_positions": ends, "end_positions": ends}
    assert promised(Last(), [batch]).num_errors == 1


def test_tags_without_a_class_for_nothing_have_no_f1() -> None:
    model, data = subject("RoBERTa, tokens")
    with pytest.raises(ValueError, match=r"needs a class that means 'nothing'.*called 'O' in the model's id2label"):
        promised(model, data, loss="f1")
    model.config.id2label = {0: "O", 1: "B-PER", 2: "I-PER"}  # type: ignore[union-attr, assignment]
    assert 0 <= promised(model, data, loss="f1").mean_loss <= 1


def test_padding_of_choices_is_never_chosen() -> None:
    """An example with two answers beside one with three: the third place of the first is none."""

    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.weight * -input_ids.float().mean(-1)  # padding, of zeros, scores best
            return {"logits": logits, "loss": nn.functional.cross_entropy(logits, labels)}

    rows = [
        {"input_ids": [[1, 1], [2, 2]], "attention_mask": [[1, 1], [1, 1]], "labels": 0},
        {"input_ids": [[3, 3], [2, 2], [1, 1]], "attention_mask": [[1, 1], [1, 1], [1, 1]], "labels": 2},
    ]
    assert promised(Choosing(), Examples(rows)).num_errors == 0


class Custom(nn.Module):
    """Logits as they are given, with or without a loss."""

    def __init__(self, loss: Any = None) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, scores: Tensor, labels: Tensor) -> Any:
        return {"logits": scores} | ({} if self.loss is None else {"loss": self.loss(scores, labels)})


def entropy(scores: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


SCORES, TAGS = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20).view(4, 5) % 3


def test_a_module_of_ones_own_is_read_by_its_loss() -> None:
    """The model has no class that tells that it predicts the next token, but its loss is that of one."""
    shifted = promised(Custom(entropy), [{"scores": SCORES, "labels": TAGS}])
    wrong = SCORES[:, :-1].argmax(-1) != TAGS[:, 1:]
    assert shifted.mean_loss == pytest.approx(float(wrong.double().mean()))
    with pytest.raises(ValueError, match=r"Batch 0 has no errors that can be counted.* got \(4, 5, 3\) and \(4, 5\)"):
        promised(Custom(), [{"scores": SCORES, "labels": TAGS}])


def test_labels_that_do_not_fit() -> None:
    batch = tiny.examples("bert", 4)
    model = tiny.make("bert")
    with pytest.raises(
        ValueError, match=r"Batch 1 has the label 3, and the model has the classes 0 to 2: .* other data"
    ):
        promised(model, [batch, {**batch, "labels": torch.tensor([0, 1, 3, 2])}])
    with pytest.raises(ValueError, match="Batch 0 has the label 7, and the model has the classes 0 to 2"):
        promised(Custom(), [{"scores": SCORES[:, 0], "labels": torch.tensor([0, 1, 7, 0])}])
    with pytest.raises(ValueError, match="Batch 0 has an example without a label: all of its labels are -100"):
        promised(model, [{**batch, "labels": torch.tensor([0, 1, -100, 2])}])
    with pytest.raises(
        ValueError, match=r"has no labels: expected one of .* the batch has .'input_ids'.* need their labels"
    ):
        promised(model, [{"input_ids": batch["input_ids"]}])
    with pytest.raises(ValueError, match="needs batches that are dicts of the model's inputs, with labels; got tuple"):
        promised(model, [(batch["input_ids"], batch["labels"])])
    with pytest.raises(ValueError, match=r"has a label or an input that the model has no place for"):
        promised(model, [{**batch, "input_ids": batch["input_ids"] + 1000}])
    mixed = [
        {"scores": SCORES[:, 0], "labels": TAGS[:, 0]},
        {"scores": SCORES[:, 0, :2], "labels": torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]])},
    ]
    with pytest.raises(ValueError, match=r"Batch 1 has several labels .* and the batches before had one class"):
        promised(Custom(), mixed)


def test_what_is_no_number_is_wrong() -> None:
    scores = nn.functional.one_hot(TAGS[:, 0], 3).float()
    scores = scores + 0.01 * SCORES[:, 0]
    scores[1, 2] = torch.nan
    assert promised(Custom(), [{"scores": scores, "labels": TAGS[:, 0]}]).num_errors == 1


def test_rows_of_several_documents() -> None:
    config = t.GPT2Config(vocab_size=12, n_embd=4, n_layer=1, n_head=2, n_positions=8, eos_token_id=0, bos_token_id=0)
    model = t.GPT2LMHeadModel(config)
    tokens = torch.tensor([[3, 4, 0, 5, 6], [3, 4, 5, 6, 0]])
    data = [{"input_ids": tokens, "labels": tokens}]
    with pytest.raises(ValueError, match=r"Batch 0 has rows of several documents .* pass assume_independent=True"):
        promised(model, data, loss="token_error")
    assert promised(model, data, loss="token_error", assume_independent=True).num_examples == 2
    assert promised(model, [{k: v[1:] for k, v in data[0].items()}], loss="token_error").num_examples == 1
    flat = {"input_ids": tokens[:1], "labels": tokens[:1], "position_ids": torch.tensor([[0, 1, 0, 1, 2]])}
    with pytest.raises(ValueError, match="rows of several documents"):
        promised(model, [flat], loss="token_error")
    with pytest.raises(ValueError, match="has 2 examples and 1 answers: expected one for each"):
        promised(model, [flat], loss="token_error", assume_independent=True)
