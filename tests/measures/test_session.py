"""Processes that are about to do different work are told so at once, each of them, and can go on together."""

from __future__ import annotations

import functools
import re
import time
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import training_runs as runs
from accelerate import Accelerator
from launch import on_two_processes
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from hf_pacgen import (
    CertificateConfig,
    NoiseConfig,
    ScoreConfig,
    SharpnessConfig,
    SpectrumConfig,
    expected_sharpness,
    hessian_diagonal,
    hessian_lipschitz,
    hessian_spectrum,
    hessian_vector_product,
    pacgen,
    worst_case_sharpness,
)
from hf_pacgen.certify.certify import certify
from hf_pacgen.config import NoiseShape
from hf_pacgen.measures.comparison import measure_all
from hf_pacgen.measures.landscape import loss_slice, mean_loss
from hf_pacgen.measures.session import DataOptions

SECONDS = 20.0
"""Within which all are told, on a machine that does other work beside."""
PARTS = tiny.split(tiny.examples("bert", 6), 2, 2, 2)
ROWS = [{key: value[i] for key, value in tiny.examples("bert", 6).items()} for i in range(6)]
ZERO_IN_ONE = r" \(0 in process 0 and 1 in process 1\)"


def one_loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    return model(**batch).loss * len(batch["labels"]), len(batch["labels"])


def other_loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    return one_loss(model, batch)


def errors(model: nn.Module, batch: Any) -> Tensor:
    return torch.zeros(len(batch["labels"]))


def plain(rows: list[Any]) -> Any:
    return torch.utils.data.default_collate(rows)


class Examples(torch.utils.data.Dataset[Any]):
    """Rows that are still to be put into batches."""

    def __init__(self, count: int = 6) -> None:
        self.rows = ROWS[:count]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def labeled(rank: int) -> dict[str, Tensor]:
    """Labels of one sum, and of one sum when they are weighed by their places."""
    return tiny.examples("bert", 4) | {"labels": torch.tensor([1, 0, 0, 1] if rank else [0, 1, 1, 0])}


def scaled_loss(factor: float, model: nn.Module, batch: Any) -> Any:
    return factor * model(**batch).loss * 2, 2


def heads(count: int) -> nn.Module:
    torch.manual_seed(0)
    return tiny.bert(num_attention_heads=count).double().eval()


def vector(scale: float = 1.0) -> dict[str, Tensor]:
    return {name: torch.full_like(p, scale) for name, p in tiny.make("bert").named_parameters()}


def ones(count: int, scale: float) -> dict[str, Tensor]:
    return {"classifier.bias": torch.full((count,), scale)}


Case = tuple[Callable[..., Any], Callable[[int], dict[str, Any]], str]
"""A measure, its arguments in process 0 and 1, and what the error names."""
LEVEL = {"noise_scale": 0.01}
ONE: dict[str, Any] = {"prior": "zero", "config": CertificateConfig(draws=10)}

CASES: dict[str, list[Case]] = {
    "score": [
        (pacgen, lambda r: {"config": ScoreConfig(seed=r)}, "the setting seed" + ZERO_IN_ONE),
        (pacgen, lambda r: {"config": ScoreConfig(max_examples=3 + r)}, r"setting max_examples \(3 in process 0 and 4"),
        (pacgen, lambda r: {"config": ScoreConfig(gamma=0.1 + r)}, r"the setting gamma \(0.1 in process 0 and 1.1 in"),
        (pacgen, lambda r: {"checkpoint_every": 5 + r}, r"the argument checkpoint_every \(5 in process 0 and 6"),
        (pacgen, lambda r: {"checkpoint_dir": "x" if r else None}, r"checkpoint_dir is given \(False in process 0 and"),
        (pacgen, lambda r: {"loss_fn": (one_loss, other_loss)[r]}, r"argument loss_fn \(one_loss in process 0 and oth"),
        (pacgen, lambda r: {"loss_fn": (None, one_loss)[r]}, r"argument loss_fn \(None in process 0 and one_loss in"),
        (pacgen, lambda r: {"data": Examples(), "batch_size": 2 + r}, r"argument batch_size \(2 in process 0 and 3 in"),
        (pacgen, lambda r: {"data": Examples(6 - r)}, r"the length of the data \(6 in process 0 and 5 in process 1\)"),
        (pacgen, lambda r: {"data": Examples(), "collate_fn": (None, plain)[r]}, r"argument collate_fn \(None in proc"),
        (pacgen, lambda r: {"data": PARTS[: 3 - r]}, r"the length of the data \(3 in process 0 and 2 in process 1\)"),
        (pacgen, lambda r: {"data": [PARTS[r], *PARTS[1:]]}, "the values of the first batch of the data"),
        (pacgen, lambda r: {"data": [*PARTS[:-1], PARTS[-1 - r]]}, "the values of batch 2 of the data"),
        (pacgen, lambda r: {"data": [labeled(r), *PARTS]}, "the values of the first batch of the data"),
        (pacgen, lambda r: {"loss_fn": functools.partial(scaled_loss, 1 + r)}, r"loss_fn\(0\) \(1 in process 0 and 2"),
        (pacgen, lambda r: {"model": heads(1 + r)}, r"the model's setting num_attention_heads \(1 in process 0 and 2"),
        (pacgen, lambda r: {"model": tiny.make(("bert", "vit")[r])}, r"class of the model \(BertForSequenceClassifica"),
        (pacgen, lambda r: {"model": tiny.make("bert") if r else "folder"}, r"class of the model \(str in process 0"),
        (pacgen, lambda r: {"data": PARTS if r else 7}, r"the length of the data \(None in process 0 and 3 in"),
        (pacgen, lambda r: {"btch_size": 2} if r else {}, r"^(TypeError: pacgen\(\)|RuntimeError: Process 1.*)"),
    ],
    "curvature": [
        (hessian_diagonal, lambda r: {"config": ScoreConfig(seed=r)}, "the setting seed" + ZERO_IN_ONE),
        (hessian_diagonal, lambda r: {"config": ScoreConfig(passes=1 + r)}, r"setting passes \(1 in process 0 and 2"),
        (hessian_lipschitz, lambda r: {"config": ScoreConfig(lipschitz_iterations=3 + 7 * r)}, "lipschitz_iterations"),
        (hessian_lipschitz, lambda r: {"config": ScoreConfig(lipschitz_directions=r)}, r"lipschitz_directions \(0 in"),
        (hessian_vector_product, lambda r: {"vector": vector(1.0 + r)}, r"the argument vector\['bert.*checksum"),
        (hessian_vector_product, lambda r: {"vector": {} if r else vector()}, r"vector\['bert.*\(only in process 0\)"),
        (
            hessian_vector_product,
            lambda r: {"vector": vector(), "method": ("auto", "finite_difference")[r]},
            r"the argument method \(auto in process 0 and finite_difference in process 1\)",
        ),
        (
            hessian_vector_product,
            lambda r: {"vector": vector(), "displacement": 0.1 + r},
            r"the argument displacement \(0.1 in process 0 and 1.1 in process 1\)",
        ),
        (
            hessian_spectrum,
            lambda r: {"config": SpectrumConfig(iterations=10 + 30 * r)},
            r"iterations \(10 in .* 40 in",
        ),
        (hessian_spectrum, lambda r: {"config": SpectrumConfig(seed=r)}, "the setting seed" + ZERO_IN_ONE),
        (hessian_spectrum, lambda r: {"config": SpectrumConfig(max_examples=3 + r)}, "the setting max_examples"),
        (hessian_spectrum, lambda r: {"k": 1 + r}, r"the argument k \(1 in process 0 and 2 in process 1\)"),
        (hessian_spectrum, lambda r: {"k": r}, r"the argument k \(0 in process 0 and 1 in process 1\)"),
    ],
    "sharpness": [
        (expected_sharpness, lambda r: {"noise_scale": (0.01, 0.5)[r]}, r"noise_scale \(0.01 in process 0 and 0.5 in"),
        (expected_sharpness, lambda r: {"noise_scale": (0.01, -1.0)[r]}, r"noise_scale \(0.01 in process 0 and -1.0"),
        (expected_sharpness, lambda r: {"noise_scale": (0.01, ones(3, 0.1))[r]}, r"noise_scale \(only in process 0\)"),
        (
            expected_sharpness,
            lambda r: {"noise_scale": ones(3, 0.1 + r)},
            r"noise_scale\['classifier.bias'\].*checksum",
        ),
        (
            expected_sharpness,
            lambda r: LEVEL | {"config": SharpnessConfig(draws=3 + 3 * r)},
            r"draws \(3 in .* and 6 in",
        ),
        (expected_sharpness, lambda r: LEVEL | {"config": SharpnessConfig(seed=r)}, "the setting seed" + ZERO_IN_ONE),
        (expected_sharpness, lambda r: LEVEL | {"config": SharpnessConfig(max_examples=3 + r)}, "setting max_examples"),
        (worst_case_sharpness, lambda r: {"box": 0.01 + r}, r"the argument box \(0.01 in process 0 and 1.01 in"),
        (worst_case_sharpness, lambda r: {"config": SharpnessConfig(ascent_steps=3 + r)}, "the setting ascent_steps"),
        (mean_loss, lambda r: {"max_examples": 3 + r}, r"the argument max_examples \(3 in process 0 and 4 in"),
        (mean_loss, lambda r: {"data": Examples(), "batch_size": r}, "the argument batch_size" + ZERO_IN_ONE),
        (loss_slice, lambda r: {"seed": r}, "the argument seed" + ZERO_IN_ONE),
        (loss_slice, lambda r: {"points": 3 + 2 * r}, r"the argument points \(3 in process 0 and 5 in process 1\)"),
        (loss_slice, lambda r: {"directions": [ones(3, 1.0 + r)]}, r"argument directions\[0\]\['classifier.bias'\] \("),
        (loss_slice, lambda r: {"half_widths": ones(3, 1.0 + r)}, r"the argument half_widths\['classifier.bias'\] \("),
        (
            loss_slice,
            lambda r: {"reach": 1.0 + r, "names": ["a", "b"][: 1 + r]},
            r"the argument reach .* names\[1\] \(only",
        ),
        (
            measure_all,
            lambda r: {"name": "a", "spectrum": SpectrumConfig(probes=0, iterations=10 + 30 * r)},
            r"the argument spectrum\['iterations'\] \(10 in process 0 and 40 in process 1\)",
        ),
        (
            measure_all,
            lambda r: {"name": "a", "test_data": None if r else PARTS},
            r"the length of the test_data \(3 in process 0 and None in process 1\)",
        ),
    ],
    "certificate": [
        (certify, lambda r: ONE | {"config": CertificateConfig(seed=r)}, "the setting seed" + ZERO_IN_ONE),
        (certify, lambda r: ONE | {"config": CertificateConfig(draws=3 + 3 * r)}, r"draws \(3 in process 0 and 6 in"),
        (certify, lambda r: ONE | {"config": CertificateConfig(max_examples=3 + r)}, "the setting max_examples"),
        (certify, lambda r: ONE | {"prior": ("zero", vector())[r]}, r"the argument prior \(only in process 0\)"),
        (certify, lambda r: ONE | {"prior": ("zero", "folder")[r]}, r"prior \(zero in process 0 and folder in"),
        (certify, lambda r: ONE | {"prior": vector(1.0 + r)}, r"the argument prior\['bert.*checksum"),
        (
            certify,
            lambda r: ONE | {"error_fn": (None, errors)[r]},
            r"argument error_fn \(None in process 0 and errors in",
        ),
    ],
}


def _refused(group: str) -> None:
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    common: Any = {"accelerator": accelerator, "progress": False}
    for number, (measure, arguments, message) in enumerate(CASES[group]):
        began, given = time.monotonic(), arguments(rank)
        try:
            measure(given.pop("model", tiny.make("bert")), given.pop("data", PARTS), **given, **common)
        except (ValueError, TypeError, RuntimeError) as error:
            told = f"{type(error).__name__}: {error}"
        else:
            told = "nothing was raised"
        took = time.monotonic() - began
        if not re.search(message, told) or took > SECONDS:
            raise SystemExit(f"{group} {number}, process {rank}, after {took:.0f} s: {told}, not {message}")
        mean_loss(tiny.make("bert"), PARTS, **common)  # they can go on together
    accelerator.wait_for_everyone()


@pytest.mark.parametrize("group", CASES)
def test_different_arguments_are_refused_on_every_process(group: str) -> None:
    on_two_processes(_refused, group)


def _others() -> None:
    accelerator = Accelerator(cpu=True)
    rank, model = accelerator.process_index, tiny.make("bert")
    common: Any = {"accelerator": accelerator, "progress": False}
    with pytest.raises(ValueError, match=r"the measure \(pacgen in process 0 and hessian_spectrum in process 1\)"):
        (pacgen, hessian_spectrum)[rank](model, PARTS, **common)
    batch_norm = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)).train(rank == 1)
    data = [{"input": torch.ones(3, 2)}]
    kind, message = ((RuntimeError, "Process 1 of 2 failed.*batch"), (ValueError, "atch"))[rank]
    with pytest.raises(kind, match=message):
        certify(batch_norm, data, prior="zero", loss_fn=one_loss, error_fn=errors, **common)
    with pytest.raises((ValueError, RuntimeError), match="batch_size must be an integer of at least 1; got 0"):
        mean_loss(model, Examples(), batch_size=0, **common)  # refused by all alike
    accelerator.wait_for_everyone()


def test_another_measure_or_a_model_that_one_process_refuses() -> None:
    on_two_processes(_others)


def _folders(base: Path) -> None:
    """One name of a prior's folder, and other weights in it."""
    accelerator = Accelerator(cpu=True)
    place = base / str(accelerator.process_index) / "prior"
    place.mkdir(parents=True)
    torch.save(vector(1.0 + accelerator.process_index), place / "pytorch_model.bin")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.parent)
        with pytest.raises(ValueError, match=r"These differ: the prior\['bert.*checksum"):
            certify(tiny.make("bert"), PARTS, **(ONE | {"prior": "prior"}), accelerator=accelerator, progress=False)
    accelerator.wait_for_everyone()


def test_the_weights_in_a_priors_folder_are_compared(tmp_path: Path) -> None:
    on_two_processes(_folders, tmp_path)


def _sharded() -> None:
    rank, made = torch.distributed.get_rank(), tiny.make("bert")
    fully_shard(made)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"config": ScoreConfig(seed=rank)}, "the setting seed" + ZERO_IN_ONE),
        ({"data": [PARTS[rank], *PARTS[1:]]}, "the values of the first batch of the data"),
        ({"loss_fn": (one_loss, other_loss)[rank]}, r"loss_fn \(one_loss in process 0 and other_loss in process 1\)"),
        ({"config": {} if rank else ScoreConfig()}, r"the setting gamma \(only in process 0\)"),
    ]
    for given, message in cases:
        with pytest.raises(ValueError, match=message):
            hessian_diagonal(made, given.pop("data", PARTS), **given, progress=False)
    assert hessian_diagonal(made, PARTS, progress=False).num_examples == 6


def test_processes_that_share_the_weights_are_compared_too() -> None:
    on_two_processes(_sharded)


def _training(name: str) -> None:
    rank = Accelerator(cpu=True).process_index
    cases = [
        ((NoiseConfig(seed=0), NoiseConfig(seed=1)), "the setting seed" + ZERO_IN_ONE),
        (
            (NoiseConfig(scale=1.0), NoiseConfig(scale=0.0)),
            r"the setting scale \(1.0 in process 0 and 0.0 in process 1",
        ),
        (
            (NoiseConfig(), NoiseConfig(shape=NoiseShape.ISOTROPIC)),
            r"the setting shape \(pacgen in process 0 and isotropic in",
        ),
    ]
    for noise, message in cases:
        with pytest.raises(ValueError, match=f"Process 1 has another .* These differ: .*{message}"):
            TRAINERS[name](noise[rank]).train()
    # a process without a score would never come to where the others compare theirs
    with pytest.raises(ValueError, match=r"differ: the setting of the score: gamma \(only in process 1\)"):
        TRAINERS[name](NoiseConfig(), ScoreConfig() if rank else None).train()
    # η = n is another one where the data has another length
    with pytest.raises(ValueError, match=r"the run's num_examples \(16 in process 0 and 24 in process 1\)"):
        TRAINERS[name](NoiseConfig(), size=24 if rank else 16).train()
    TRAINERS[name](NoiseConfig()).train()


def _by_hand() -> None:
    rank = Accelerator(cpu=True).process_index
    trainer = _trainer(NoiseConfig(seed=rank))
    with pytest.raises(ValueError, match="the setting seed" + ZERO_IN_ONE):
        trainer.training_step(trainer.model, next(iter(trainer.get_train_dataloader())))


def _moments() -> None:
    rank = Accelerator(cpu=True).process_index
    callbacks: Any = [runs.PACGenCallback(score={}, score_on=("epoch", "end")[rank])]
    trainer = runs.Trainer(
        runs.bert(), runs.arguments(max_steps=2), train_dataset=runs.Sentences(16), callbacks=callbacks
    )
    with pytest.raises(ValueError, match=r"score: score_on \(epoch in process 0 and end in process 1\)"):
        trainer.train()


@pytest.mark.parametrize("case", [_by_hand, _moments])
def test_steps_by_hand_and_moments_of_scores_are_compared(case: Any) -> None:
    on_two_processes(case)


def _trainer(noise: NoiseConfig, score: ScoreConfig | None = None, size: int = 16) -> Any:
    data = runs.Sentences(size)
    return runs.PACGenTrainer(runs.bert(), runs.arguments(max_steps=2), train_dataset=data, noise=noise, score=score)


def _plain_trainer(noise: NoiseConfig, score: ScoreConfig | None = None, size: int = 16) -> Any:
    callbacks: Any = [runs.PACGenCallback(noise=noise, score=score)]
    data = runs.Sentences(size)
    return runs.Trainer(runs.bert(), runs.arguments(max_steps=2), train_dataset=data, callbacks=callbacks)


TRAINERS = {"trainer": _trainer, "callback": _plain_trainer}


@pytest.mark.parametrize("name", TRAINERS)
def test_different_noise_is_refused_when_training_starts(name: str) -> None:
    on_two_processes(_training, name)


# ------------------------------------------------------------------------------------------------ one process

MEASURES = [
    pacgen,
    hessian_diagonal,
    hessian_lipschitz,
    hessian_vector_product,
    hessian_spectrum,
    expected_sharpness,
    worst_case_sharpness,
    mean_loss,
    loss_slice,
    measure_all,
    certify,
]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.__name__)
def test_every_measure_takes_the_options_and_names_them(measure: Any) -> None:
    name = measure.__name__
    with pytest.raises(
        TypeError, match=rf"{name}\(\) got an unexpected keyword .*'btch_size'. It takes .*batch_size"
    ) as caught:
        measure(tiny.make("bert"), PARTS, **REQUIRED.get(name, {}), btch_size=2)
    assert str(caught.value).endswith("Did you mean 'batch_size'?")
    with pytest.raises(TypeError, match=rf"{name}\(\) missing a required argument: 'data'\. It takes model, data,"):
        measure(tiny.make("bert"))
    hints = typing.get_type_hints(measure)
    assert "return" in hints and typing.get_type_hints(DataOptions).keys() == DataOptions.__annotations__.keys()
    assert hints["options"].__args__ == (DataOptions,)


REQUIRED: dict[str, dict[str, Any]] = {
    "hessian_vector_product": {"vector": {}},
    "expected_sharpness": LEVEL,
    "certify": {"prior": "zero"},
    "measure_all": {"name": "a"},
}


@pytest.mark.parametrize("settings", [{"max_examples": 0}, {"seed": -1}, {"gamma": -1.0}, {"gamma": 0, "epsilon": 0}])
def test_settings_of_a_slice_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be .*; got|both 0, so the box is empty"):
        loss_slice(tiny.make("bert"), PARTS, **settings)


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise AssertionError("If you want to train it, make sure to use `model.train()`")


class Caching(nn.Module):
    """A model whose own code does not let its gradient be taken in every pass."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(2, 2), how
        self.cache: Tensor | None = None

    def forward(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        weight = self.linear.weight
        if self.how == "keeps":
            self.cache = weight.exp() if self.cache is None else self.cache
            weight = self.cache
        logits = (features @ weight).sigmoid()
        if self.how == "writes":
            logits.add_(1)
        if self.how == "trains":
            logits = _Reversible.apply(logits)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("keeps", "keeps tensors of an earlier pass, whose graph is gone"),
        ("writes", "writes into tensors that its gradient needs"),
        ("trains", "has a backward pass of its own for training mode alone"),
    ],
)
def test_what_does_not_let_a_gradient_be_taken_is_said(how: str, why: str) -> None:
    data = [{"features": torch.ones(2, 2), "labels": torch.tensor([0, 1])}] * 2
    with pytest.raises(ValueError, match=f"cannot be taken in evaluation mode: its forward pass {why}.* .it says: "):
        hessian_diagonal(Caching(how), data, progress=False)


def test_another_assertion_stays_what_it_is() -> None:
    def failing(model: Any, batch: Any) -> Any:
        raise AssertionError("of the user")

    with pytest.raises(AssertionError, match="of the user"):
        hessian_diagonal(nn.Linear(2, 2), [torch.ones(2)], loss_fn=failing, progress=False)
