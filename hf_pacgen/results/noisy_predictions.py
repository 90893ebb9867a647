"""Predictions averaged over noise on the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_pacgen.results.base import Result
from hf_pacgen.results.fields import measured, origin, other

if TYPE_CHECKING:
    from torch import Tensor

PER_PLACE = "predicted confidence entropy expected_entropy mutual_information spread example".split()
"""Tensors with one entry for each prediction."""


@dataclass(frozen=True, kw_only=True)
class NoisyPredictions(Result):
    """The mean of a model's probabilities over draws of noise on its weights, and how good they are.

    A prediction is of an example, or of a token with a label.  The numbers are those of :meth:`metrics`; they are None
    where the data has no labels.  Tensors are not written to files by :meth:`save`.
    """

    kind, remake = "set of noisy predictions", "Predict again"

    probabilities: Tensor = other(
        "mean probabilities, (predictions, classes), float64; of many classes those in ``classes``, by column",
        default=None,
        written=False,
    )
    labels: Tensor | None = other("the classes that are right, (predictions,)", default=None, written=False)
    classes: Tensor | None = other(
        "which classes the columns of the probabilities are, (predictions, columns), where not all are kept; the rest "
        "counts as one class in entropies and in the Brier score",
        default=None,
        written=False,
    )
    predicted: Tensor = other("the likeliest classes, (predictions,)", default=None, written=False)
    confidence: Tensor = other("their mean probabilities, (predictions,)", default=None, written=False)
    entropy: Tensor = other(
        "of the mean probabilities, -Σ_c p_c log p_c in nats, (predictions,)", default=None, written=False
    )
    expected_entropy: Tensor = other(
        "mean over the draws of each draw's entropy, in nats, (predictions,)", default=None, written=False
    )
    mutual_information: Tensor = other(
        "between the class and the draw, the difference of the two entropies, in nats and ≥ 0, (predictions,): how "
        "much the draws disagree",
        default=None,
        written=False,
    )
    spread: Tensor = other(
        "standard deviation over the draws (by their number, not one less) of the probability of the predicted class, "
        "(predictions,)",
        default=None,
        written=False,
    )
    example: Tensor = other(
        "the number of the example that each belongs to, (predictions,)", default=None, written=False
    )
    accuracy: float | None = measured(
        "accuracy", says="share of right predictions", key="accuracy", better="higher", span="[0, 1]", default=None
    )
    nll: float | None = measured(
        "NLL",
        says="mean -log of the mean probability of the label",
        key="nll",
        unit="nats",
        better="lower",
        default=None,
    )
    brier: float | None = measured(
        "Brier score",
        says="mean of Σ_c (p_c - [c = y])²/2, between 0 and 1",
        key="brier",
        better="lower",
        default=None,
    )
    ece: float | None = measured(
        "ECE",
        says="calibration error Σ_b n_b/n |accuracy_b - confidence_b| over 15 bins of equal width",
        key="ece",
        better="lower",
        span="[0, 1]",
        default=None,
    )
    ece_adaptive: float | None = measured(
        "adaptive ECE",
        says="the same over 15 bins of equally many predictions",
        key="ece_adaptive",
        better="lower",
        span="[0, 1]",
        default=None,
    )
    aurc: float | None = measured(
        "AURC",
        says="area under the risk-coverage curve, the mean error over all shares that could be answered",
        key="aurc",
        better="lower",
        span="[0, 1]",
        default=None,
    )
    plain: dict[str, float] = other("the same numbers of the model without noise", default=dict)
    noise_scale: float = other("size of the noise; in units of each row's root mean square for shape 'rows'")
    noise: dict[str, Any] = other("the noise: its shape, scale and distribution", default=dict)
    draws: int = other("draws, each over all of the data")
    seed: int = other("of the first draw", default=0)
    auto: dict[str, Any] = other("how the size was found, where it was", default=dict)
    unit: str = other("what a prediction is of: an example or a token", default="example")
    num_predictions: int = other("how many there are")
    num_examples: int = other("examples in the data")
    num_classes: int = other("classes, or columns of the probabilities where not all are kept", default=0)
    bin_confidence: tuple[float, ...] = other("mean confidence in each bin of the reliability diagram", default=())
    bin_accuracy: tuple[float, ...] = other("accuracy in each", default=())
    bin_count: tuple[int, ...] = other("predictions in each", default=())
    plain_bins: dict[str, tuple[float, ...]] = other("the bins without noise, by the names of these", default=dict)
    status: tuple[str, ...] = other("what limits the numbers, or was taken for granted, in sentences", default=())
    origin: dict[str, Any] = origin()

    def table(self) -> dict[str, list[Any]]:
        """One row for each prediction, as columns of plain values: for files and data frames.

        Raises:
            ValueError: a result that was read from a file, which has no predictions.
        """
        if self.probabilities is None:
            raise ValueError(
                "This result was read from a file, which keeps the numbers and not the predictions: expected one from "
                "noisy_predictions(). Predict again, and write table() to a file."
            )
        columns = {name: getattr(self, name).tolist() for name in ("example", *PER_PLACE[:-1])}
        if self.labels is not None:
            columns = {"example": columns.pop("example"), "label": self.labels.tolist(), **columns}
        if self.classes is not None:
            columns["classes"] = self.classes.tolist()
        columns["probabilities"] = self.probabilities.tolist()
        return columns
