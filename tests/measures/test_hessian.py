"""The parts of a score by themselves, as a person calls them, against dense float64 oracles."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from hf_pacgen import ScoreConfig, hessian_diagonal, hessian_lipschitz, hessian_vector_product, pacgen

BATCH = tiny.examples("bert", 7)
PARTS = tiny.split(BATCH, 3, 3, 1)
EXACT = ScoreConfig(estimator="exact", lipschitz_directions=0)


def random_vector(model: nn.Module, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    flat = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return flat, tiny.unflat(flat, model)


def test_a_product_is_linear_and_symmetric() -> None:
    model = tiny.make("bert")
    (u, by_name_u), (v, by_name_v) = random_vector(model, 1), random_vector(model, 2)
    hu, hv = (tiny.flat(hessian_vector_product(model, PARTS, x)) for x in (by_name_u, by_name_v))
    assert (u @ hv).item() == pytest.approx((v @ hu).item(), rel=1e-9)
    mixed = hessian_vector_product(model, PARTS, tiny.unflat(2 * u - 3 * v, model))
    assert tiny.relative_error(tiny.flat(mixed), 2 * hu - 3 * hv) < 1e-10


def test_the_diagonal_is_made_of_products_with_unit_vectors() -> None:
    model = tiny.make("bert").requires_grad_(False)
    model.classifier.requires_grad_(True)  # type: ignore[union-attr]
    diagonal = tiny.flat(hessian_diagonal(model, PARTS, config=EXACT, progress=False).values)
    for i, unit in enumerate(torch.eye(len(diagonal), dtype=torch.float64)):
        product = tiny.flat(hessian_vector_product(model, PARTS, tiny.unflat(unit, model)))
        assert product[i].item() == pytest.approx(diagonal[i].item(), rel=1e-9)


def test_all_parts_are_those_of_the_score() -> None:
    model, config = tiny.make("bert"), ScoreConfig(passes=2, seed=3)
    score = pacgen(model, PARTS, config=config, progress=False)
    diagonal = hessian_diagonal(model, PARTS, config=config, progress=False)
    rho = hessian_lipschitz(model, PARTS, config=config, progress=False)
    assert (diagonal.trace, diagonal.trace_stderr) == (score.hessian_trace, score.hessian_trace_stderr)
    assert (rho.value, diagonal.loss) == (score.hessian_lipschitz, score.loss)
    assert diagonal.num_hvps + rho.num_hvps == score.num_hvps and diagonal.num_gradients == score.num_gradients


def test_a_displacement_of_ones_own_is_the_step_of_the_difference() -> None:
    """On a quartic the central difference of gradients with ‖h z‖ = d is exact up to its known error."""

    class Quartic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.5, -0.25], dtype=torch.float64))

    def loss(model: Any, batch: Tensor) -> tuple[Tensor, int]:
        return model.w.pow(4).sum() * len(batch), len(batch)

    model, vector, d = Quartic(), torch.tensor([3.0, 0.0], dtype=torch.float64), 0.1
    made: dict[str, Any] = {"loss_fn": loss, "method": "finite_difference", "displacement": d}
    product = hessian_vector_product(model, [torch.zeros(2)], {"w": vector}, **made)["w"]
    # (4(w+d)³ - 4(w-d)³)/2d = 12w² + 4d², times ‖v‖
    assert product.tolist() == pytest.approx([3 * (12 * 0.25 + 4 * d**2), 0.0], rel=1e-12)


def test_what_comes_back_is_wide_and_the_model_as_it_was() -> None:
    model = tiny.make("bert", dtype=torch.bfloat16).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, vector = random_vector(model)
    data = [tiny.examples("bert", 3, dtype=torch.bfloat16)]
    product = hessian_vector_product(model, data, vector, progress=False)
    diagonal = hessian_diagonal(model, data, config=ScoreConfig(standard_error=True), progress=False)
    assert diagonal.stderr is not None
    for tensors in (product, diagonal.values, diagonal.stderr):
        assert {t.dtype for t in tensors.values()} == {torch.float32}
        assert {n: t.shape for n, t in tensors.items()} == {n: p.shape for n, p in model.named_parameters()}
        assert not any(t.requires_grad for t in tensors.values())
    assert model.training and all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_a_parameter_that_the_loss_does_not_use_has_a_product_of_0() -> None:
    model = tiny.make("bert")
    model.extra = nn.Linear(2, 2).double()  # type: ignore[assignment]
    _, vector = random_vector(model)
    product = hessian_vector_product(model, PARTS, vector)
    assert not product["extra.weight"].any() and product["classifier.weight"].all()


@pytest.mark.parametrize("displacement", [0, -1.0, math.inf, math.nan, "0.1", torch.ones(1)])
def test_a_displacement_that_is_none(displacement: Any) -> None:
    model = tiny.make("bert")
    with pytest.raises(ValueError, match=r"displacement must be a finite number greater than 0.*; got"):
        hessian_vector_product(model, PARTS, random_vector(model)[1], displacement=displacement)


def test_rho_needs_a_direction() -> None:
    with pytest.raises(ValueError, match=r"needs lipschitz_directions of at least 1; got 0, which means 'not at all'"):
        hessian_lipschitz(tiny.make("bert"), PARTS, config=EXACT, progress=False)


def test_a_method_that_is_none_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match=r"hvp must be one of 'auto', 'reverse_over_reverse', .*got 'backward'"):
        hessian_vector_product(nn.Linear(1, 1), [], {}, method="backward")
