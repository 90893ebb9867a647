"""Noise for the time of a block: of the right size, the same for a seed, and gone afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_pacgen.maths.counter_rng import stream_key, uniform
from hf_pacgen.noise.perturbed import perturbed


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 40), nn.LayerNorm(40), nn.Linear(40, 3)).to(dtype)


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("distribution", ["uniform", "truncated_normal", "normal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_move_by_the_noise_and_return(distribution: str, dtype: torch.dtype) -> None:
    model = network(dtype)
    state = torch.get_rng_state()
    before, pointers = copies(model), [p.data_ptr() for p in model.parameters()]
    with perturbed(model, 0.05, distribution=distribution, seed=3) as noisy:
        assert noisy is model and all(p.dtype == dtype for p in model.parameters())
        noise = torch.cat([(p.detach() - before[n]).double().flatten() for n, p in model.named_parameters()])
    assert torch.get_rng_state().equal(state)
    assert all(p.equal(before[n]) for n, p in model.named_parameters())
    assert [p.data_ptr() for p in model.parameters()] == pointers
    rounding = 0.01 if dtype is torch.bfloat16 else 1e-6
    limits = {"uniform": 0.05, "truncated_normal": 0.2 + rounding, "normal": 1.0}
    variance = {"uniform": 0.05**2 / 3, "truncated_normal": 0.05**2, "normal": 0.05**2}[distribution]
    assert noise.abs().max() <= limits[distribution] + rounding
    assert noise.square().mean().item() == pytest.approx(variance, rel=0.25) and abs(noise.mean()) < 0.01


def test_uniform_noise_is_that_of_the_named_stream() -> None:
    model = network()
    before = copies(model)
    with perturbed(model, 0.05, seed=3):
        for name, parameter in model.named_parameters():
            key = stream_key(3, "perturbed") ^ stream_key("parameter", name)
            expected = before[name] + 0.05 * uniform(key, parameter.numel()).view_as(parameter)
            torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-6)


class Remembering(nn.Module):
    """Keeps in evaluation mode what it made of its weights, as LeViT does its attention biases."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias_cache = nn.Parameter(torch.ones(3)), {}  # type: ignore[var-annotated]

    def forward(self) -> Tensor:
        if "cpu" not in self.bias_cache:
            self.bias_cache["cpu"] = 2 * self.weight
        return self.bias_cache["cpu"].sum()  # type: ignore[no-any-return]


def test_what_a_module_keeps_of_its_weights_is_made_anew() -> None:
    model = Remembering().eval()
    assert model().item() == 6
    kept = model.bias_cache["cpu"]
    with perturbed(model, 0.5, seed=0):
        assert model().item() == pytest.approx(2 * model.weight.sum().item()) != 6
    assert model.bias_cache["cpu"] is kept and model().item() == 6


def test_the_noise_of_a_parameter_depends_on_nothing_but_seed_and_name() -> None:
    model, found = network(), []
    for frozen, seed in (((), 0), (("0.weight",), 0), ((), 1)):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        before = copies(model)
        with perturbed(model, 0.1, seed=seed):
            found.append({name: p.detach() - before[name] for name, p in model.named_parameters()})
    assert found[1]["0.weight"].eq(0).all() and found[0]["2.weight"].equal(found[1]["2.weight"])
    assert not found[0]["2.weight"].equal(found[2]["2.weight"])


def test_scales_by_name() -> None:
    model = network()
    before = copies(model)
    scales = {"0.weight": torch.rand(40, 30), "2.bias": torch.tensor(0.5)}
    with perturbed(model, scales, seed=0):
        moved = {name: (p.detach() - before[name]).abs() for name, p in model.named_parameters()}
    assert (moved["0.weight"] <= scales["0.weight"] + 1e-6).all() and moved["0.weight"].max() > 0.5
    assert 0 < moved["2.bias"].max() <= 0.5 and moved["2.weight"].max() == moved["1.weight"].max() == 0


def test_tied_weights_get_one_noise_and_nothing_else_changes() -> None:
    model: Any = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model.b.weight = model.a.weight
    frozen = model.b.bias.requires_grad_(False)
    before, state = frozen.clone(), torch.get_rng_state()
    with perturbed(model, 0.1, seed=0):
        assert model.a.weight is model.b.weight and frozen.equal(before)
    assert torch.get_rng_state().equal(state)


def test_transposed_weights_are_perturbed_and_return() -> None:
    layer = nn.Linear(8, 6)
    layer.weight = nn.Parameter(torch.randn(8, 6).t())
    before, strides = layer.weight.detach().clone(), layer.weight.stride()
    with perturbed(layer, 0.1, seed=0):
        assert 0 < (layer.weight - before).abs().max() <= 0.1
    assert layer.weight.equal(before) and layer.weight.stride() == strides


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_weights_return_after_an_exception(error: type[BaseException]) -> None:
    model = network()
    before = copies(model)
    with pytest.raises(error):
        with perturbed(model, 0.1, seed=0):
            model[0].weight.data.add_(1)  # type: ignore[operator]  # even what is written while the noise is on
            raise error
    assert all(p.equal(before[n]) for n, p in model.named_parameters())


def test_noise_on_noise() -> None:
    model = network()
    before = copies(model)
    with perturbed(model, 0.1, seed=0):
        outer = copies(model)
        with perturbed(model, 0.1, seed=1):
            assert not model[0].weight.equal(outer["0.weight"])  # type: ignore[operator]
        assert all(p.equal(outer[n]) for n, p in model.named_parameters())
    assert all(p.equal(before[n]) for n, p in model.named_parameters())


BAD: list[tuple[Any, str]] = [
    (-0.1, r"noise_scale must be a finite number >= 0, or tensors by name; got -0.1"),
    (float("nan"), "noise_scale must be a finite number"),
    (True, "noise_scale must be a finite number >= 0"),
    ({"4.weight": torch.ones(1)}, r"noise_scale names \['4.weight'\], which are no trainable parameters"),
    ({"0.bias": torch.ones(3)}, r"noise_scale\['0.bias'\] must have shape \(40,\), like the parameter, or one"),
    (10**400, "noise_scale must be a finite number >= 0, or tensors by name; got 1000"),
    (1e39, "noise_scale must be a finite number >= 0, or tensors by name; got 1e\\+39"),
    ({"0.bias": None}, r"noise_scale\['0.bias'\] must be a tensor or a number, finite and >= 0; got None"),
    ({"0.bias": -1.0}, r"noise_scale\['0.bias'\] must be a tensor or a number, finite and >= 0; got -1.0"),
    ({"0.bias": torch.full((40,), -1.0)}, r"noise_scale\['0.bias'\] must be finite and >= 0 everywhere"),
]


@pytest.mark.parametrize("scale, message", BAD)
def test_bad_scales_are_refused(scale: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with perturbed(network(), scale, seed=0):
            pass


@pytest.mark.parametrize("seed", [None, "a", True, -1, 1.5])
def test_bad_seeds_are_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match=f"seed must be an integer of at least 0; got {seed!r}"):
        with perturbed(network(), 0.1, seed=seed):
            pass


def test_bad_boxes_are_refused() -> None:
    for box, message in (
        ({"gamma": -1}, "gamma must be a finite number >= 0; got -1"),
        ({"epsilon": "x"}, "epsilon must be a finite number >= 0; got 'x'"),
        ({"gamma": 0, "epsilon": 0.0}, "gamma and epsilon are both 0, so truncated noise has no room"),
    ):
        with pytest.raises(ValueError, match=message):
            with perturbed(network(), 0.1, seed=0, distribution="truncated_normal", **box):
                pass


def test_a_number_for_one_parameter() -> None:
    model = network()
    before = model.state_dict()["0.bias"].clone()
    with perturbed(model, {"0.bias": 0.1}, seed=0):
        by_number = dict(model.named_parameters())["0.bias"].detach().clone()
    with perturbed(model, {"0.bias": torch.full((40,), 0.1)}, seed=0):
        assert dict(model.named_parameters())["0.bias"].equal(by_number) and not by_number.equal(before)


def test_nothing_to_perturb_and_unknown_noise_are_refused() -> None:
    with pytest.raises(ValueError, match="Sequential has no trainable parameters, so there is nothing to perturb"):
        with perturbed(network().requires_grad_(False), 0.1, seed=0):
            pass
    with pytest.raises(ValueError, match="distribution must be one of 'uniform', 'truncated_normal', 'normal'"):
        with perturbed(network(), 0.1, distribution="cauchy", seed=0):
            pass
