"""The running curvature in a training run: against exact Hessians, under accumulation, clipping and two processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import PartialState
from launch import on_two_processes
from torch import Tensor, nn
from torch.utils.data import Dataset

from hf_pacgen.config import NoiseConfig
from hf_pacgen.distributed.processes import Processes
from hf_pacgen.training.noise_state import NOISE_FILE
from hf_pacgen.training.noisy_step import NoisyStep
from hf_pacgen.training.run_facts import Run


class Network(nn.Module):
    """A small network whose loss has curvature of both signs; ``weights`` stay where a short training left them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        self.inputs, self.targets = torch.randn(40, 4), torch.randint(0, 3, (40,))
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        for _ in range(30):
            optimizer.zero_grad()
            self(labels=None)["loss"].backward()
            optimizer.step()
        optimizer.zero_grad()

    def forward(self, labels: Any = None) -> dict[str, Tensor]:
        examples = slice(None) if self.half is None else slice(20 * self.half, 20 * self.half + 20)
        return {"loss": nn.functional.cross_entropy(self.layers(self.inputs[examples]), self.targets[examples])}

    half: int | None = None
    """Which half of the examples counts, by default both."""

    def exact(self) -> Tensor:
        names, weights = zip(*self.named_parameters(), strict=True)

        def loss(*values: Tensor) -> Tensor:
            return torch.func.functional_call(self, dict(zip(names, values, strict=True)))["loss"]  # type: ignore[no-any-return]

        hessian = torch.autograd.functional.hessian(loss, tuple(w.detach() for w in weights))
        blocks = [row[i].reshape(w.numel(), -1) for i, (row, w) in enumerate(zip(hessian, weights, strict=True))]
        return torch.cat([block.diagonal() for block in blocks])


class One(Dataset[dict[str, int]]):
    """Data of a single example, which the network does not look at."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"labels": 0}


def engine_for(model: nn.Module, config: NoiseConfig, **changes: Any) -> NoisyStep:
    settings: dict[str, Any] = {"optimizer": None, "dataset": One(), "collate_fn": None, "batch_size": 1}
    settings |= {"num_examples": 40, "examples_per_step": 1, "max_steps": 10_000, "clips": False}
    return NoisyStep(config, Run(model=model, **{**settings, **changes}))


def one_step(engine: NoisyStep, backward: Callable[[float], None], step: int, batches: int = 1) -> None:
    """A training step as the PACGenTrainer does it; ``backward`` adds a share of the gradient."""
    for micro_step in range(batches):
        assert engine.draw(step, micro_step)
        engine.noise.apply()
        if engine.config.antithetic:
            backward(0.5 / batches)
            engine.mirror()
            engine.noise.apply()
            backward(0.5 / batches)
            engine.after_pair()
        else:
            backward(1 / batches)
            engine.noise.restore()
    engine.before_optimizer_step(step)


def flat(curvature: dict[str, Tensor], model: nn.Module) -> Tensor:
    return torch.cat([curvature[name].reshape(-1) for name, _ in model.named_parameters()])


@pytest.mark.parametrize(
    "settings, steps",
    [
        ({"curvature": "price"}, 2500),
        ({"curvature": "price", "antithetic": True}, 400),
        ({"curvature": "hutchinson"}, 250),
    ],
    ids=["price", "antithetic", "hutchinson"],
)
def test_sources_converge_on_a_small_network(settings: dict[str, Any], steps: int) -> None:
    """To 15 %: what is left is the samples' noise, and for price the third order, which small noise keeps small."""
    model = Network()
    config = NoiseConfig(curvature_every=1, curvature_decay=1.0, epsilon=0.05, gamma=0.0, **settings)
    engine = engine_for(model, config)
    for step in range(steps):
        model.zero_grad()
        one_step(engine, lambda share: (share * model()["loss"]).backward(), step)
    found, exact = flat(engine.tracker.curvature(), model), model.exact()
    engine.close()
    assert ((found - exact).norm() / exact.norm()).item() < 0.15


def _compare_with_one_process(settings: dict[str, Any], batches: int) -> None:
    processes = Processes(PartialState(cpu=True))  # type: ignore[arg-type]
    config = NoiseConfig(curvature_every=1, curvature_decay=0.9, **settings)
    found = []
    for size in (2, 1):
        model = Network()
        whole: nn.Module = nn.parallel.DistributedDataParallel(model) if size == 2 else model
        engine = engine_for(model, config, processes=processes if size == 2 else Processes(), clips=True)
        for step in range(3):
            model.zero_grad()
            backward = partial(_backward, whole, model, processes.rank if size == 2 else None, count := [0], batches)
            one_step(engine, backward, step, batches)
            assert count[0] == batches * (1 + config.antithetic)
        found.append(flat(engine.tracker.curvature(), model))
        engine.close()
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4 * found[1].abs().max().item())
    gathered = [torch.empty_like(found[0]) for _ in range(2)]
    torch.distributed.all_gather(gathered, found[0])
    assert gathered[0].equal(gathered[1])


def _backward(whole: nn.Module, model: Network, rank: int | None, count: list[int], batches: int, share: float) -> None:
    """The gradient on this process's half of the examples, reduced with the last of the step."""
    count[0] += 1
    model.half = rank
    pair = 2 if share == 0.5 / batches else 1
    waits = isinstance(whole, nn.parallel.DistributedDataParallel) and count[0] < batches * pair
    with whole.no_sync() if waits else nullcontext():  # type: ignore[operator]
        (share * whole()["loss"]).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-2) if not waits and pair == 1 and count[
        0
    ] == batches else None


@pytest.mark.parametrize("settings", [{}, {"antithetic": True}], ids=["single", "antithetic"])
@pytest.mark.parametrize("batches", [1, 3])
def test_two_processes_find_the_curvature_of_one(settings: dict[str, Any], batches: int) -> None:
    """With gradients that are clipped after they were averaged."""
    on_two_processes(_compare_with_one_process, settings, batches)


def test_a_checkpoint_without_the_noise_state_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = engine_for(Network(), NoiseConfig())
    engine.load(tmp_path)
    assert f"{tmp_path} has no {NOISE_FILE}: the running curvature of the noise starts anew." in caplog.text


def test_the_schedule() -> None:
    engine = engine_for(Network(), NoiseConfig(warmup_ratio=0.5, decay_ratio=0.25), max_steps=8)
    assert [engine.factor(step) for step in range(9)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0]
    assert not engine.draw(8) and not engine.noise.applied


def test_random_noise_follows_no_gradient() -> None:
    engine = engine_for(Network(), NoiseConfig())
    with pytest.raises(RuntimeError, match="direction='random' follows no gradient"):
        engine.ascend(1.0)
    engine.close()
