"""What the loss of a batch is a mean of, found from its parts: the same value in any batches, or a sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    YolosConfig,
    YolosForObjectDetection,
)

from hf_pacgen import ScoreConfig, hessian_diagonal
from hf_pacgen.data.batches import Batches
from hf_pacgen.data.objective import Objective
from hf_pacgen.measures.landscape import mean_loss
from hf_pacgen.model.state import preserved


def speech(reduction: str) -> nn.Module:
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=8,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        conv_dim=(4, 4),
        conv_stride=(4, 4),
        conv_kernel=(4, 4),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        mask_time_prob=0.0,
        ctc_loss_reduction=reduction,
        feat_extract_norm="layer",
    )
    return Wav2Vec2ForCTC(config).eval()


def recordings(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(1, 8, (count, 6), generator=generator)
    for row in range(count):  # of 2 to 6 letters
        labels[row, 2 + row % 5 :] = -100
    return {"input_values": torch.randn(count, 400, generator=generator), "labels": labels}


def rows(batch: dict[str, Any], *sizes: int) -> list[dict[str, Any]]:
    parts, start = [], 0
    for size in sizes:
        parts.append({k: v[start : start + size] for k, v in batch.items()})
        start += size
    return parts


def notes(model: nn.Module, batches: list[dict[str, Any]]) -> Objective:
    objective = Objective(model, Batches(batches, model=model))
    with preserved(model):
        objective.inspect()
    return objective


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_speech_recognition_is_pooled_by_examples(reduction: str) -> None:
    """torch divides a CTC loss by the length of each text, and then by the number of examples; or by nothing."""
    model, batch = speech(reduction), recordings(8)
    with torch.no_grad():
        truth = sum(model(**one).loss.item() for one in rows(batch, *[1] * 8)) / 8
    for sizes in ((1,) * 8, (2,) * 4, (8,), (5, 3)):
        assert mean_loss(model, rows(batch, *sizes), progress=False) == pytest.approx(truth, rel=1e-5)
    found = notes(model, [batch])
    assert not found.depends_on_batching
    assert any("is a sum over its examples" in note for note in found.notes) == (reduction == "sum")


def test_segmentation_ignores_255() -> None:
    torch.manual_seed(0)
    config = SegformerConfig(  # type: ignore[call-arg]
        num_encoder_blocks=1,
        depths=[1],
        sr_ratios=[1],
        hidden_sizes=[4],
        patch_sizes=[3],
        strides=[2],
        num_attention_heads=[1],
        mlp_ratios=[1],
        decoder_hidden_size=4,
        num_labels=3,
    )
    model = SegformerForSemanticSegmentation(config).eval()
    generator = torch.Generator().manual_seed(1)
    batch = {
        "pixel_values": torch.randn(6, 3, 16, 16, generator=generator),
        "labels": torch.randint(0, 3, (6, 16, 16), generator=generator),
    }
    for row in range(6):
        batch["labels"][row, : 2 * row] = 255
    with torch.no_grad():
        up = functional.interpolate(model(batch["pixel_values"]).logits, (16, 16), mode="bilinear", align_corners=False)
        truth = functional.cross_entropy(up, batch["labels"], ignore_index=255).item()
    for sizes in ((6,), (4, 2), (1,) * 6):
        found = mean_loss(model, rows(batch, *sizes), progress=False)
        assert found == pytest.approx(truth, rel=1e-5), sizes


def test_detection_counts_examples_and_depends_on_the_batching() -> None:
    torch.manual_seed(0)
    config = YolosConfig(  # type: ignore[call-arg]
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=[16, 16],
        patch_size=8,
        num_detection_tokens=4,
        num_labels=3,
    )
    model = YolosForObjectDetection(config).eval()
    labels = [
        {"class_labels": torch.arange(n) % 3, "boxes": torch.full((n, 4), 0.2 + 0.1 * n)} for n in (0, 1, 2, 3, 1, 2)
    ]
    batch = {"pixel_values": torch.randn(6, 3, 16, 16), "labels": labels}
    objective = notes(model, [batch])
    assert objective.units(batch) == 6 and objective.depends_on_batching
    assert "The loss depends on how the data is cut into batches" in objective.notes[0]
    assert mean_loss(model, [batch], progress=False) == pytest.approx(model(**batch).loss.item(), rel=1e-6)


class Regression(nn.Module):
    """Batch statistics even in evaluation mode, as of layers without running ones."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3, track_running_stats=False)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": functional.mse_loss(self.norm(x), labels)}


def test_a_model_that_takes_no_single_example_is_inspected() -> None:
    batch = {"x": torch.randn(3, 3), "labels": torch.randn(3, 3)}
    objective = notes(Regression(), [batch])
    assert objective.depends_on_batching and "nan (1)" in objective.notes[0]


def test_parts_are_named_among_the_checks() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 3)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": functional.mse_loss(self.head(x), labels)}

    batch = {"x": torch.randn(4, 3), "labels": torch.randn(4, 3)}
    found = notes(Plain(), [batch]).checks["the loss of a batch"]
    assert found == "is the mean of its parts, weighted by examples"
    with pytest.raises(ValueError, match=r"no labels to draw: this is a loss that is no cross-entropy on logits"):
        notes(Plain(), [batch]).sampled_loss(batch, 0, 1)
    with pytest.raises(ValueError, match="Batch 3 gave no loss"):
        notes(Plain(), [batch]).sampled_loss({"x": batch["x"]}, 3, 1)
    alone = notes(Plain(), [{k: v[:1] for k, v in batch.items()}]).checks["the loss of a batch"]
    assert alone.startswith("could not be compared with its parts")


def test_ctc_has_an_exact_diagonal() -> None:
    """Though that of torch has none; the model takes its logarithms in float32, so the step is a long one."""
    model, batch = speech("mean").double().eval(), recordings(4)
    batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "lm_head.bias")
    exact = hessian_diagonal(model, [batch], config=ScoreConfig(estimator="exact"), progress=False)
    bias, step = model.get_parameter("lm_head.bias"), 0.01
    for entry in range(bias.numel()):
        slopes = []
        for move in (step, -2 * step, step):
            with torch.no_grad():
                bias[entry] += move
            slopes.append(torch.autograd.grad(model(**batch).loss, [bias])[0][entry].item())
        found = exact.values["lm_head.bias"][entry].item()
        assert found == pytest.approx((slopes[0] - slopes[1]) / (2 * step), rel=5e-3, abs=1e-3)
