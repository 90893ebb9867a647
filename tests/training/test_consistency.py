"""Two noisy passes whose outputs are pulled together: the gradient is that of the whole loss at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from training_runs import bert, difference, llama, make, trained, weights
from transformers import Trainer

from hf_pacgen.config import NoiseConfig
from hf_pacgen.training.consistency import divergence


def test_the_divergence_is_the_mean_of_both_kl() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 5, 4).double(), torch.randn(2, 5, 4).double()
    p, q = (torch.distributions.Categorical(logits=logits) for logits in (first, second))
    kl = torch.distributions.kl_divergence
    rows = (kl(p, q) + kl(q, p)) / 2
    torch.testing.assert_close(divergence(first, second), rows.mean())
    labels = torch.full((2, 5), -100)
    assert divergence(first, second, labels) == 0
    labels[1, 2:4] = 1
    torch.testing.assert_close(divergence(first, second, labels), rows[1, 2:4].mean())


@pytest.mark.parametrize("build", [bert, llama], ids=["classes", "tokens"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_gradient_is_that_of_both_passes_at_once(build: Any, accumulated: int) -> None:
    """In float64 with dropout: the same in all passes."""
    weight, found = 100.0, []

    class Looks(Trainer):
        def training_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            noisy, state = self._noisy_step, torch.get_rng_state()
            before = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
            loss = super().training_step(model, inputs, *args, **kwargs)
            after, clean = torch.get_rng_state(), weights(model)
            values = []
            for sign in (1, -1):
                torch.set_rng_state(state)
                moved = {n: clean[n] + sign * (noisy.noise.twins()[n] - clean[n]) for n in noisy.noise.parameters}
                leaves = {n: t.clone().requires_grad_() for n, t in moved.items()}
                values.append((leaves, torch.func.functional_call(model, leaves, kwargs=dict(inputs))))
            assert torch.get_rng_state().equal(after)
            (one, first), (two, second) = values
            apart = divergence(first.logits, second.logits, inputs["labels"])
            share = 1 / accumulated if build is llama else 1.0  # which Bert's loss has not
            whole = share * (first.loss + second.loss) / 2 + weight * apart / accumulated
            whole.backward()
            tolerance = 1e-5 if build is llama else 1e-9  # which computes its loss in float32
            assert loss.item() == pytest.approx(whole.item(), rel=tolerance)
            for name, leaf in one.items():
                expected = sum(p.grad for p in (leaf, two[name]) if p.grad is not None)
                got = noisy.noise.parameters[name].grad - before[name]
                torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance / 100)
            found.append(apart.item())
            return loss

    noise = NoiseConfig(recipe="consistency", consistency=weight)  # type: ignore[arg-type]
    model = build().double()
    # around the PACGenTrainer's step
    run = make("trainer", noise, model=model, trainer=Looks, max_steps=2, gradient_accumulation_steps=accumulated)
    run.train()
    assert len(found) == 2 * accumulated and min(found) > 1e-6
    assert "compute_loss" not in vars(run)


def test_outputs_become_more_alike() -> None:
    finals = []
    for weight in (0.0, 30.0):
        noise = NoiseConfig(recipe="consistency", consistency=weight)  # type: ignore[arg-type]
        finals.append(weights(trained("trainer", noise, model=bert(0.0)).model))
    assert difference(*finals) > 1e-4


class WithoutLogits(nn.Module):
    def __init__(self, **outputs: Any) -> None:
        super().__init__()
        self.layer, self.outputs = nn.Linear(10, 1), outputs

    def forward(self, input_ids: Any = None, labels: Any = None) -> Any:
        return {"loss": self.layer(input_ids.float()).square().mean(), **self.outputs}


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (
            {},
            "needs outputs with logits .* of at least two classes; those of WithoutLogits have none. Use consistency=0",
        ),
        ({"logits": torch.zeros(4, 1)}, r"those of WithoutLogits have a tensor of shape \(4, 1\)"),
    ],
)
def test_outputs_without_classes_are_refused(outputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained("trainer", NoiseConfig(recipe="consistency"), model=WithoutLogits(**outputs))  # type: ignore[arg-type]


def test_outputs_of_other_shapes_are_refused() -> None:
    class Grows(WithoutLogits):
        def forward(self, input_ids: Any = None, labels: Any = None) -> Any:
            self.outputs["logits"] = torch.zeros(4, 2 + self.outputs.get("calls", 0))
            self.outputs["calls"] = self.outputs.get("calls", 0) + 1
            return super().forward(input_ids)

    with pytest.raises(ValueError, match=r"differ in shape: \(4, 2\) and \(4, 3\). Expected a model whose outputs"):
        trained("trainer", NoiseConfig(recipe="consistency"), model=Grows())  # type: ignore[arg-type]
