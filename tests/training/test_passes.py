"""Noise is on for the passes that train alone: what is done to the weights between them finds them clean."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from training_runs import SHELLS, Sentences, difference, llama, losses, make, same, weights
from transformers import Trainer

from hf_pacgen import NoiseConfig
from hf_pacgen.noise.perturbation import Perturbation
from hf_pacgen.training.passes import Passes

NOISE = NoiseConfig(shape="isotropic", scale=0.05, draw="step")  # type: ignore[arg-type]
TOKENS = torch.ones(1, 3, dtype=torch.long)


def adapted(**changes: Any) -> Any:
    settings: dict[str, Any] = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    return get_peft_model(llama(), LoraConfig(**settings, **changes))


def merged_rollout(model: Any) -> None:
    """As trainers of online RL have it: the adapter is merged, a text is written, the adapter is taken out again."""
    model.merge_adapter()
    was = model.training
    model.eval()
    model.generate(input_ids=TOKENS, max_new_tokens=2, pad_token_id=0)
    model.train(was)
    model.unmerge_adapter()


class RollsOut(Trainer):
    """Rolls out before its loss, and once more between the loss and its backward pass."""

    sent: list[dict[str, Tensor]]
    noisy: list[float]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        merged_rollout(model)
        self._send(model)
        self._no_gradient(model, inputs)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self._send(model)
        merged_rollout(model)
        return loss

    def _send(self, model: nn.Module) -> None:
        self.__dict__.setdefault("sent", []).append(weights(model))

    def _no_gradient(self, model: nn.Module, inputs: Any) -> None:
        with torch.no_grad():
            self.__dict__.setdefault("without", []).append(model(**inputs).loss.item())


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_rollout_with_merged_adapters_leaves_the_base_as_it_is(shell: str, accumulation: int) -> None:
    def run(shell: str, kind: type[Trainer], **how: Any) -> tuple[Any, dict[str, Tensor], list[float]]:
        model = adapted()
        frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
        felt: list[float] = []
        layer = model.base_model.model.model.layers[0]
        layer.register_forward_pre_hook(lambda *_: felt.append(_moved(model, before)) if _trains(layer) else None)
        before = weights(model)
        noise = None if shell == "plain" else NOISE
        how |= {"max_steps": 3, "gradient_accumulation_steps": accumulation, "learning_rate": 0.0}
        trainer: Any = make(shell, noise, model=model, trainer=kind, data=Sentences(causal=True), **how)
        trainer.train()
        now = weights(model)
        assert same({n: t for n, t in now.items() if n not in frozen}, {n: before[n] for n in now if n not in frozen})
        return trainer, {name: now[name] - tensor for name, tensor in frozen.items()}, felt

    def _trains(layer: nn.Module) -> bool:
        return layer.training and torch.is_grad_enabled()

    trainer, moved, felt = run(shell, RollsOut)
    plain, reference, _ = run("plain", RollsOut)
    assert max(t.abs().max().item() for t in moved.values()) < 1e-6
    assert all(moved[name].equal(tensor) for name, tensor in reference.items())  # as far as without noise
    assert all(same(a, b) for a, b in zip(trainer.sent, plain.sent, strict=True))
    assert trainer.without == plain.without  # a pass without gradients is clean
    assert len(felt) == 3 * accumulation and min(felt) > 0.01
    assert losses(trainer) != losses(plain)


def _moved(model: nn.Module, before: dict[str, Tensor]) -> float:
    return difference({n: t for n, t in weights(model).items() if "lora" in n}, before)


# ------------------------------------------------------------------------- the gradient is that at the noisy weights


def noisy(model: nn.Module, **how: Any) -> tuple[Perturbation, Passes]:
    noise = Perturbation(dict(model.named_parameters()), model=model)
    noise.draw(lambda block, weights: torch.full_like(weights, 0.05), 0)
    return noise, Passes(model, noise, **how)


def batch(seed: int = 0) -> dict[str, Tensor]:
    tokens = torch.randint(1, 50, (2, 8), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": tokens, "labels": tokens}


def once(model: Any) -> None:
    model(**batch()).loss.backward()


def contrastive(model: Any) -> None:
    first, second = (model(**batch(seed)).logits.mean((0, 1)) for seed in range(2))
    (first @ second).backward()


def from_the_logits(model: Any) -> None:
    model(**batch()).logits.square().mean().backward()


def from_a_hidden_state(model: Any) -> None:
    model(**batch(), output_hidden_states=True).hidden_states[1].square().mean().backward()


def accumulated(model: Any) -> None:
    for seed in range(3):
        model(**batch(seed)).loss.backward()


def twice_through_one_graph(model: Any) -> None:
    loss = model(**batch()).loss
    loss.backward(retain_graph=True)
    loss.backward()


def in_autocast(model: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch()).loss
    loss.backward()


def head_by_hand(model: Any) -> None:
    hidden = model.model(input_ids=batch()["input_ids"]).last_hidden_state
    nn.functional.linear(hidden, model.lm_head.weight).logsumexp(-1).mean().backward()


def a_penalty_on_the_gradient(model: Any) -> None:
    model.set_attn_implementation("eager")
    loss = model(**batch()).loss
    [gradient] = torch.autograd.grad(loss, [model.model.norm.weight], create_graph=True)
    (loss + gradient.square().sum()).backward()


WAYS = (
    *(once, contrastive, from_the_logits, from_a_hidden_state, accumulated, twice_through_one_graph, in_autocast),
    *(head_by_hand, a_penalty_on_the_gradient),
)


@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["stored", "checkpointed", "reentrant"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_gradients_are_those_at_the_noisy_weights(way: Any, checkpointing: bool | None) -> None:
    """Whatever autograd kept of the forward pass: the parameter itself, a view of it, or nothing."""
    if checkpointing and way in (a_penalty_on_the_gradient, contrastive, from_a_hidden_state, twice_through_one_graph):
        pytest.skip("a reentrant checkpoint cannot go backward in this way")
    found = []
    for throughout in (True, False):
        model: Any = llama(tied=False).train()
        if checkpointing is not None:
            model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        before = weights(model)
        noise, passes = noisy(model)
        if throughout:
            noise.apply()
        else:
            passes.begin()
        way(model)
        assert throughout or (not noise.applied and passes.taken)
        passes.end()
        assert same(weights(model), before)
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert same(*found)


def test_between_its_forward_and_its_backward_pass_the_model_is_clean() -> None:
    model: Any = llama()
    before = weights(model)
    _, passes = noisy(model)
    clean = model.eval()(**batch()).loss
    passes.begin()
    loss = model.train()(**batch()).loss
    assert loss != clean and same(weights(model), before)
    with torch.no_grad():
        assert model(**batch()).loss == clean and model.eval()(**batch()).loss == clean
    model.train()
    loss.backward()
    assert same(weights(model), before)
    with pytest.raises(RuntimeError, match="as asked"):
        handle = model.lm_head.register_forward_pre_hook(_fail)
        model(**batch())
    handle.remove()
    assert same(weights(model), before)
    passes.close()
    assert model(**batch()).loss == clean and not any(m._forward_pre_hooks for m in model.modules())


def _fail(*_: Any) -> None:
    raise RuntimeError("as asked")


def test_a_first_pass_without_gradients_that_a_backward_pass_repeats_is_refused() -> None:
    model: Any = llama()
    _, passes = noisy(model)
    passes.begin()
    with torch.no_grad():
        logits = model(**batch()).logits
    cached = logits.clone().requires_grad_()
    loss = cached.square().mean()

    def again(gradient: Tensor) -> None:
        with torch.enable_grad():
            (model(**batch()).logits * gradient).sum().backward()

    cached.register_hook(again)
    with pytest.raises(ValueError, match=r"runs the model again, after a first pass without gradients.*use_reentrant"):
        loss.backward()


ELSEWHERE: dict[str, tuple[dict[str, Any], list[bool]]] = {
    "noise": ({"curvature_every": 1, "epsilon": 0.05}, [False, True, True, True]),
    # it begins with the second step, which is missed and gives the third no direction
    "ascent": ({"recipe": "ascent", "scale": 0.15}, [False, False, False, True]),
}


@pytest.mark.parametrize("noise", ELSEWHERE)
@pytest.mark.parametrize("shell", SHELLS)
def test_a_loss_from_elsewhere_in_the_model_is_noticed(
    shell: str, noise: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It multiplies the weights by hand: the first step with noise has none and teaches nothing, the others have it."""
    felt: list[bool] = []

    class ByHand(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            felt.append(not model.lm_head.weight.equal(before["lm_head.weight"]))
            return (model.lm_head.weight.square() * (1 + inputs["input_ids"][0, 0])).mean()

    model = llama(tied=False)
    before = weights(model)
    settings, expected = ELSEWHERE[noise]
    with caplog.at_level(logging.WARNING):
        trainer = make(shell, NoiseConfig(**settings), model=model, trainer=ByHand, max_steps=4, learning_rate=0.0)
        trainer.train()
    assert caplog.text.count("A gradient was taken without noise") == 1
    assert felt == expected and same(weights(model), before)
