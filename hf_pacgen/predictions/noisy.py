"""``noisy_predictions()``: the mean of a model's probabilities over noise on its weights, and how good they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from typing_extensions import Unpack

from hf_pacgen.config import NoiseConfig
from hf_pacgen.config.settings import count, natural
from hf_pacgen.maths.calibration import (
    Reliability,
    adaptive_calibration_error,
    area_under_risk_coverage,
    expected_calibration_error,
    reliability,
)
from hf_pacgen.measures.session import DataOptions, measure
from hf_pacgen.predictions.levels import Noise, noise_of
from hf_pacgen.predictions.passes import draw_over, go_over, steady
from hf_pacgen.predictions.reading import PlaceReader
from hf_pacgen.predictions.size import Size, find_size
from hf_pacgen.predictions.tally import Tally, entropy, joined
from hf_pacgen.promises.visit import visiting
from hf_pacgen.results.noisy_predictions import NoisyPredictions

__all__ = ["noisy_predictions"]

TRAINING_EXAMPLES = 2_000
"""Training examples that the size of the noise is found on, at most, drawn at random."""


@measure
def noisy_predictions(
    model: nn.Module,
    data: Any,
    noise_scale: float | str | NoiseConfig = "auto",
    draws: int = 8,
    *,
    training_data: Any = None,
    top_classes: int | None = None,
    max_examples: int | None = None,
    max_training_examples: int | None = TRAINING_EXAMPLES,
    seed: int = 0,
    **options: Unpack[DataOptions],
) -> NoisyPredictions:
    """The mean probabilities 1/K Σ_k p(y | x, w + u_k) over K draws of noise on the trainable weights.

    For classifiers, token classifiers (each token whose label is not -100) and language models (each next token, given
    the right ones before).  The model is in evaluation mode, without dropout; batch-norm keeps its running statistics.
    First a pass without noise, then each draw goes once over all of the data, so that weights are perturbed K times;
    they are put back bit for bit, also after an exception.  The draws depend on the seed alone, not on batches or
    processes.

    Kept are the means and the squares of the probabilities, float64, on the CPU: 16 bytes for each prediction and
    class, and 8 more without noise.  Of more than 256 classes, such as a vocabulary, the 32 likeliest of each
    prediction under the model without noise are kept, its label among them; the others together count as one more
    class, which makes the entropies and the mutual information lower bounds, and the Brier score an upper one.  NLL and
    accuracy stay exact, unless the rest could hold a likelier class: a sentence in ``status`` says of how many.

    Args:
        model: any module with ``logits`` among its outputs, of classes.
        data: as for :func:`hf_pacgen.pacgen`; without labels there are predictions and no metrics.
        noise_scale: the half-width of uniform noise in units of the root mean square of each row of a weight matrix (a
            vector is one row); or a :class:`NoiseConfig` with shape "magnitude" or "isotropic"; or "auto", for which
            ``training_data`` is needed, and no held-out data: see the guide for the rule.
        draws: K, at least 1.
        training_data: what the model was trained on, as ``data``.
        top_classes: how many classes to keep of each prediction, instead of the above; the number of classes keeps all.
        max_examples, max_training_examples: a random subset of either, None for all.
        seed: of the first draw and of the subsets; draw k has seed + k.
        options: ``collate_fn``, ``batch_size``, ``accelerator``, ``progress`` as for :func:`hf_pacgen.pacgen`.

    Returns:
        :class:`NoisyPredictions`, with ``metrics()``.

    Raises:
        ValueError: ``"auto"`` without training data; a size that is negative or not finite; a shape that needs a
            curvature; models of regression or of several labels; labels that are no class; no data; nothing trainable;
            fewer than one draw; a sharded model; batch-norm without running statistics.

    >>> class Classifier(nn.Linear):
    ...     def forward(self, x, labels):
    ...         return {"logits": x @ self.weight.T}
    >>> batch = {"x": torch.eye(2), "labels": torch.tensor([0, 1])}
    >>> found = noisy_predictions(Classifier(2, 2), [batch], noise_scale=0.1, progress=False)
    >>> sorted(found.metrics())
    ['accuracy', 'aurc', 'brier', 'ece', 'ece_adaptive', 'nll']
    """
    if options.pop("loss_fn", None) is not None:
        raise ValueError(
            "noisy_predictions() takes no loss_fn: predictions are read from the model's logits. Leave it out."
        )
    draws, seed = count(draws, "draws"), natural(seed, "seed")
    for name, limit in {"max_examples": max_examples, "max_training_examples": max_training_examples}.items():
        if limit is not None:
            count(limit, name)
    if top_classes is not None:
        count(top_classes, "top_classes")
    noise, size = noise_of(noise_scale), None
    if noise is None:
        if training_data is None:
            raise ValueError(
                "noise_scale='auto' finds the size of the noise on what the model was trained on: expected "
                "training_data, got none. Give it, use trainer.predict_noisy(), or give noise_scale as a number such "
                "as 0.2, in units of each row's root mean square."
            )
        scope: dict[str, Any] = {"max_examples": max_training_examples, "seed": seed}
        size = find_size(model, training_data, **scope, **options)
        noise = Noise(size.scale)
    found = _predicted(model, data, noise, draws, top_classes, {"seed": seed, "max_examples": max_examples}, options)
    return _result(found, noise, size, draws, seed, data)


def _predicted(
    model: nn.Module,
    data: Any,
    noise: Noise,
    draws: int,
    top: int | None,
    scope: Mapping[str, Any],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that is kept of all draws, of all processes, as columns by name."""
    tally, begin = Tally(top), scope["seed"]
    with visiting(model, data, stage="predictions", **scope, **options) as visit:
        notes, reader = steady(visit), PlaceReader(visit.model)
        visit.tick.stage("predictions", passes=2 if noise.is_silent else 1 + draws)
        go_over(visit, reader, tally.start)
        draw_over(visit, reader, noise, range(begin, begin + draws), tally.add)
        parts = visit.batches.processes.gather(tally.batches)
    batches = {index: batch for part in parts for index, batch in part.items()}
    return joined([batches[index] for index in sorted(batches)]) | {"notes": notes}


def _result(
    found: Mapping[str, Any], noise: Noise, size: Size | None, draws: int, seed: int, data: Any
) -> NoisyPredictions:
    mean, plain, classes = found["mean"], found["plain"], found.get("classes")
    width = mean.shape[1] if classes is None else classes.shape[1]
    at = mean[:, :width].argmax(1)
    total, expected = entropy(mean), found["entropies"]
    scores, bins = _scores(mean, found)
    plain_scores, plain_bins = _scores(plain, found)
    return NoisyPredictions(
        probabilities=mean[:, :width],
        labels=found.get("labels"),
        classes=classes,
        predicted=at if classes is None else classes.gather(1, at[:, None]).squeeze(1),
        confidence=mean.gather(1, at[:, None]).squeeze(1),
        entropy=total,
        expected_entropy=expected,
        # of one distribution in all draws rounding alone may leave less than nothing
        mutual_information=(total - expected).clamp_min(0),
        spread=(found["squares"].gather(1, at[:, None]).squeeze(1) / (1 if noise.is_silent else draws)).sqrt(),
        example=found["example"],
        **scores,
        plain=plain_scores,
        noise_scale=noise.scale,
        noise=noise.to_dict(),
        draws=1 if noise.is_silent else draws,
        seed=seed,
        auto={} if size is None else size.to_dict(),
        unit=found["unit"],
        num_predictions=len(mean),
        num_examples=found["num_examples"],
        num_classes=width,
        **({} if bins is None else _as_fields(bins)),
        plain_bins={} if plain_bins is None else _as_fields(plain_bins),
        status=tuple(_notes(found, noise, size, data)),
    )


def _scores(chances: Tensor, found: Mapping[str, Any]) -> tuple[dict[str, Any], Reliability | None]:
    """The metrics of some probabilities, and the bins of their reliability diagram; none without labels."""
    label_at = found.get("label_at")
    if label_at is None:
        return {}, None
    classes = found.get("classes")
    width = chances.shape[1] if classes is None else classes.shape[1]
    confidence, at = chances[:, :width].max(1)
    correct = (at == label_at).double()
    of_label = chances.gather(1, label_at[:, None]).squeeze(1)
    sure, right = confidence.numpy(), correct.numpy()
    scores = {
        "accuracy": correct.mean().item(),
        # a probability that was rounded to 0 has no logarithm
        "nll": -of_label.clamp_min(torch.finfo(torch.float64).tiny).log().mean().item(),
        "brier": ((chances.square().sum(1) - 2 * of_label + 1) / 2).mean().item(),
        "ece": expected_calibration_error(sure, right),
        "ece_adaptive": adaptive_calibration_error(sure, right),
        "aurc": area_under_risk_coverage(sure, right),
    }
    return scores, reliability(sure, right)


def _as_fields(bins: Reliability) -> dict[str, Any]:
    return {
        "bin_confidence": tuple(bins.confidence.tolist()),
        "bin_accuracy": tuple(bins.accuracy.tolist()),
        "bin_count": tuple(bins.count.tolist()),
    }


def _notes(found: Mapping[str, Any], noise: Noise, size: Size | None, data: Any) -> Iterator[str]:
    yield from found["notes"]
    if size is not None:
        yield size.sentence
    elif noise.is_silent:
        yield "There is no noise: these are the predictions of the model as it is."
    if found.get("labels") is None:
        yield "The data has no labels, so there are predictions and no metrics."
    if (classes := found.get("classes")) is not None:
        mean, width = found["mean"], classes.shape[1]
        unsure = int((mean[:, width] > mean[:, :width].amax(1)).sum())
        doubt = f"; of {unsure:,} predictions the rest might hold a likelier class" if unsure else ""
        yield (
            f"Of each prediction the {width} likeliest classes are kept, and the rest counts as one: entropies and "
            f"mutual information are lower bounds{doubt}. Set top_classes to the number of classes for all."
        )
    if isinstance(data, DataLoader) and isinstance(data.sampler, RandomSampler):
        yield "The loader shuffles: the predictions are in the order in which it gave the examples."
