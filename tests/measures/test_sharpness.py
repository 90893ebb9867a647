"""Expected and worst-case sharpness against closed forms."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from accelerate import debug_launcher
from torch import Tensor, nn

from hf_pacgen import SharpnessConfig, expected_sharpness, hessian_spectrum, worst_case_sharpness
from hf_pacgen.config import SpectrumConfig
from hf_pacgen.measures.landscape import mean_loss
from hf_pacgen.results.sharpness import Sharpness

CURVATURE = torch.linspace(-1, 5, 40, dtype=torch.float64)
SLOPE = torch.linspace(-1, 1, 40, dtype=torch.float64)
WEIGHTS = 0.3 * torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BATCHES = [torch.zeros(3), torch.zeros(5)]


class Weights(nn.Module):
    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(weights.clone())
        self.other = nn.Parameter(torch.zeros(2, dtype=weights.dtype))


def quadratic(curvature: Tensor, slope: Tensor) -> Callable[[Any, Tensor], tuple[Tensor, int]]:
    def loss(model: Any, batch: Tensor) -> tuple[Tensor, int]:
        value = (curvature * model.w**2).sum() / 2 + (slope * model.w).sum() + model.other.square().sum()
        return value * len(batch), len(batch)

    return loss


def of_quadratic(noise_scale: Any = 0.1, slope: Tensor = SLOPE, **settings: Any) -> Sharpness:
    return expected_sharpness(
        Weights(WEIGHTS),
        BATCHES,
        noise_scale=noise_scale,
        config=SharpnessConfig(**settings),
        loss_fn=quadratic(CURVATURE, slope),
        progress=False,
    )


def second_moment(settings: dict[str, Any]) -> Tensor:
    if settings["distribution"] == "truncated_normal":  # to 0.1|w| + 0.1, by Simpson's rule
        half = 0.1 * WEIGHTS.abs() + 0.1
        x = torch.linspace(-1, 1, 2001, dtype=torch.float64)[:, None] * half
        density = torch.exp(-0.5 * (x / 0.1) ** 2)
        return torch.trapezoid(x**2 * density, dim=0) / torch.trapezoid(density, dim=0)
    return torch.full((40,), 0.01 / (3 if settings["distribution"] == "uniform" else 1), dtype=torch.float64)


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("distribution", ["normal", "gaussian", "uniform", "truncated_normal"])
def test_the_mean_is_half_the_trace_times_the_variance(distribution: str, antithetic: bool) -> None:
    settings: dict[str, Any] = {"distribution": distribution, "antithetic": antithetic, "draws": 150, "tolerance": 0}
    result = of_quadratic(**settings)
    moment = second_moment(settings)
    exact = (CURVATURE * moment).sum().item() / 2
    if distribution in ("normal", "gaussian"):
        exact += 2 * 0.01  # the other two weights
    else:
        exact += 2 * (0.01 / 3 if distribution == "uniform" else moment[WEIGHTS.abs().argmin()].item())
    assert result.stderr is not None and abs(result.mean - exact) < 3.5 * result.stderr + 0.01 * exact
    assert (result.draws, result.num_examples, result.num_units) == (150, 8, 8)
    assert result.num_forward == 2 * (1 + 150 * (2 if antithetic else 1))


def test_antithetic_draws_remove_the_slope() -> None:
    flat = torch.zeros(40, dtype=torch.float64)
    pairs, single = (
        expected_sharpness(
            Weights(WEIGHTS),
            BATCHES,
            noise_scale={"w": torch.tensor(0.1)},
            config=SharpnessConfig(antithetic=antithetic, tolerance=0, draws=20),
            loss_fn=quadratic(flat, SLOPE),
            progress=False,
        )
        for antithetic in (True, False)
    )
    assert pairs.mean == pytest.approx(0, abs=1e-12) and single.stderr and single.stderr > 0.01


def test_scales_by_parameter_leave_the_others_alone() -> None:
    scale = torch.linspace(0, 1, 40)
    result = of_quadratic({"w": scale}, tolerance=0.02, draws=2000)
    exact = (CURVATURE * scale**2).sum().item() / 2
    assert result.converged and result.mean == pytest.approx(exact, rel=0.08) and result.noise_scale is None
    assert of_quadratic({"other": torch.tensor(0.0)}).mean == 0


def test_the_standard_error_is_honest() -> None:
    exact = CURVATURE.sum().item() / 2 * 0.01 + 0.02
    deviations = []
    for seed in range(60):
        result = of_quadratic(seed=seed, draws=9, tolerance=0)
        deviations.append((result.mean - exact) / (result.stderr or math.nan))
    inside = sum(abs(d) < 1 for d in deviations) / 60
    assert 0.5 < inside < 0.85 and abs(sum(deviations)) / 60 < 0.4


def test_drawing_stops_at_the_tolerance_or_says_that_it_did_not() -> None:
    loose, tight, most = of_quadratic(tolerance=0.2), of_quadratic(tolerance=0.05), of_quadratic(tolerance=1e-4)
    for result, tolerance in ((loose, 0.2), (tight, 0.05)):
        assert result.converged and result.stderr and result.stderr <= tolerance * result.mean
    assert loose.draws < tight.draws < most.draws == 64 and not most.converged
    assert of_quadratic(0.0).draws == 5 and of_quadratic(0.0).mean == 0  # 8 degrees of freedom from 2 batches
    once = of_quadratic(draws=1)
    assert once.stderr is None and "single draw shows no spread" in once.status[0]
    noisy = of_quadratic(slope=100 * SLOPE, draws=3, antithetic=False)
    assert "The expected sharpness is noisy" in noisy.status[0]
    assert json.loads(json.dumps(most.to_dict()))["draws"] == 64


def test_ragged_batches_pool_by_units_and_dropout_is_off() -> None:
    model = tiny.make("gpt2").train()
    batch = tiny.examples("gpt2", 7, ignore=0.4)
    whole, cut = (
        expected_sharpness(
            model, data, noise_scale=0.05, config=SharpnessConfig(draws=40, tolerance=0.0), progress=False
        )
        for data in ([batch], tiny.split(batch, 1, 4, 2))
    )
    assert cut.loss == pytest.approx(whole.loss, rel=1e-6) and cut.num_units == whole.num_units
    assert abs(cut.mean - whole.mean) < 4 * math.hypot(cut.stderr or 0, whole.stderr or 0)
    assert model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("measure", ["expected", "worst"])
@pytest.mark.parametrize("fail_at", [None, 4, 7])
def test_weights_come_back_bit_for_bit(measure: str, dtype: torch.dtype, fail_at: int | None) -> None:
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
        if measure == "expected":
            expected_sharpness(model, parts, noise_scale=0.1, config=SharpnessConfig(draws=3), progress=False)
        else:
            worst_case_sharpness(model, parts, box=0.1, config=SharpnessConfig(ascent_steps=3), progress=False)
    except KeyboardInterrupt:
        assert calls == fail_at
    for name, parameter in model.named_parameters():
        kept, address, copy = before[name]
        assert parameter is kept and parameter.data_ptr() == address and torch.equal(parameter.detach(), copy)
        assert parameter.grad is None


def test_coarse_weights_are_spoken_of() -> None:
    model, data = tiny.make("bert", dtype=torch.bfloat16), [tiny.examples("bert", 4)]
    rise = expected_sharpness(model, data, noise_scale=0.1, progress=False)
    most = worst_case_sharpness(model, data, progress=False)
    for result in (rise, most):
        assert "weights are bfloat16: displacements finer than 0.004 of a weight are rounded away" in result.status[0]


def highest(box: float) -> float:
    """The exact maximum in the box, coordinate by coordinate."""
    half = box * (WEIGHTS.abs() + 1)

    def rise(w: Tensor) -> Tensor:
        return CURVATURE * (w**2 - WEIGHTS**2) / 2 + SLOPE * (w - WEIGHTS)

    summit = -SLOPE / CURVATURE
    inside = (summit - WEIGHTS).abs() <= half
    options = [rise(WEIGHTS + half), rise(WEIGHTS - half), torch.where(inside, rise(summit), torch.tensor(-math.inf))]
    return torch.stack(options).amax(0).sum().item() + 2 * box**2


@pytest.mark.parametrize("box", [1e-3, 0.1, 1.0])
def test_the_ascent_finds_the_top_of_the_box(box: float) -> None:
    model = Weights(WEIGHTS)
    config = SharpnessConfig(ascent_steps=60, ascent_starts=6)
    loss_fn = quadratic(CURVATURE, SLOPE)
    result = worst_case_sharpness(model, BATCHES, box=box, config=config, loss_fn=loss_fn, progress=False)
    # a coordinate may climb to the lower of its two edges: in the largest box, a few do
    assert highest(box) * (0.93 if box == 1 else 0.999) <= result.value <= highest(box) * (1 + 1e-9)
    assert result.relative == pytest.approx(100 * result.value / (1 + result.loss))
    assert result.converged and result.box == box and result.num_units == 8
    assert json.loads(json.dumps(result.to_dict()))["value"] == result.value


def test_the_ascent_leaves_a_minimum_by_its_random_start() -> None:
    model, loss_fn = Weights(0 * WEIGHTS), quadratic(CURVATURE.abs(), 0 * SLOPE)
    half = {"w": torch.linspace(0, 1, 40)}
    result = worst_case_sharpness(model, BATCHES, box=half, loss_fn=loss_fn, progress=False)
    assert result.rises[0] == 0
    assert result.value == pytest.approx((CURVATURE.abs() * half["w"] ** 2).sum().item() / 2, rel=1e-6)
    one = worst_case_sharpness(
        model, BATCHES, config=SharpnessConfig(ascent_steps=1), loss_fn=quadratic(CURVATURE, SLOPE), progress=False
    )
    assert not one.converged and "did not settle in 1 steps" in one.status[0]


def on_two_processes(expected: list[float]) -> None:
    from accelerate import Accelerator

    assert measures(Accelerator(cpu=True)) == pytest.approx(expected, rel=1e-6)


def measures(accelerator: Any = None) -> list[float]:
    batches = tiny.split(tiny.examples("bert", 7), 2, 3, 2)
    where: dict[str, Any] = {"accelerator": accelerator, "progress": False}
    mean = expected_sharpness(tiny.make("bert"), batches, noise_scale=0.1, config=SharpnessConfig(draws=12), **where)
    most = worst_case_sharpness(tiny.make("bert"), batches, box=0.05, **where)
    return [mean.mean, mean.stderr or 0, mean.draws, mean.num_forward, most.value, most.steps, most.num_units]


def test_two_processes_agree_with_one() -> None:
    debug_launcher(on_two_processes, (measures(),), num_processes=2)


@pytest.mark.parametrize(
    ("noise_scale", "message"),
    [
        (-1, "noise_scale must be a finite number >= 0, or tensors by name; got -1"),
        (math.nan, "noise_scale must be a finite number >= 0"),
        (True, "noise_scale must be a finite number >= 0.*got True"),
        ("0.1", "noise_scale must be a finite number >= 0.*got '0.1'"),
        ({}, "noise_scale names no parameter"),
        ({"v": torch.ones(1)}, r"noise_scale names \['v'\], which are no trainable parameters"),
        ({"w": torch.ones(3)}, r"noise_scale\['w'\] must have shape \(40,\).*got \(3,\)"),
        ({"w": -torch.ones(40)}, r"noise_scale\['w'\] must be finite and >= 0 everywhere"),
        (1e200, r"With the noise on the weights: The loss of batch 0 is (inf|nan).*Or lower noise_scale"),
    ],
)
def test_bad_noise(noise_scale: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of_quadratic(noise_scale)
    if noise_scale != 1e200:
        with pytest.raises(ValueError, match=message.replace("noise_scale", "box")):
            worst_case_sharpness(
                Weights(WEIGHTS), BATCHES, box=noise_scale, loss_fn=quadratic(CURVATURE, SLOPE), progress=False
            )


def test_a_box_without_bounds() -> None:
    with pytest.raises(ValueError, match=r"In the box around the weights: The loss .*Or take a smaller box"):
        worst_case_sharpness(Weights(WEIGHTS), BATCHES, box=1e200, loss_fn=quadratic(CURVATURE, SLOPE), progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"distribution": "cauchy"},
            "distribution must be one of 'uniform', 'truncated_normal', 'normal'; got 'cauchy'",
        ),
        ({"draws": 0}, "draws must be an integer of at least 1; got 0"),
        ({"tolerance": -0.1}, "tolerance must be a finite number of at least 0; got -0.1"),
        ({"ascent_steps": 0}, "ascent_steps must be an integer of at least 1"),
        ({"ascent_starts": 1.5}, "ascent_starts must be an integer of at least 1"),
        ({"max_examples": 0}, "max_examples must be an integer of at least 1"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SharpnessConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"which": "middle"}, "which must be one of 'largest', 'smallest', 'magnitude'; got 'middle'"),
        ({"iterations": 0}, "iterations must be an integer of at least 1"),
        ({"tolerance": 0}, "tolerance must be a finite number greater than 0; got 0"),
        ({"probes": -1}, "probes must be an integer of at least 0"),
        ({"density_iterations": 0}, "density_iterations must be an integer of at least 1"),
        ({"hvp": "guess"}, "hvp must be one of 'auto'"),
        ({"displacement": 0}, "displacement must be a finite number greater than 0"),
        ({"max_examples": True}, "max_examples must be an integer of at least 1; got True"),
    ],
)
def test_bad_settings_of_the_spectrum(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpectrumConfig(**settings)
    assert SpectrumConfig.from_dict(SpectrumConfig().to_dict()) == SpectrumConfig()


@pytest.mark.parametrize("measure", ["expected", "worst", "spectrum", "loss"])
def test_data_that_counts_for_nothing(measure: str) -> None:
    def nothing(model: Any, batch: Tensor) -> tuple[Tensor, int]:
        return model.w.square().sum() * 0, 0

    how: dict[str, Any] = {"loss_fn": nothing, "progress": False}
    calls: dict[str, Callable[[], Any]] = {
        "expected": lambda: expected_sharpness(Weights(WEIGHTS), BATCHES, noise_scale=0.1, **how),
        "worst": lambda: worst_case_sharpness(Weights(WEIGHTS), BATCHES, box=0.1, **how),
        "spectrum": lambda: hessian_spectrum(Weights(WEIGHTS), BATCHES, k=1, **how),
        "loss": lambda: mean_loss(Weights(WEIGHTS), BATCHES, **how),
    }
    with pytest.raises(ValueError, match=r"no loss unit: expected at least one .* got none. Check the labels, or the"):
        calls[measure]()


@pytest.mark.parametrize("measure", ["expected", "worst"])
def test_a_loss_that_is_not_finite_without_noise_is_not_put_down_to_the_noise(measure: str) -> None:
    parts = tiny.split(tiny.examples("vit", 6), 3, 3)
    parts[1]["pixel_values"] = parts[1]["pixel_values"].clone().fill_(math.nan)
    with pytest.raises(ValueError, match=r"^The loss of batch 1 is nan: expected a finite number. Look at that batch"):
        if measure == "expected":
            expected_sharpness(tiny.make("vit"), parts, noise_scale=0.1, progress=False)
        else:
            worst_case_sharpness(tiny.make("vit"), parts, box=0.1, progress=False)
