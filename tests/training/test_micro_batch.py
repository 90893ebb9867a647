"""Recipes of noise in training runs: against dense hand-written loops, and with the safety of all noise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import on_two_processes
from torch import Tensor, nn
from training_runs import Recorder, bert, difference, llama, same, trained, weights
from transformers import Trainer

from hf_pacgen.config import NoiseConfig


class Keeps(Trainer):
    """Remembers its micro-batches."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.batches = [*getattr(self, "batches", []), copy.deepcopy(inputs)]
        return super().training_step(model, inputs, *args, **kwargs)


GEOMETRIES: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = {
    "sphere": ({"scale": 0.05}, lambda w: torch.full_like(w, 0.05)),
    "box": ({"shape": "box", "scale": 0.5, "gamma": 0.1, "epsilon": 0.02}, lambda w: 0.5 * (0.1 * w.abs() + 0.02)),
    "magnitude": ({"shape": "magnitude", "scale": 0.2}, lambda w: 0.2 * w.abs()),
    "rows": ({"shape": "rows", "scale": 0.2}, lambda w: 0.2 * _row_rms(w)),
}


def _row_rms(w: Tensor) -> Tensor:
    if w.dim() < 2:
        return w.square().mean().sqrt().expand_as(w)
    return w.square().mean(dim=tuple(range(1, w.dim())), keepdim=True).sqrt().expand_as(w)


def _gradient(model: nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
    loss = model(**batch).loss
    return list(torch.autograd.grad(loss, list(model.parameters())))


def _moved(model: nn.Module, gradient: list[Tensor], sigma: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The clean weights, after the model was moved uphill."""
    clean = [p.detach().clone() for p in model.parameters()]
    norm = torch.cat([(sigma(w) * g).reshape(-1) for w, g in zip(clean, gradient, strict=True)]).norm()
    with torch.no_grad():
        for p, w, g in zip(model.parameters(), clean, gradient, strict=True):
            p.copy_(w + sigma(w) ** 2 * g / norm)
    return clean


def by_hand(recipe: str, batches: list[Any], micro: int, sigma: Callable[[Tensor], Tensor], rate: float) -> nn.Module:
    """SGD with sam or ascent, in float64, without any of the library."""
    model = bert(0.0).double()
    before: list[Tensor] | None = None
    for first in range(0, len(batches), micro):
        total = [torch.zeros_like(p) for p in model.parameters()]
        for batch in batches[first : first + micro]:
            direction = _gradient(model, batch) if recipe == "sam" else before
            clean = None if direction is None else _moved(model, direction, sigma)
            gradient = _gradient(model, batch)  # transformers adds them up: its Bert takes all keyword arguments
            with torch.no_grad():
                for p, w in zip(model.parameters(), clean or [], strict=False):
                    p.copy_(w)
            total = [t + g for t, g in zip(total, gradient, strict=True)]
        before = total
        norm = torch.cat([t.reshape(-1) for t in total]).norm()
        with torch.no_grad():
            for p, t in zip(model.parameters(), total, strict=True):
                p.sub_(rate * t * min(1.0, 0.5 / (norm.item() + 1e-6)))
    return model


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(("recipe", "shell"), [("sam", "trainer"), ("ascent", "trainer"), ("ascent", "callback")])
def test_an_ascent_is_that_of_a_loop_by_hand(recipe: str, shell: str, geometry: str) -> None:
    """With gradients that are clipped, and accumulated."""
    changes, sigma = GEOMETRIES[geometry]
    settings: dict[str, Any] = {
        "optim": "sgd",
        "learning_rate": 0.3,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.5,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
    }
    recorder = Recorder()
    run: Any = trained(
        shell,
        NoiseConfig(recipe=recipe, **changes),  # type: ignore[arg-type]
        model=bert(0.0).double(),
        trainer=Keeps,
        callbacks=[recorder],
        **settings,
    )
    expected = by_hand(recipe, run.batches, 2, sigma, 0.3)
    assert len(run.batches) == 8 and same(weights(run.model), recorder.ended[-1])
    assert difference(weights(run.model), weights(expected)) < 1e-10
    plain = trained("plain", None, model=bert(0.0).double(), **settings)
    assert difference(weights(run.model), weights(plain.model)) > 1e-6


def lora() -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(llama(), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_alpha=64))


def _spread(shell: str, recipe: str, folder: str, size: int) -> None:
    settings: dict[str, Any] = {"per_device_train_batch_size": 4 // size, "gradient_accumulation_steps": 2}
    settings |= {"learning_rate": 1e-2, "max_steps": 8} | ({"ddp_backend": "gloo"} if size > 1 else {})
    model = lora() if recipe == "flat-lora" else llama()
    level = {"rows": 0.6, "ascent": 0.15}.get(recipe)  # else one that has not begun so early in a run
    noise = NoiseConfig(recipe=recipe, scale=level)  # type: ignore[arg-type]
    run = trained(shell, noise, model=model.double(), **settings)
    if run.args.world_size != size:
        raise RuntimeError(f"There are {run.args.world_size} processes and not {size}.")
    torch.save(weights(run.model), Path(folder) / f"{size}-{run.args.process_index}.pt")


@pytest.mark.parametrize(
    ("shell", "recipe"),
    [
        *(("trainer", recipe) for recipe in ("sam", "ascent", "mixed", "consistency", "flat-lora")),
        *(("callback", recipe) for recipe in ("rows", "ascent")),
    ],
)
def test_two_processes_train_as_one(shell: str, recipe: str, tmp_path: Path) -> None:
    """All ascend along the gradient of all of a micro-batch."""
    on_two_processes(_spread, shell, recipe, str(tmp_path), 2)
    _spread(shell, recipe, str(tmp_path), 1)
    first, second, alone = (torch.load(tmp_path / f"{name}.pt") for name in ("2-0", "2-1", "1-0"))
    assert same(first, second) and difference(first, alone) < 1e-8
    model = lora() if recipe == "flat-lora" else llama()
    plain = trained("plain", None, model=model.double(), learning_rate=1e-2, max_steps=8, gradient_accumulation_steps=2)
    assert difference(alone, weights(plain.model)) > 1e-4
