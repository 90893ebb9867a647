"""Noise on a model that FSDP2 shards over two processes: the training of one process, and no trace of the noise."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from launch import on_two_processes
from sharded import check, same, whole
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.data import Dataset

from hf_pacgen.config import NoiseConfig
from hf_pacgen.distributed.processes import Processes
from hf_pacgen.distributed.shards import is_sharded, local
from hf_pacgen.noise.perturbation import Perturbation
from hf_pacgen.noise.perturbed import perturbed
from hf_pacgen.training.callback.guard import Guard
from hf_pacgen.training.noise_state import NOISE_FILE
from hf_pacgen.training.noisy_step import NoisyStep
from hf_pacgen.training.run_facts import Run

STEPS = 12
BATCH = 8


class Examples(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return BATCH * STEPS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: values[index] for key, values in tiny.examples("bert", BATCH * STEPS).items()}


def bert() -> nn.Module:
    """Layers whose halves do not begin at multiples of eight elements, and biases that do not halve."""
    torch.manual_seed(0)
    # without dropout, whose masks would be others for halves of a batch
    made = tiny.bert(
        hidden_size=6,
        intermediate_size=11,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return made.double().train()


def shard(made: Any) -> Any:
    for layer in made.bert.encoder.layer:
        fully_shard(layer)
    return fully_shard(made)


def batch(step: int, half: int | None = None) -> dict[str, Tensor]:
    data = tiny.examples("bert", BATCH * STEPS)
    first, count = step * BATCH, BATCH
    if half is not None:
        first, count = first + half * BATCH // 2, BATCH // 2
    return {key: values[first : first + count] for key, values in data.items()}


def start(made: nn.Module, settings: dict[str, Any], *, clips: bool = False) -> tuple[NoisyStep, Any]:
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    run = Run(
        model=made,
        optimizer=optimizer,
        dataset=Examples(),
        collate_fn=None,
        batch_size=BATCH,
        num_examples=BATCH * STEPS,
        examples_per_step=BATCH,
        max_steps=STEPS,
        processes=Processes(),
        clips=clips,
    )
    return NoisyStep(NoiseConfig(eta=1000, **settings), run), optimizer


def gradient(engine: NoisyStep, made: nn.Module, part: dict[str, Tensor], step: int, micro: int, of: int) -> None:
    """The gradient of a micro-batch at noisy weights, as the PACGenTrainer takes it."""
    pair = engine.config.antithetic
    try:
        if noisy := engine.draw(step, micro):
            engine.noise.apply()
        (made(**part).loss / of / (2 if pair and noisy else 1)).backward()
        if noisy and pair:
            engine.mirror()
            engine.noise.apply()
            (made(**part).loss / of / 2).backward()
            engine.after_pair()
    finally:
        engine.noise.restore()


def train(
    made: nn.Module,
    settings: dict[str, Any],
    *,
    half: int | None = None,
    clip: float = 0.0,
    accumulate: int = 1,
    defer: bool = False,
    steps: range = range(STEPS),
    started: tuple[NoisyStep, Any] | None = None,
) -> NoisyStep:
    engine, optimizer = started or start(made, settings, clips=clip > 0)
    for step in steps:
        for micro in range(accumulate):
            if defer and is_sharded(next(made.parameters())):
                made.set_requires_gradient_sync(micro == accumulate - 1)  # type: ignore[operator]
            gradient(engine, made, batch((step + micro) % STEPS, half), step, micro, accumulate)
        if clip:
            torch.nn.utils.clip_grad_norm_(made.parameters(), clip)
        engine.before_optimizer_step(step)
        optimizer.step()
        optimizer.zero_grad()
    return engine


def shards_of(made: nn.Module) -> dict[str, Tensor]:
    return {name: local(p).clone() for name, p in made.named_parameters()}


# ------------------------------------------------------------------------------------------------- the same training


def _train(settings: dict[str, Any], how: dict[str, Any], weights: Any, curvature: Any) -> None:
    made = shard(bert())
    engine = train(made, settings, half=torch.distributed.get_rank(), **how)
    same(whole(engine.tracker.curvature()), curvature, "curvatures")
    engine.close()
    same(whole(made.named_parameters()), weights, "weights")


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "price": ({}, {}),
    "every step": ({"curvature_every": 1, "rho": 0.3}, {}),
    "clipped": ({"curvature_every": 1}, {"clip": 0.05}),
    "accumulated": ({"curvature_every": 1}, {"accumulate": 2}),
    "reduced once": ({"curvature_every": 1}, {"accumulate": 2, "clip": 0.05, "defer": True}),
    "antithetic, reduced once": ({"curvature_every": 1, "antithetic": True}, {"accumulate": 2, "defer": True}),
    "antithetic": ({"curvature_every": 1, "antithetic": True}, {"accumulate": 2}),
    "hutchinson": ({"curvature": "hutchinson", "curvature_every": 3}, {}),
    "hutchinson, reduced once": ({"curvature": "hutchinson"}, {"accumulate": 2, "defer": True}),
    "estimated": ({"rho": "estimate", "rho_every": 4}, {}),
    "adam": ({"curvature": "adam"}, {}),
    "isotropic": ({"shape": "isotropic", "scale": 0.05}, {}),
    "article": ({"shape": "article", "draw": "step"}, {"accumulate": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_training_on_shards_is_that_of_one_process(case: str) -> None:
    settings, how = CASES[case]
    made, silent = bert(), bert()
    engine = train(made, settings, **how)
    train(silent, {"scale": 0.0}, **how)
    weights, plain = whole(made.named_parameters()), whole(silent.named_parameters())
    assert max((weights[name] - plain[name]).abs().max().item() for name in weights) > 1e-3  # the noise is felt
    on_two_processes(_train, settings, how, weights, whole(engine.tracker.curvature()))


# -------------------------------------------------------------------------------------------------- without a trace


def _exceptions() -> None:
    made = shard(bert())
    engine, _ = start(made, {})
    part = batch(0, torch.distributed.get_rank())
    with torch.no_grad():
        clean = made(**part).logits.clone()
    before = shards_of(shard(bert()))
    made.zero_grad()

    def fail(*_: Any) -> None:
        check(not torch.is_grad_enabled() or not made.classifier.weight.equal(weight), "there is no noise to leave")
        raise KeyError("as asked")

    weight = bert().classifier.weight  # type: ignore[union-attr]
    for place in (made.classifier, made.bert.encoder.layer[1], made.bert.encoder.layer[0].output):
        handle = place.register_forward_hook(fail)
        for noise in ("engine", "perturbed"):
            with pytest.raises(KeyError, match="as asked"):
                if noise == "engine":
                    gradient(engine, made, part, 0, 0, 1)
                else:
                    with perturbed(made, 0.1, seed=0):
                        made(**part)
            for name, parameter in made.named_parameters():
                check(is_sharded(parameter) and local(parameter).equal(before[name]), f"{noise}: {name} is not clean")
        handle.remove()
        with torch.no_grad():
            check(made(**part).logits.equal(clean), "a forward pass does not see the clean weights")
    train(made, {}, half=torch.distributed.get_rank(), steps=range(2), started=start(made, {}))


@pytest.mark.skipif(
    not hasattr(FSDPModule, "reset_iter_state"), reason="this torch cannot start a sharded forward pass anew"
)
def test_weights_return_bit_for_bit_after_an_exception() -> None:
    on_two_processes(_exceptions)


def _saves() -> None:
    made = shard(bert())
    engine, _ = start(made, {})
    guard = Guard(made, engine.noise)
    part = batch(0, torch.distributed.get_rank())
    before = shards_of(made)
    with torch.no_grad():
        clean = made.eval()(**part).logits.clone()
    made.train()
    check(engine.draw(0), "there is no noise")
    guard.enter()
    engine.noise._shards.reshard()  # type: ignore[union-attr]  # the outermost module keeps what a pass has gathered
    now = shards_of(made)
    check(all(now[name].equal(before[name]) for name in before), "there is noise before any pass")
    made(**part)
    engine.noise._shards.reshard()  # type: ignore[union-attr]
    noisy = shards_of(made)
    check(any(not noisy[name].equal(before[name]) for name in before), "the weights have no noise")
    saved = made.state_dict()
    layer = made.bert.encoder.layer[0].state_dict()
    now = shards_of(made)
    check(all(now[name].equal(noisy[name]) for name in noisy), "the noise is not back after a save")
    check(all(local(saved[name]).equal(before[name]) for name in before), "the state dict has noise")
    for name, value in layer.items():
        check(local(value).equal(before[f"bert.encoder.layer.0.{name}"]), "the state dict of a layer has noise")
    logits = made(**part).logits
    check(not logits.equal(clean), "a training pass sees clean weights")
    with torch.no_grad():
        check(made.eval()(**part).logits.equal(clean), "an evaluation in a step sees noise")
    again = made.train()(**part)
    check(again.logits.equal(logits), "the noise is not back after an evaluation")
    again.loss.backward()
    check(engine.noise.applied is False, "the noise is still there after the backward pass")
    guard.leave()
    now = shards_of(made)
    check(all(now[name].equal(before[name]) for name in before), "the weights are not as they were")
    with torch.no_grad():
        check(made(**part).logits.equal(clean), "a gathered copy has noise")


def test_a_save_and_an_evaluation_in_a_step_find_clean_weights() -> None:
    on_two_processes(_saves)


def _left_behind() -> None:
    made = shard(bert())
    engine, _ = start(made, {})
    guard = Guard(made, engine.noise)
    part = batch(0, torch.distributed.get_rank())
    with torch.no_grad():
        clean = made(**part).logits.clone()

    def aborted_loop() -> None:
        engine.draw(0)
        guard.enter()
        made(**part)  # gathers noisy weights

    aborted_loop()
    with torch.no_grad():
        check(made(**part).logits.equal(clean), "noise of an aborted step reaches a forward pass")


def test_noise_that_an_aborted_step_left_is_gone_in_the_next_pass() -> None:
    on_two_processes(_left_behind)


# ------------------------------------------------------------------------------------------------------ the noise


def _perturbed(noises: dict[str, dict[str, Tensor]], levels: dict[str, Tensor]) -> None:
    made = shard(bert())
    before = whole(made.named_parameters())
    shares = {n: torch.full_like(p, 0.05).detach() for n, p in made.named_parameters() if n in levels}
    scales: dict[str, Any] = {"number": 0.1, "levels": levels, "sharded levels": shares}
    for name, scale in scales.items():
        with perturbed(made, scale, seed=3):
            found = {n: w - before[n] for n, w in whole(made.named_parameters()).items()}
        same(found, noises["shares" if "sharded" in name else name], f"{name}: noise", 1e-12)
    with perturbed(made, 0.1, distribution="truncated_normal", seed=3):
        noise = torch.cat([(w - before[n]).flatten() for n, w in whole(made.named_parameters()).items()])
    check(
        0.04 < noise.std().item() < 0.07 and len(noise.unique()) > 0.99 * len(noise),
        "halves have the same normal noise",
    )
    after = whole(made.named_parameters())
    check(all(after[name].equal(before[name]) for name in before), "the weights are not as they were")
    rank = torch.distributed.get_rank()
    bad = {"classifier.weight": levels["classifier.weight"] * (1 - 2 * rank)}  # good in the first process
    with pytest.raises(ValueError, match=r"\['classifier.weight'\] must be finite and >= 0 everywhere"):
        with perturbed(made, bad, seed=0):
            pass


def test_perturbed_gives_every_process_its_part_of_the_noise() -> None:
    made = bert()
    before = whole(made.named_parameters())
    generator = torch.Generator().manual_seed(0)
    names = ("classifier.weight", "bert.embeddings.word_embeddings.weight", "classifier.bias")
    levels = {n: 0.1 * torch.rand(before[n].shape, generator=generator).double() for n in names[:2]}
    levels["classifier.bias"] = torch.tensor(0.2).double()
    shares = dict.fromkeys(names, torch.tensor(0.05, dtype=torch.float64))
    noises: dict[str, dict[str, Tensor]] = {}
    for name, scale in {"number": 0.1, "levels": levels, "shares": shares}.items():
        with perturbed(made, scale, seed=3):  # type: ignore[arg-type]
            noises[name] = {n: p.detach() - before[n] for n, p in made.named_parameters()}
    on_two_processes(_perturbed, noises, levels)


# ---------------------------------------------------------------------------------------------------- checkpoints


def _resume(folder: str, weights: dict[str, Tensor]) -> None:
    rank = torch.distributed.get_rank()
    made = shard(bert())
    started = start(made, {"curvature_every": 2})
    engine = train(made, {}, half=rank, steps=range(5), started=started)
    engine.save(folder, writes=rank == 0)
    torch.distributed.barrier()
    again, _ = start(made, {"curvature_every": 2})
    again.load(folder)
    engine.close()
    train(made, {}, half=rank, steps=range(5, STEPS), started=(again, started[1]))
    same(whole(made.named_parameters()), weights, "weights")


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = bert()
    engine = train(made, {"curvature_every": 2})
    on_two_processes(_resume, str(tmp_path), whole(made.named_parameters()))
    assert [file.name for file in tmp_path.iterdir()] == [NOISE_FILE]
    with caplog.at_level(logging.WARNING):
        fresh, _ = start(bert(), {"curvature_every": 2})
        fresh.load(tmp_path)
    assert "is of a model in 2 shard(s), and this one is in 1: the running curvature of the noise starts" in caplog.text
    assert not any(part.any() for part in fresh.tracker.curvature().values())
    assert any(part.any() for part in engine.tracker.curvature().values())


# ------------------------------------------------------------------------------------------------------- refusals


def _refusals() -> None:
    made = shard(bert())
    with pytest.raises(ValueError, match=r"is sharded over processes \(DTensor\).*model=model"):
        Perturbation(dict(made.named_parameters()))
    partly: Any = bert()
    fully_shard(partly.bert.encoder.layer[0])
    for use in (lambda: start(partly, {}), lambda: perturbed(partly, 0.1, seed=0).__enter__()):
        with pytest.raises(ValueError, match=r"Some trainable parameters are sharded and others are not"):
            use()


def test_what_shards_cannot_do_is_refused() -> None:
    on_two_processes(_refusals)
