"""The loss of CTC with second derivatives: torch's, and differences of its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_pacgen.model.ctc import ctc_loss, differentiable_ctc

TARGETS = torch.tensor([[1, 2, 2], [3, 3, -100], [4, -100, -100], [-100, -100, -100]])
LENGTHS = torch.tensor([3, 2, 1, 0])


def frames(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(7, 4, 5, generator=generator, dtype=torch.float64).log_softmax(-1).requires_grad_()


WAYS: dict[str, dict[str, Any]] = {
    "padded": {},
    "one behind the other": {"targets": torch.tensor([1, 2, 2, 3, 3, 4])},
    "lists": {"input_lengths": [7, 5, 7, 6], "target_lengths": [3, 2, 1, 0]},
    "another blank": {"blank": 4, "targets": torch.tensor([[1, 2, 2], [3, 3, 0], [0, 0, 0], [0, 0, 0]])},
    "too few frames": {"input_lengths": torch.tensor([3, 3, 7, 7]), "zero_infinity": True},
}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("way", WAYS)
def test_it_is_that_of_torch_with_its_gradient(way: str, reduction: str) -> None:
    how: dict[str, Any] = {"targets": TARGETS, "input_lengths": torch.tensor([7, 5, 6, 7]), "target_lengths": LENGTHS}
    how |= WAYS[way] | {"reduction": reduction}
    found: list[Tensor] = []
    expected: list[Tensor] = []
    for function, kept in ((ctc_loss, found), (functional.ctc_loss, expected)):
        log_probs = frames()
        loss = function(log_probs, **how)
        # torch's gradient takes log_probs for normalized, so it is compared behind a softmax
        (gradient,) = torch.autograd.grad(
            function(log_probs.log_softmax(-1), **how).sum(), [log_probs], allow_unused=True
        )
        kept.extend([loss.detach(), gradient])
    for mine, torchs in zip(found, expected, strict=True):
        assert torch.allclose(mine, torchs, rtol=1e-10, atol=1e-12)


def test_what_cannot_be_said_is_infinite() -> None:
    log_probs = torch.zeros(1, 1, 3, dtype=torch.float64).log_softmax(-1)
    both: tuple[Any, ...] = (ctc_loss, functional.ctc_loss)
    for function in both:
        assert function(log_probs, torch.tensor([[1, 2]]), [1], [2], reduction="sum").item() == torch.inf
    single = torch.randn(5, 3, dtype=torch.float64).log_softmax(-1)
    mine, torchs = (
        f(single, torch.tensor([1, 2]), torch.tensor(5), torch.tensor(2)) for f in (ctc_loss, functional.ctc_loss)
    )
    assert mine.item() == pytest.approx(torchs.item(), rel=1e-12)


def test_its_second_derivative_is_a_difference_of_torchs_gradients() -> None:
    logits = torch.randn(7, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    along = torch.randn(7, 4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def slope(at: Tensor, *, graph: bool = False) -> Any:
        at = at.clone().requires_grad_()
        loss = nn.CTCLoss()(at.log_softmax(-1), TARGETS, torch.tensor([7, 5, 6, 7]), LENGTHS)
        (gradient,) = torch.autograd.grad(loss, [at], create_graph=graph)
        return (at, gradient) if graph else gradient

    with differentiable_ctc():
        at, gradient = slope(logits, graph=True)
        (product,) = torch.autograd.grad(gradient, [at], along)
    step = 1e-5
    expected = (slope(logits + step * along) - slope(logits - step * along)) / (2 * step)
    assert (product - expected).abs().max() < 1e-7 * expected.abs().max() + 1e-9
    assert functional.ctc_loss is not ctc_loss


def test_other_reductions_are_refused() -> None:
    with pytest.raises(ValueError, match="reduction must be 'none', 'mean' or 'sum'; got 'best'"):
        ctc_loss(frames().detach(), TARGETS, [7, 7, 7, 7], LENGTHS, reduction="best")
