"""Several parameters in one memory: one weight, displaced once and put back bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_pacgen import (
    ScoreConfig,
    SpectrumConfig,
    expected_sharpness,
    hessian_diagonal,
    hessian_spectrum,
    hessian_vector_product,
    pacgen,
    perturbed,
    worst_case_sharpness,
)
from hf_pacgen.model.parameters import trainable_parameters
from hf_pacgen.model.storage import aliases, tied
from hf_pacgen.noise.perturbation import Perturbation


class Shared(nn.Module):
    """A table that is also the head: by name, by memory, or as a transposed view of the memory."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(11, 8).double()
        self.head = nn.Linear(8, 11, bias=False).double()
        self.matrix = nn.Linear(11, 8, bias=False).double() if how == "transposed" else None
        if how == "tied":
            self.head.weight = self.table.weight
        elif how == "memory":
            self.head.weight.data = self.table.weight.data
        elif self.matrix is not None:
            self.matrix.weight.data = self.table.weight.data.t()
            self.head = None  # type: ignore[assignment]

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.table(tokens).tanh()
        return hidden @ self.matrix.weight if self.matrix is not None else self.head(hidden)


def loss(model: Any, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])


def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randint(0, 11, (6,), generator=generator), torch.randint(0, 11, (6,), generator=generator))] * 2


@pytest.mark.parametrize("how", ["memory", "transposed"])
def test_parameters_of_one_memory_are_one_weight(how: str) -> None:
    model, reference = Shared(how), Shared("tied")
    kind = type(model.matrix)
    config = ScoreConfig(estimator="exact", lipschitz_directions=1)
    found = pacgen(model, data(), loss_fn=loss, config=config, progress=False)
    expected = pacgen(reference, data(), loss_fn=loss, config=config, progress=False)
    assert found.num_parameters == expected.num_parameters == 88
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    assert found.hessian_trace == pytest.approx(expected.hessian_trace, rel=1e-9)
    for method in ("reverse_over_reverse", "forward_over_reverse", "finite_difference"):
        vector = {"table.weight": torch.linspace(-1, 1, 88, dtype=torch.float64).view(11, 8)}
        product = hessian_vector_product(model, data(), vector, loss_fn=loss, method=method)
        right = hessian_vector_product(reference, data(), vector, loss_fn=loss)
        assert torch.allclose(product["table.weight"], right["table.weight"], rtol=1e-5, atol=1e-7), method
    # the model is as it was: two parameters, one memory
    assert len(dict(model.named_parameters())) == 2
    assert type(model.matrix) is kind and aliases(dict(model.named_parameters()))


def calls(model: Shared) -> list[Callable[[], object]]:
    options: Any = {"loss_fn": loss, "progress": False}
    ones = {"table.weight": torch.ones(11, 8, dtype=torch.float64)}
    return [
        lambda: pacgen(model, data(), config=ScoreConfig(hvp="finite_difference"), **options),
        lambda: hessian_diagonal(model, data(), config=ScoreConfig(estimator="hutchinson"), **options),
        lambda: hessian_spectrum(model, data(), k=1, config=SpectrumConfig(probes=0), **options),
        lambda: hessian_vector_product(model, data(), ones, method="finite_difference", **options),
        lambda: expected_sharpness(model, data(), noise_scale=0.1, **options),
        lambda: worst_case_sharpness(model, data(), **options),
        lambda: perturb(model),
    ]


def perturb(model: nn.Module) -> None:
    with perturbed(model, 0.1, seed=0):
        loss(model, data()[0])


@pytest.mark.parametrize("how", ["memory", "transposed"])
def test_every_call_leaves_the_weights(how: str) -> None:
    model = Shared(how)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for call in calls(model):
        call()
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name]), name


DISPLACED = """
import torch
from hf_pacgen.curvature.displacement import SavedWeights, TensorDirection
weight = torch.arange(12.0).view(3, 4)
names = {f"layer.{i}": weight if i % 2 else weight.t() for i in range(6)}
saved = SavedWeights(names, lazily=True)
saved.displace([(TensorDirection({n: torch.ones_like(w) for n, w in names.items()}), 0.5)])
saved.restore()
assert torch.equal(weight, torch.arange(12.0).view(3, 4)), weight
"""


def test_weights_come_back_for_any_order_of_sets() -> None:
    seeds = list(range(20))
    while seeds:  # two at a time
        environments = [{**os.environ, "PYTHONHASHSEED": str(seeds.pop())} for _ in range(2)]
        command = [sys.executable, "-c", DISPLACED]
        runs = [subprocess.Popen(command, env=e, stderr=subprocess.PIPE) for e in environments]
        for run in runs:
            _, said = run.communicate()
            assert run.returncode == 0, said.decode()


@pytest.mark.parametrize("how", ["memory", "transposed"])
def test_noise_is_one_for_all_names_of_a_memory(how: str) -> None:
    model = Shared(how)
    noise = Perturbation.of_model(model)
    assert list(noise.parameters) == ["table.weight"]
    clean = {name: p.detach().clone() for name, p in model.named_parameters()}
    noise.draw(lambda block, weights: torch.full_like(weights, 0.1), 1)
    noise.apply()
    other = model.head.weight if how == "memory" else model.matrix.weight.t()  # type: ignore[union-attr]
    assert torch.equal(other, model.table.weight) and not torch.equal(other, clean["table.weight"])
    loss(model, data()[0])[0].backward()
    gradient = noise.gradient("table.weight")
    reference = Shared("tied")
    with torch.no_grad():
        reference.table.weight.copy_(model.table.weight)
    loss(reference, data()[0])[0].backward()
    assert gradient is not None and reference.table.weight.grad is not None
    assert torch.allclose(gradient, reference.table.weight.grad)
    noise.restore()
    assert all(torch.equal(p, clean[name]) for name, p in model.named_parameters())
    assert aliases(dict(model.named_parameters()))


def test_a_frozen_name_of_a_trained_weight_is_that_weight() -> None:
    model = Shared("memory")
    model.table.weight.requires_grad_(False)
    assert list(trainable_parameters(model)) == ["head.weight"]
    with tied(model):
        assert model.table.weight is model.head.weight
    assert not model.table.weight.requires_grad


def test_a_part_of_a_memory_is_refused() -> None:
    model = nn.Linear(4, 4, bias=False)
    model.rows = nn.Parameter(model.weight.data[1:3])  # type: ignore[assignment]
    with pytest.raises(ValueError, match="'weight' and 'rows' share a part of their memory"):
        trainable_parameters(model)
    model = nn.Linear(4, 4, bias=False)
    model.scale = nn.Parameter(torch.zeros(1).expand(3))  # type: ignore[assignment]
    with pytest.raises(ValueError, match="'scale' is an expanded tensor"):
        trainable_parameters(model)


def test_columns_of_one_matrix_are_parameters_of_their_own() -> None:
    whole = torch.zeros(4, 6)
    assert aliases({"left": nn.Parameter(whole[:, :3]), "right": nn.Parameter(whole[:, 3:])}) == {}
