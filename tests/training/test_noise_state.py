"""The noise's state in a checkpoint: used, started anew or refused, in words that are true."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor
from training_runs import llama, make, same, weights
from transformers import integrations
from transformers.trainer_utils import HPSearchBackend

from hf_pacgen.config import NoiseConfig
from hf_pacgen.noise.curvature_tracker import CurvatureTracker
from hf_pacgen.noise.perturbation import Perturbation
from hf_pacgen.training import noise_state
from hf_pacgen.training.noise_state import NOISE_FILE

Known = dict[str, Tensor]


def tracker(**settings: Any) -> CurvatureTracker:
    generator = torch.Generator().manual_seed(0)
    noise = Perturbation({str(i): torch.randn(64, generator=generator) for i in range(8)}, block_size=64)
    return CurvatureTracker(NoiseConfig(**settings), noise, eta=100.0)


def fed(**settings: Any) -> CurvatureTracker:
    """One that knows a curvature of about 2 (of each estimate the mean, of every turn)."""
    found = tracker(**settings)
    for step in range(20):
        if found.takes_samples:
            for block in found.noise.layout.blocks:
                found.noise.second_moment(found.noise.weights_of(block), torch.ones(block.size))
            found.sample_price(step, lambda block: 2 * _moment(found, block), factor=1.0, rescale=None)
        elif found.sums:
            found.add_estimate({name: torch.full((64,), 2.0) for name in found.noise.parameters})
    return found


def _moment(found: CurvatureTracker, block: Any) -> Tensor:
    sigma = found.scale(block, found.noise.weights_of(block))
    return found.noise.second_moment(found.noise.weights_of(block), sigma)


def rewrite(folder: Path, change: Any) -> None:
    """The file with other values in its state."""
    with safe_open(folder / NOISE_FILE, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        values = json.loads(file.metadata()["state"])
    change(tensors, values)
    safetensors.torch.save_file(tensors, folder / NOISE_FILE, {"state": json.dumps(values)})


def without_settings(tensors: Known, values: dict[str, Any]) -> None:
    del values["settings"]


@pytest.fixture(autouse=True)
def _listening(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


KEPT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the same": ({}, {}),
    "the level": ({}, {"scale": 0.3, "gamma": 0.0, "epsilon": 0.02, "eta": 10, "warmup_ratio": 0.1, "seed": 3}),
    "another shape": ({}, {"shape": "article"}),
    "the distribution": ({}, {"distribution": "truncated_normal"}),
    "faster": ({}, {"curvature_decay": 0.9}),
    "rarer estimates": ({"curvature": "hutchinson"}, {"curvature_every": 7}),
}


@pytest.mark.parametrize("case", KEPT)
@pytest.mark.parametrize("old", [False, True], ids=["", "of an old file"])
def test_the_curvature_goes_on_where_it_is_the_same(
    case: str, old: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, changes = KEPT[case]
    before, after = fed(**first), tracker(**first | changes)
    noise_state.save(before, tmp_path, writes=True)
    if old:
        rewrite(tmp_path, without_settings)
    noise_state.load(after, tmp_path)
    assert same(after.curvature(), before.curvature()) and after.means == before.means
    assert all(part.mean().item() == pytest.approx(2, rel=1e-3) for part in after.curvature().values())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    if changes and not old:
        name = next(iter(changes))
        assert f"{name} {before.config.to_dict()[name]!r} -> {changes[name]!r}" in caplog.text


ANEW: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "rarer turns": ({"curvature_every": 1}, {"curvature_every": 4}, "curvature_every=1, and now it is 4"),
    "more turns": ({"curvature_every": 4}, {"curvature_every": 1}, "curvature_every=4, and now it is 1"),
    "another source": (
        {"curvature": "hutchinson"},
        {"curvature": "price"},
        "curvature='hutchinson', and now it is 'price'",
    ),
    "the other source": (
        {"curvature": "price"},
        {"curvature": "hutchinson"},
        "curvature='price', and now it is 'hutchinson'",
    ),
    "none before": ({"shape": "isotropic"}, {}, "has no running curvature, which its settings did not need"),
}


@pytest.mark.parametrize("case", ANEW)
@pytest.mark.parametrize("old", [False, True], ids=["", "of an old file"])
def test_another_curvature_starts_anew(case: str, old: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Before, its sums were divided by the means of other turns: 2 to 8 times too large in most tensors."""
    first, second, words = ANEW[case]
    noise_state.save(fed(**first), tmp_path, writes=True)
    if old:
        rewrite(tmp_path, without_settings)
        words = "sampled in other turns" if "none" not in case else words
    after = tracker(**second)
    noise_state.load(after, tmp_path)
    assert words in caplog.text and "the running curvature of the noise starts anew" in caplog.text
    assert not any(part.any() for part in after.curvature().values())
    assert all(mean.total == 0 for mean in after.means.values())


def test_a_noise_that_needs_no_curvature_takes_any_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise_state.save(fed(), tmp_path, writes=True)
    for settings in ({"shape": "isotropic"}, {"curvature": "adam"}):
        noise_state.load(tracker(**settings), tmp_path)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_rho_is_the_one_that_is_asked_for(tmp_path: Path) -> None:
    """Before, a number was dropped for that of the file, in silence."""
    noise_state.save(fed(rho=0.1), tmp_path, writes=True)
    number, estimated = tracker(rho=0.3), tracker(rho="estimate")
    for found in (number, estimated):
        noise_state.load(found, tmp_path)
    assert number.rho == 0.3
    assert estimated.rho == 0.0 and not estimated.rho_is_known  # it is estimated in the next step
    before = fed(rho="estimate")
    before.take_rho(0.7)
    noise_state.save(before, tmp_path, writes=True)
    for found in (number, estimated):
        noise_state.load(found, tmp_path)
    assert number.rho == 0.3 and estimated.rho == 0.7 and estimated.rho_is_known


def _no_state(path: Path) -> None:
    safetensors.torch.save_file({"0": torch.zeros(64)}, path)


def _other_state(path: Path) -> None:
    safetensors.torch.save_file({"0": torch.zeros(64)}, path, {"state": '{"rho": 0.0, "means": {"0": {"grow": 1}}}'})


def _half_a_state(path: Path) -> None:
    safetensors.torch.save_file({"0": torch.zeros(64)}, path, {"state": '{"rho": 0.0, "mea'})


def _not_a_number(path: Path) -> None:
    values = '{"rho": 0.0, "means": {"0": {"growth": 1.0, "total": NaN}}}'
    safetensors.torch.save_file({"0": torch.zeros(64)}, path, {"state": values})


DAMAGES: dict[str, Any] = {
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "no state": _no_state,
    "half a state": _half_a_state,
    "another state": _other_state,
    "not a number": _not_a_number,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_with_a_remedy(damage: str, tmp_path: Path) -> None:
    noise_state.save(fed(), tmp_path, writes=True)
    DAMAGES[damage](tmp_path / NOISE_FILE)
    with pytest.raises(
        ValueError, match=r"pacgen_noise.safetensors cannot be read: .*remove the file to start"
    ) as found:
        noise_state.load(tracker(), tmp_path)
    assert "\n" not in str(found.value)


def test_a_curvature_that_is_not_finite_starts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise_state.save(fed(), tmp_path, writes=True)
    rewrite(tmp_path, lambda tensors, values: tensors["0"].fill_(torch.nan))
    after = tracker()
    noise_state.load(after, tmp_path)
    assert "has values that are not finite" in caplog.text and not any(p.any() for p in after.curvature().values())


# ------------------------------------------------------------------------------------------------------------ trials


class Trial:
    """As much of a trial of optuna as the Trainer asks for."""

    number = 7
    params: dict[str, Any] = {}  # noqa: RUF012


@pytest.mark.parametrize("shell", ["callback", "trainer"])
def test_a_trial_has_its_noise_in_its_own_checkpoints(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrations, "hp_params", lambda trial: {})  # which knows the trials of optuna itself

    def run(**how: Any) -> Any:
        noise = NoiseConfig(curvature_every=1, epsilon=0.05)
        save = {"save_strategy": "steps", "save_steps": 3, "output_dir": str(tmp_path)}
        trainer: Any = make(shell, noise, model=llama(), **save)
        trainer.hp_search_backend, trainer.hp_space = HPSearchBackend.OPTUNA, lambda trial: {}
        trainer.train(trial=Trial(), **how)
        return trainer

    whole = run()
    files = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob(NOISE_FILE))
    assert files == ["run-7/checkpoint-3", "run-7/checkpoint-6"]
    again = run(resume_from_checkpoint=str(tmp_path / "run-7" / "checkpoint-3"))
    assert same(weights(again.model), weights(whole.model))


def test_a_checkpoint_that_is_elsewhere_is_missed_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer: Any = make("callback", NoiseConfig(), model=llama(), max_steps=1, output_dir=str(tmp_path))
    trainer.args.save_strategy, trainer.args.save_steps = "steps", 1
    trainer.state.save_steps = 1
    trainer._save_checkpoint = lambda *_: None
    trainer.train()
    assert f"expected the checkpoint in {tmp_path / 'checkpoint-1'}, and there is none" in caplog.text
