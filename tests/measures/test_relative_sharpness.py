"""Relative sharpness against closed forms, and its standard error against the spread over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import launch
import pytest
import tiny
import torch
from torch import Tensor, nn

from hf_pacgen import RelativeSharpnessConfig, relative_sharpness
from hf_pacgen.results.relative_sharpness import RelativeSharpness

LEVELS = (0.03, 0.1, 0.3, 1.0)
WEIGHTS = 0.3 * torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CURVATURE = torch.linspace(-1, 5, 40, dtype=torch.float64)
POPULATION = torch.rand(720, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2


class Weights(nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.w = nn.Parameter(factor * WEIGHTS)


class Examples(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return len(POPULATION)

    def __getitem__(self, index: int) -> Tensor:
        return POPULATION[index]


def loss(model: Any, batch: Tensor) -> tuple[Tensor, int]:
    """A quadratic with a slope, of which every example has its part: the Hessian of the mean is CURVATURE · mean."""
    return ((CURVATURE * model.w**2).sum() / 2 + 3 * model.w.sum()) * batch.sum(), len(batch)


def exact(level: float, data: Tensor = POPULATION) -> float:
    """level²/6 Σ H_ii w_i²; of 256 levels of z, the second moment is 1 - 2⁻¹⁶ of the continuous one."""
    return level**2 / 6 * (CURVATURE * WEIGHTS**2).sum().item() * data.mean().item() * (1 - 2**-16)


def of_quadratic(
    data: Any, seed: int = 0, model: Any = None, batch_size: int = 8, **settings: Any
) -> RelativeSharpness:
    config = RelativeSharpnessConfig(seed=seed, **settings)
    where: dict[str, Any] = {"loss_fn": loss, "batch_size": batch_size, "progress": False}
    return relative_sharpness(model or Weights(), data, config=config, **where)


@pytest.mark.parametrize("batches", [[5], [3, 5, 2], [40] * 18])
def test_the_mean_is_a_sixth_of_the_curvature_along_the_weights(batches: list[int]) -> None:
    data = POPULATION[: sum(batches)]
    result = of_quadratic(list(data.split(batches)), draws=600 // len(batches))
    assert result.levels == LEVELS and result.level == 0.3 and result.num_units == len(data)
    for level, mean, stderr in result.by_level():
        assert stderr is not None and stderr < 0.04 * mean and abs(mean - exact(level, data)) < 4 * stderr
    # the quadratic is the same at all levels but for its scale, and z is the same: no noise between the levels
    ratios = [mean / level**2 for level, mean, _ in result.by_level()]
    assert ratios == pytest.approx([ratios[0]] * 4, rel=1e-6)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "a quarter of the batches": (list(POPULATION.split(8)), {}),
    "half of the batches": (list(POPULATION.split(40)), {}),
    "few batches": (list(POPULATION.split(180)), {}),
    "a batch": ([POPULATION], {}),
    "a subset": (Examples(), {"max_examples": 240}),
    "a small subset": (Examples(), {"max_examples": 80}),
    "a subset, twice": (Examples(), {"max_examples": 60, "draws": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_interval_covers_the_value_of_all_data(case: str) -> None:
    data, settings = CASES[case]
    results = [of_quadratic(data, seed, **settings) for seed in range(50)]
    for at, level in enumerate(LEVELS):
        inside = [abs(r.means[at] - exact(level)) < 1.96 * (r.stderrs[at] or math.nan) for r in results]
        assert sum(inside) / 50 >= 0.85, (level, sum(inside) / 50)
    # nor is it so wide that it says nothing
    means = torch.tensor([r.relative_sharpness for r in results])
    typical = torch.tensor([r.relative_sharpness_stderr or math.nan for r in results]).square().mean().sqrt()
    assert 0.8 < typical / means.std() < 2.2


def test_the_cost_is_two_and_a_quarter_forward_passes_over_the_data() -> None:
    result = of_quadratic(list(POPULATION[:640].split(8)))
    assert (result.num_batches, result.num_forward, result.draws) == (20, 180, 1)  # of 80 batches
    assert of_quadratic(list(POPULATION.split(30))).num_batches == 8
    assert of_quadratic(list(POPULATION.split(45))).num_batches == 8
    few = of_quadratic(list(POPULATION.split(180)))
    assert (few.num_batches, few.draws, few.num_forward) == (4, 3, 4 * (1 + 3 * 8))


def test_models_share_their_noise() -> None:
    data = list(POPULATION.split(8))
    small, large = of_quadratic(data), of_quadratic(data, model=Weights(1.1))
    # Σ H w² z²: with the same z and the same batches the ratio is exact, where each by itself is off by much more
    assert large.relative_sharpness / small.relative_sharpness == pytest.approx(1.1**2, rel=1e-6)
    assert abs(small.relative_sharpness / exact(0.3) - 1) > 1e-3
    other = of_quadratic(data, seed=1)
    assert other.relative_sharpness != small.relative_sharpness and other.loss != small.loss


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_however_the_data_is_batched_it_is_the_same_within_its_error(name: str) -> None:
    model, batch = tiny.make(name).train(), tiny.examples(name, 16, ignore=0.4)
    config = RelativeSharpnessConfig(draws=12)
    one, eight = (
        relative_sharpness(model, tiny.split(batch, *sizes), [0.1, 0.5], config=config, progress=False)
        for sizes in ([1] * 16, [8, 8])
    )
    assert one.num_units == eight.num_units and one.loss == pytest.approx(eight.loss, rel=1e-6) and model.training
    for (_, a, a_error), (_, b, b_error) in zip(one.by_level(), eight.by_level(), strict=True):
        assert abs(a - b) < 4 * math.hypot(a_error or 0, b_error or 0)


def test_tokens_count_and_not_batches() -> None:
    parts = tiny.split(tiny.examples("gpt2", 8), 1, 7)
    parts[0]["labels"] = parts[0]["labels"].clone()
    parts[0]["labels"][:, 2:] = -100  # one label counts after the shift
    model, settings = tiny.make("gpt2"), RelativeSharpnessConfig(draws=3)
    whole = relative_sharpness(model, parts, config=settings, progress=False)
    first = relative_sharpness(model, parts[:1], config=settings, progress=False)
    blank = {**parts[0], "labels": torch.full_like(parts[0]["labels"], -100)}  # keeps the number of the second batch
    second = relative_sharpness(model, [blank, parts[1]], config=settings, progress=False)
    assert (first.num_units, second.num_units) == (1, 28)
    pooled = [(a + 28 * b) / 29 for a, b in zip(first.means, second.means, strict=True)]
    assert list(whole.means) == pytest.approx(pooled, rel=1e-9)


def test_chosen_batches_without_labels_are_made_up_for() -> None:
    parts = tiny.split(tiny.examples("gpt2", 48), *[2] * 24)
    for part in parts[1:]:
        part["labels"] = torch.full_like(part["labels"], -100)
    result = relative_sharpness(tiny.make("gpt2"), parts, progress=False)
    assert result.num_batches == 1 and result.num_units == 8 and result.draws == 2
    assert result.stderrs == (None,) * 4 and "too few batches show no spread" in result.status[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fail_at", [None, 4, 9])
def test_weights_come_back_bit_for_bit(dtype: torch.dtype, fail_at: int | None) -> None:
    model, parts = tiny.make("bert", dtype=dtype), tiny.split(tiny.examples("bert", 6), 4, 2)
    before = {n: (p, p.data_ptr(), p.detach().clone()) for n, p in model.named_parameters()}
    calls = 0

    def fail(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(fail)
    try:
        result = relative_sharpness(model, parts, progress=False)
        assert ("weights are bfloat16" in " ".join(result.status)) == (dtype == torch.bfloat16)
    except KeyboardInterrupt:
        assert calls == fail_at
    for name, parameter in model.named_parameters():
        kept, address, copy = before[name]
        assert parameter is kept and parameter.data_ptr() == address and torch.equal(parameter.detach(), copy)
        assert parameter.grad is None


def measures(accelerator: Any = None) -> list[float]:
    found = []
    for sizes in ([2, 3, 2], [1] * 27):  # all batches, and a third of them
        batches = tiny.split(tiny.examples("bert", sum(sizes)), *sizes)
        for stream in (False, True):
            data: Any = batches if not stream else Stream(batches)
            result = relative_sharpness(tiny.make("bert"), data, accelerator=accelerator, progress=False)
            found += [*result.means, *(s or 0 for s in result.stderrs), result.num_batches, result.num_forward]
            found += [result.draws, result.loss, result.num_units, result.num_examples]
    return found


class Stream:
    """Batches of which nobody knows how many there are."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


def on_two_processes(expected: list[float]) -> None:
    from accelerate import Accelerator

    assert measures(Accelerator(cpu=True)) == pytest.approx(expected, rel=1e-6)


def test_two_processes_agree_with_one_and_a_stream_with_a_list() -> None:
    expected = measures()
    half = len(expected) // 4
    assert expected[:half] == expected[half : 2 * half] and expected[2 * half : 3 * half] == expected[3 * half :]
    launch.on_two_processes(on_two_processes, expected)


def test_a_result_is_saved_and_read_and_has_its_metric() -> None:
    result = of_quadratic([POPULATION], draws=1)
    assert RelativeSharpness.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert result.stderrs == (None,) * 4  # one draw of one batch
    assert result.metrics() == {"pacgen_relative_sharpness": result.means[2]}
    assert result.config == {"draws": 1, "max_examples": None, "seed": 0}


def test_a_level_by_which_runs_are_compared_is_the_nearest_to_a_third() -> None:
    where: dict[str, Any] = {"loss_fn": loss, "progress": False}
    result = relative_sharpness(Weights(), [POPULATION], [2, 0.4, 0.1], **where)
    assert result.levels == (0.1, 0.4, 2.0) and result.level == 0.4 and result.relative_sharpness == result.means[1]


def test_noise_that_drowns_the_rise_is_told() -> None:
    def saddle(model: Any, batch: Tensor) -> tuple[Tensor, int]:
        sign = torch.where(torch.arange(40) % 2 == 0, 1.0, -1.0)
        return (sign * (model.w / WEIGHTS) ** 2).sum() * len(batch), len(batch)

    result = relative_sharpness(Weights(), [POPULATION], [0.1, 0.3], loss_fn=saddle, progress=False)
    assert "is noisy at levels 0.1, 0.3: its standard error is over half of it" in result.status[0]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"levels": []}, r"levels must be a list of positive, finite numbers; got \[\]"),
    ({"levels": [0.1, 0]}, "levels must be a list of positive, finite numbers"),
    ({"levels": 0.3}, "levels must be a list of positive, finite numbers; got 0.3"),
    ({"levels": [1e200]}, r"With the noise on the weights: The loss of batch 0 is (inf|nan).*Or take lower levels"),
    ({"loss_fn": lambda model, batch: (model.w.sum() * 0, 0)}, "The data has no loss unit: expected at least one"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    how: dict[str, Any] = {"loss_fn": loss, "progress": False, **changes}
    call: Callable[..., Any] = relative_sharpness
    with pytest.raises(ValueError, match=message):
        call(Weights(), [POPULATION], **how)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": 0}, "draws must be an integer of at least 1; got 0"),
        ({"max_examples": 0}, "max_examples must be an integer of at least 1"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RelativeSharpnessConfig(**settings)
