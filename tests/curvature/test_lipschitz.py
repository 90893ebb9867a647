"""ρ against functions whose Hessian is known, and against dense Hessians."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor, nn

from hf_pacgen import ScoreConfig, hessian_lipschitz
from hf_pacgen.curvature.displacement import BoxDirection


class Weights(nn.Module):
    def __init__(self, count: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, count, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cubic_has_the_rho_of_its_largest_coefficient(dtype: torch.dtype) -> None:
    # L = Σ c_i w_i³/6: H(w+u) - H(w) = diag(c_i u_i), whose norm over ‖u‖ is max |c_i u_i|/‖u‖
    coefficients = torch.linspace(-3, 5, 40, dtype=dtype)

    def loss(model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
        return (coefficients * model.w**3 / 6).sum() * len(batch), len(batch)  # type: ignore[operator]

    config = ScoreConfig(epsilon=0.1, lipschitz_directions=3, lipschitz_iterations=30)
    model = Weights(40, dtype)
    result = hessian_lipschitz(model, [torch.zeros(4)], config=config, loss_fn=loss, progress=False)
    expected = []
    for direction in range(3):
        u = BoxDirection(0, "box", direction, gamma=0.1, epsilons={"w": 0.1}).piece("w", 0, model.w.detach())
        expected.append(((coefficients * u).abs().max() / u.norm()).item())
    assert result.ratios == pytest.approx(expected, rel=3e-2 if dtype == torch.float32 else 1e-6)
    assert result.largest == max(result.ratios) <= 5 and result.converged
    assert result.value == sorted(result.ratios)[1]


def test_a_quadratic_has_none() -> None:
    def loss(model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
        return model.w.square().sum() * len(batch), len(batch)  # type: ignore[operator]

    # ‖H‖/‖u‖ is about 3 here: float32 differences see no more than their rounding
    for dtype, limit in ((torch.float32, 0.06), (torch.float64, 1e-12)):
        result = hessian_lipschitz(Weights(30, dtype), [torch.zeros(2)], loss_fn=loss, progress=False)
        assert result.value < limit


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_lanczos_finds_the_norm_of_the_difference_of_dense_hessians(name: str) -> None:
    model, parts = tiny.make(name), tiny.split(tiny.examples(name, 5), 2, 3)
    config = ScoreConfig(epsilon=0.1, lipschitz_directions=2, lipschitz_iterations=12, lipschitz_batches=2)
    result = hessian_lipschitz(model, parts, config=config, progress=False)
    at_w = tiny.dense_hessian(model, tiny.examples(name, 5))
    kept = {n: p.detach().clone() for n, p in model.named_parameters()}
    for direction, ratio in enumerate(result.ratios):
        box = BoxDirection(0, "box", direction, gamma=0.1, epsilons=dict.fromkeys(kept, 0.1))
        u = {n: box.piece(n, 0, w) for n, w in kept.items()}
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(kept[n] + u[n])
        difference = tiny.dense_hessian(model, tiny.examples(name, 5)) - at_w
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(kept[n])
        exact = torch.linalg.eigvalsh((difference + difference.T) / 2).abs().max() / tiny.flat(u).norm()
        assert ratio == pytest.approx(exact.item(), rel=0.02)
    assert result.batches == 2 and result.num_hvps == 2 * 2 * sum(result.iterations)


def test_rho_given_and_bad_settings() -> None:
    with pytest.raises(ValueError, match="needs lipschitz_directions of at least 1"):
        hessian_lipschitz(tiny.make("bert"), [], config=ScoreConfig(lipschitz_directions=0))


def test_one_iteration_is_not_called_converged() -> None:
    config = ScoreConfig(lipschitz_iterations=1)
    assert not hessian_lipschitz(tiny.make("bert"), [tiny.examples("bert", 4)], config=config, progress=False).converged


def test_a_product_that_is_not_finite_is_refused() -> None:
    def loss(model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
        return (model.w**4 * 1e4).sum() * len(batch), len(batch)  # type: ignore[operator]

    with pytest.raises(ValueError, match=r"not finite, so there is no ρ.*Load the weights in float32 or bfloat16"):
        hessian_lipschitz(Weights(3, torch.float16), [torch.zeros(1)], loss_fn=loss, progress=False)


def test_batches_without_units_are_passed_over_or_refused() -> None:
    batch = tiny.examples("gpt2", 4)
    empty = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    one, other = (hessian_lipschitz(tiny.make("gpt2"), d, progress=False) for d in ([empty, batch], [batch]))
    assert one.value == pytest.approx(other.value, rel=1e-6) and one.value > 0

    def loss(model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
        return model.w.square().sum(), 0  # type: ignore[operator]

    with pytest.raises(ValueError, match=r"The batches of ρ \(lipschitz_batches=1\) have no loss unit"):
        hessian_lipschitz(Weights(3, torch.float32), [torch.zeros(2)], loss_fn=loss, progress=False)
