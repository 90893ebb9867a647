"""The size of the noise, from the training labels alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from promised import head, held_out
from torch import Tensor, nn

from hf_pacgen import noisy_predictions
from hf_pacgen.predictions.levels import Noise
from hf_pacgen.predictions.size import LARGEST, PAIRS, SMALLEST, Rise, Size, find_size, largest


class Sure(nn.Module):
    """A head that is right on every example, by a margin."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(factor * torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))

    def forward(self, features: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.linear(features)}


def easy(count: int, size: int = 20) -> list[dict[str, Tensor]]:
    features = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    features[:, 0] += features[:, 0].sign()
    labels = (features[:, 0] > 0).long()
    return [{"features": features[i : i + size], "labels": labels[i : i + size]} for i in range(0, count, size)]


def found(model: nn.Module, data: Any, **options: Any) -> Size:
    return find_size(model, data, **{"seed": 0, "max_examples": None, "progress": False, **options})


def total(model: nn.Module, data: list[dict[str, Tensor]]) -> float:
    with torch.no_grad():
        losses = [
            nn.functional.cross_entropy(model(**b)["logits"].double(), b["labels"], reduction="sum") for b in data
        ]
    return float(sum(losses))


def by_hand(model: Any, data: list[dict[str, Tensor]], scale: float) -> tuple[float, float]:
    """The mean and the variance of the rise of the total loss over pairs."""
    clean, rises = model.linear.weight.detach().clone(), []
    for seed in range(PAIRS):
        with Noise(scale).on(model, seed):
            u = model.linear.weight.detach() - clean
        both = 0.0
        for moved in (clean + u, clean - u):
            model.linear.weight.data = moved
            both += total(model, data) / 2
        model.linear.weight.data = clean
        rises.append(both - total(model, data))
    found = torch.tensor(rises, dtype=torch.float64)
    return float(found.mean()), float(found.var())


def test_the_largest_noise_that_has_half_a_nat_for_each_direction() -> None:
    model, data = Sure(4.0), easy(200)
    size = found(model, data)
    assert size.count == 200 and size.loss == pytest.approx(total(model, data), rel=1e-5)
    assert SMALLEST < size.scale < LARGEST and len(size.rises) >= 3
    mean, variance = by_hand(model, data, size.scale)
    rise = size.rises[size.scale]
    assert (rise.mean, rise.variance) == pytest.approx((mean, variance), rel=1e-3)
    assert rise.directions == pytest.approx(2 * mean**2 / variance * 3 / 5, rel=1e-3)
    assert size.loss + mean <= 0.6 * mean**2 / variance
    mean, variance = by_hand(model, data, size.scale * 2**0.25)
    assert size.loss + mean > 0.6 * mean**2 / variance
    predictions = noisy_predictions(model, easy(50), training_data=data, progress=False)
    assert predictions.noise_scale == size.scale and "half a nat for each of the" in predictions.status[0]
    assert predictions.auto["directions"] == pytest.approx(rise.directions) and predictions.draws == 8


def test_directions_of_a_quadratic_loss() -> None:
    """S = Σ σ_i² n h_i z_i²/2 with n h_i σ_i² = 1, the posterior, has half a nat for each direction."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(20_000, 12, generator=generator).square().sum(1) / 2
    rise = Rise(float(draws.mean()), float(draws.var()), len(draws))
    few = [Rise(float(d.mean()), float(d.var()), PAIRS).directions for d in draws.split(PAIRS)[:-1]]
    assert 11 < sum(few) / len(few) < 17  # a square of normal numbers is not normal
    assert rise.directions == pytest.approx(12, rel=0.05) and rise.mean == pytest.approx(6, rel=0.02)
    assert Rise(0.0, 0.0, 6).directions == 0 == Rise(1.0, 1.0, 3).directions


def test_batches_make_no_difference() -> None:
    one, all_ = found(Sure(4.0), easy(60, 1)), found(Sure(4.0), easy(60, 60))
    assert one.scale == all_.scale and one.rises[one.scale].mean == pytest.approx(all_.rises[one.scale].mean, rel=1e-3)


def test_a_model_that_does_not_fit_its_labels_gets_none() -> None:
    size = found(head(), held_out(100, 1, 20))
    assert size.scale == 0 and min(size.rises) == SMALLEST and size.loss > 20
    predictions = noisy_predictions(head(), held_out(50, 2), training_data=held_out(100, 1, 20), progress=False)
    assert predictions.noise_scale == 0 and predictions.metrics() == predictions.plain and predictions.draws == 1
    assert predictions.status[0].startswith("There is no noise, since it has nothing to give: the total NLL")
    assert predictions.auto == {"training_labels": 100, "total_loss": size.loss, "trials": len(size.rises)}


def test_labels_are_needed_and_a_part_is_enough() -> None:
    bare = [{"features": torch.ones(2, 3)}]
    with pytest.raises(ValueError, match="The training data has no labels, on which the size of the noise is found"):
        found(Sure(1.0), bare)
    whole, part = easy(100, 10), found(Sure(4.0), easy(100, 10), max_examples=50)
    # the noise is that of the posterior of all examples
    rise = part.rises[min(part.rises)]
    mean, variance = by_hand(Sure(4.0), whole[:5], min(part.rises))
    assert part.count == 50 and part.loss == pytest.approx(2 * total(Sure(4.0), whole[:5]), rel=1e-5)
    assert (rise.mean, rise.variance) == pytest.approx((2 * mean, 4 * variance), rel=1e-3)
    with pytest.raises(ValueError, match="expected training_data, got none"):
        noisy_predictions(Sure(1.0), easy(20), progress=False)


def test_the_search() -> None:
    for wanted in (0.06, 0.3, 1.7, 3.1):
        assert wanted / 2**0.2501 <= largest(lambda scale, wanted=wanted: scale <= wanted) <= wanted  # type: ignore[misc]
    assert largest(lambda scale: False) == 0 and largest(lambda scale: True) * 2 > LARGEST
    assert largest(lambda scale: scale < SMALLEST) == 0
