"""The spectrum against dense float64 Hessians, and where it is degenerate."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from accelerate import debug_launcher
from torch import Tensor, nn

from hf_pacgen import SpectrumConfig, hessian_spectrum
from hf_pacgen.maths.lanczos import Basis
from hf_pacgen.results.spectrum import Spectrum


class Weights(nn.Module):
    def __init__(self, count: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, count, dtype=dtype) + 0.1)


def quadratic(curvature: Tensor) -> Callable[[nn.Module, Tensor], tuple[Tensor, int]]:
    def loss(model: Any, batch: Tensor) -> tuple[Tensor, int]:
        return (curvature.to(model.w.dtype) * model.w**2).sum() / 2 * len(batch), len(batch)

    return loss


def of_quadratic(curvature: Tensor, dtype: torch.dtype = torch.float64, k: int = 5, **settings: Any) -> Spectrum:
    model, config = Weights(len(curvature), dtype), SpectrumConfig(**settings)
    return hessian_spectrum(
        model, [torch.zeros(3), torch.zeros(1)], k=k, config=config, loss_fn=quadratic(curvature), progress=False
    )


def dense(name: str, count: int = 7) -> Tensor:
    hessian = tiny.dense_hessian(tiny.make(name), tiny.examples(name, count))
    return torch.linalg.eigvalsh((hessian + hessian.T) / 2)


@pytest.mark.parametrize("name", list(tiny.MODELS))
def test_the_top_five_are_those_of_the_dense_hessian(name: str) -> None:
    model, exact = tiny.make(name), dense(name)
    config = SpectrumConfig(keep_vectors=True)
    result = hessian_spectrum(model, tiny.split(tiny.examples(name, 7), 4, 3), config=config, progress=False)
    assert result.eigenvalues == pytest.approx(exact.flip(0)[:5].tolist(), rel=1e-6)
    assert all(result.converged) and result.iterations < len(exact) / 5
    hessian = tiny.dense_hessian(model, tiny.examples(name, 7))
    assert result.eigenvectors is not None
    # the loss of a causal model stays float32 (transformers casts its logits)
    rounding = (1e-5 if name in tiny.CAUSAL else 1e-12) * exact.abs().max().item()
    for value, residual, named in zip(result.eigenvalues, result.residuals, result.eigenvectors, strict=True):
        vector = tiny.flat(named)
        assert vector.norm().item() == pytest.approx(1)
        assert (hessian @ vector - value * vector).norm().item() == pytest.approx(residual, rel=0.1, abs=rounding)
    assert result.trace == pytest.approx(exact.sum().item(), abs=5 * (result.trace_stderr or 0))
    assert (result.num_examples, result.num_units) == (7, 20 * 7 / 5 if name in tiny.CAUSAL else 7)
    assert result.num_hvps == 2 * (result.iterations + 4 * 12)


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_finite_differences_in_float32(name: str) -> None:
    model, exact = tiny.make(name, dtype=torch.float32), dense(name)
    batches = tiny.split(tiny.examples(name, 7, dtype=torch.float32), 4, 3)
    result = hessian_spectrum(model, batches, config=SpectrumConfig(probes=0), progress=False)
    assert result.hvp_method == "finite_difference"
    assert result.eigenvalues == pytest.approx(exact.flip(0)[:5].tolist(), rel=2e-3)
    # residuals own up to the noise of the products, of the order of the errors
    errors = (torch.tensor(result.eigenvalues) - exact.flip(0)[:5]).abs()
    assert bool((errors <= 3 * torch.tensor(result.residuals)).all())


def test_the_other_ends() -> None:
    model, batches, exact = tiny.make("gpt2"), [tiny.examples("gpt2", 7)], dense("gpt2")
    smallest, magnitude = (
        hessian_spectrum(model, batches, k=4, config=SpectrumConfig(which=which, probes=0), progress=False)  # type: ignore[arg-type]
        for which in ("smallest", "magnitude")
    )
    assert smallest.eigenvalues == pytest.approx(exact[:4].tolist(), rel=1e-5)
    assert magnitude.eigenvalues == pytest.approx(exact[exact.abs().argsort(descending=True)[:4]].tolist(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "curvature",
    [[1e-30] * 30, [1.0] * 30, [2.0], [3, 3, 1, 1, 1], [-3, 0, 1], [3, 3] + [2] * 3 + [1] * 200],
    ids=["zero", "identity", "one parameter", "pairs", "three", "many copies"],
)
def test_degenerate_spectra(curvature: list[float], dtype: torch.dtype) -> None:
    exact = sorted(curvature, reverse=True)
    result = of_quadratic(torch.tensor(curvature), dtype)
    near = 1e-9 if dtype == torch.float64 else 1e-3
    assert result.eigenvalues == pytest.approx(exact[:5], abs=near)
    assert all(result.converged) and len(result.residuals) == min(5, len(exact))
    assert result.trace == pytest.approx(sum(exact), rel=1e-3, abs=near)
    assert sum(result.weights) == pytest.approx(1)
    assert ("fewer parameters" in " ".join(result.status)) == (len(exact) < 5)


def test_a_second_copy_that_lanczos_cannot_see_is_found() -> None:
    """The Krylov space of one start holds one copy of each eigenvalue, and is exhausted after two steps."""
    result = of_quadratic(torch.tensor([3.0, 3.0] + [1.0] * 300), k=2)
    assert result.eigenvalues == pytest.approx([3, 3]) and result.iterations < 12


def test_a_loss_without_curvature() -> None:
    def linear(model: Any, batch: Tensor) -> tuple[Tensor, int]:
        return model.w.sum() * len(batch), len(batch)

    result = hessian_spectrum(Weights(9), [torch.zeros(2)], k=3, loss_fn=linear, progress=False)
    assert result.eigenvalues == (0, 0, 0) and all(result.converged) and (result.trace, result.trace_stderr) == (0, 0)
    assert result.density(torch.zeros(1)).isfinite().all()


def test_what_has_not_converged_is_marked() -> None:
    curvature = torch.cat([torch.tensor([50.0]), torch.linspace(0, 1, 400)])
    result = of_quadratic(curvature, iterations=8, probes=0)
    assert result.converged[0] and not any(result.converged[1:])
    assert result.eigenvalues[0] == pytest.approx(50) and max(result.eigenvalues[1:]) < 1
    assert "4 of 5 eigenvalues did not converge in 8 Lanczos steps" in result.status[0]
    assert (result.trace, result.trace_stderr, result.nodes) == (None, None, ())
    few = of_quadratic(curvature, iterations=2, probes=0)
    assert len(few.eigenvalues) == 2 and few.status[0].startswith("2 Lanczos steps give 2 eigenvalues and not 5")
    assert "did not converge" in few.status[1]


def test_a_probe_finds_what_the_search_has_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_pacgen.curvature.spectrum._Search.finished", lambda self, krylov, exhausted: exhausted)
    result = of_quadratic(torch.tensor([3.0, 3.0] + [1.0] * 30), k=2)
    assert result.eigenvalues == pytest.approx([3, 1]) and result.converged == (True, False)


def test_trace_and_density() -> None:
    generator = torch.Generator().manual_seed(0)
    curvature = torch.cat([torch.tensor([40.0, 30.0]), torch.rand(600, generator=generator)])
    traces = [of_quadratic(curvature, k=2, seed=seed) for seed in range(12)]
    # the outliers are counted, not sampled: plain probes would err by 35, and these by 5
    deviations = [((r.trace or 0) - curvature.sum().item()) / (r.trace_stderr or 1) for r in traces]
    assert max(r.trace_stderr or 9 for r in traces) < 12 and sorted(map(abs, deviations))[8] < 2.5
    one = traces[0]
    points = torch.linspace(-3, 44, 4001)
    density = one.density(points)
    assert torch.trapezoid(density, points).item() == pytest.approx(1, abs=1e-3)
    masses = [torch.trapezoid(density[part], points[part]).item() for part in (points < 5, points > 20)]
    assert masses == pytest.approx([600 / 602, 2 / 602], abs=1e-4)
    assert one.density(points, bandwidth=3.0).max() < density.max()
    assert json.loads(json.dumps(one.to_dict()))["eigenvalues"] == list(one.eigenvalues)


def test_ragged_batches_pool_by_units() -> None:
    model, batch = tiny.make("gpt2"), tiny.examples("gpt2", 7, ignore=0.4)
    whole, cut = (
        hessian_spectrum(model, data, k=3, config=SpectrumConfig(probes=0), progress=False)
        for data in ([batch], tiny.split(batch, 1, 4, 2))
    )
    assert cut.eigenvalues == pytest.approx(whole.eigenvalues, rel=1e-8) and cut.num_units == whole.num_units


def on_two_processes(expected: list[float]) -> None:
    from accelerate import Accelerator

    batches = tiny.split(tiny.examples("bert", 7), 2, 3, 2)
    config = SpectrumConfig(probes=2)
    result = hessian_spectrum(
        tiny.make("bert"), batches, k=3, config=config, accelerator=Accelerator(cpu=True), progress=False
    )
    assert [*result.eigenvalues, result.trace] == pytest.approx(expected, rel=1e-6)
    assert (result.num_examples, result.num_hvps) == (7, 3 * (result.iterations + 24))


def test_two_processes_agree_with_one() -> None:
    batches = tiny.split(tiny.examples("bert", 7), 2, 3, 2)
    result = hessian_spectrum(tiny.make("bert"), batches, k=3, config=SpectrumConfig(probes=2), progress=False)
    debug_launcher(on_two_processes, ([*result.eigenvalues, result.trace],), num_processes=2)


def test_the_basis_stays_orthonormal() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = Basis({"a": torch.zeros(7, 5), "b": torch.zeros(3)})
    for _ in range(19):  # more than two blocks of rows
        vector = {"a": torch.randn(7, 5, generator=generator), "b": torch.randn(3, generator=generator)}
        basis.project_out(vector)
        length = torch.cat([v.flatten() for v in vector.values()]).norm()
        basis.append({n: v / length for n, v in vector.items()})
    rows = torch.cat([torch.cat([b[n][: 19 - 8 * i] for n in ("a", "b")], 1) for i, b in enumerate(basis.blocks)])
    torch.testing.assert_close(rows @ rows.T, torch.eye(19), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k, the number of eigenvalues, must be an integer of at least 1; got 0"),
        ({"k": 2.0}, r"k, the number of eigenvalues.*got 2\.0"),
        ({"k": True}, "k, the number of eigenvalues.*got True"),
    ],
)
def test_bad_k(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hessian_spectrum(tiny.make("bert"), [tiny.examples("bert", 4)], progress=False, **settings)


def test_bad_density_and_bad_products() -> None:
    with pytest.raises(ValueError, match="no spectral density: it was measured with probes=0"):
        of_quadratic(torch.arange(50.0), probes=0, iterations=9).density(torch.zeros(1))
    with pytest.raises(ValueError, match=r"bandwidth must be a finite number greater than 0; got -1"):
        of_quadratic(torch.ones(3)).density(torch.zeros(1), bandwidth=-1)

    def root(model: Any, batch: Tensor) -> tuple[Tensor, int]:
        return (model.w - model.w.detach()).abs().sqrt().sum() * 0 + model.w.square().sum(), 1

    with pytest.raises(ValueError, match="product of the Hessian with a vector is not finite"):
        hessian_spectrum(Weights(3), [torch.zeros(1)], loss_fn=root, progress=False)


def test_rows_of_an_embedding_that_no_batch_reads() -> None:
    """They are neither displaced nor differentiated, and count as the zeros that they are."""
    torch.manual_seed(0)
    model = tiny.bert(hidden_size=64, num_hidden_layers=1, intermediate_size=8)
    parts = tiny.split(tiny.examples("bert", 7, dtype=torch.float32), 4, 3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = SpectrumConfig(probes=1, density_iterations=2)
    single = hessian_spectrum(model, parts, k=3, config=config, progress=False)
    assert all(torch.equal(before[name], p.detach()) for name, p in model.named_parameters())
    double = hessian_spectrum(model.double(), parts, k=3, config=config, progress=False)
    assert (single.hvp_method, double.hvp_method) == ("finite_difference", "reverse_over_reverse")
    assert single.eigenvalues == pytest.approx(double.eigenvalues, rel=2e-3)
    assert single.trace == pytest.approx(double.trace, rel=1e-2)
