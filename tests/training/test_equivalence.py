"""What must be the same, and what must not: shells, draws, random states, antithetic pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from training_runs import SHELLS, arguments, bert, difference, llama, losses, same, trained, weights
from transformers import Trainer

from hf_pacgen.config import NoiseConfig

NOISES: dict[str, dict[str, Any]] = {
    "price": {},
    "adam": {"curvature": "adam"},
    "hutchinson": {"curvature": "hutchinson", "curvature_every": 2},
    "isotropic": {"shape": "isotropic"},
    "magnitude": {"shape": "magnitude"},
    "article": {"shape": "article", "curvature_every": 1, "scale": 0.01},
    "truncated normal": {"distribution": "truncated_normal", "epsilon": 0.05},
    "schedule": {"warmup_ratio": 0.5, "decay_ratio": 0.2},
    "rho": {"rho": "estimate", "rho_every": 3, "curvature_every": 1},
}


@pytest.mark.parametrize("name", NOISES)
def test_callback_and_trainer_agree_where_both_draw_once_a_step(name: str) -> None:
    """With dropout, and with gradients clipped in every step."""
    runs = [trained(shell, NoiseConfig(**NOISES[name]), max_grad_norm=0.1, max_steps=8) for shell in ("plain", *SHELLS)]
    plain, *noisy = (weights(run.model) for run in runs)
    assert same(*noisy) and losses(runs[1]) == losses(runs[2])
    assert difference(plain, noisy[0]) > 1e-4


def test_micro_batches_have_draws_of_their_own() -> None:
    finals = []
    for draw in ("step", "micro_batch"):
        run = trained("trainer", NoiseConfig(draw=draw), model=llama(), gradient_accumulation_steps=2)  # type: ignore[arg-type]
        finals.append(weights(run.model))
    assert difference(*finals) > 1e-5


def test_the_seed_decides_the_noise() -> None:
    finals = []
    for seed in (0, 1, 1):
        run = trained("trainer", NoiseConfig(seed=seed))
        finals.append(weights(run.model))
    assert difference(finals[0], finals[1]) > 1e-5 and same(finals[1], finals[2])


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", ["price", "hutchinson", "rho"])
def test_no_other_random_state_is_touched(shell: str, name: str) -> None:
    states = []
    for kind in ("plain", shell):
        trained(kind, NoiseConfig(**NOISES[name]), max_steps=3)
        states.append(torch.get_rng_state())
    assert states[0].equal(states[1])


class Quadratic(torch.nn.Module):
    """A loss that is quadratic in the weights, in which the first-order effect of noise is all there is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(16, 3)

    def forward(self, input_ids: Any = None, labels: Any = None) -> dict[str, Any]:
        inputs = torch.nn.functional.one_hot(input_ids % 16, 16).float().mean(1)
        target = torch.nn.functional.one_hot(labels, 3).float()
        return {"loss": (self.linear(inputs) - target).square().mean()}


def test_the_gradient_of_an_antithetic_pair_is_exact_on_a_quadratic() -> None:
    finals = {}
    for shell, noise in (("plain", None), ("trainer", NoiseConfig()), ("pair", NoiseConfig(antithetic=True))):
        kind = "plain" if shell == "plain" else "trainer"
        run = trained(kind, noise, model=Quadratic(), optim="sgd", learning_rate=0.1, gradient_accumulation_steps=2)
        finals[shell] = weights(run.model)
    assert difference(finals["plain"], finals["pair"]) < 1e-6 < 1e-4 < difference(finals["plain"], finals["trainer"])


def test_a_pair_shares_its_dropout_and_leaves_the_random_state_of_one_pass() -> None:
    class Halves(Trainer):
        seen: list[float] = []  # noqa: RUF012

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            self.seen.append(loss.item())
            return loss

    Halves.seen.clear()
    noise = NoiseConfig(antithetic=True, shape="isotropic", scale=1e-7)  # type: ignore[arg-type]
    pair = trained("trainer", noise, model=bert(0.5), trainer=Halves, max_steps=3)
    state, seen = torch.get_rng_state(), list(Halves.seen)
    plain = trained("plain", None, model=bert(0.5), max_steps=3)
    assert state.equal(torch.get_rng_state())
    assert seen[0::2] == pytest.approx(seen[1::2], abs=1e-4) and losses(pair) == pytest.approx(losses(plain), abs=1e-3)
    assert "compute_loss" not in vars(pair)


def test_training_arguments_do_not_change() -> None:
    args = arguments()
    before = args.to_dict()
    trained("callback", NoiseConfig(), args=args)
    assert args.to_dict() == before
