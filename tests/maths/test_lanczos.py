"""Lanczos against dense eigenvalues, over all earlier vectors and over the last two."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hf_pacgen.maths.lanczos import Basis, Krylov, Recent, lanczos

Vector = dict[str, Tensor]
SIZES = {"a": (3, 4), "b": (7,)}
DIMENSION = 19


def symmetric(values: Tensor, seed: int = 0) -> Tensor:
    """A dense matrix with these eigenvalues."""
    torch.manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64))
    return q @ torch.diag(values.double()) @ q.t()


def flat(vector: Vector) -> Tensor:
    return torch.cat([value.reshape(-1) for value in vector.values()])


def named(vector: Tensor) -> Vector:
    parts = vector.split([torch.Size(size).numel() for size in SIZES.values()])
    return {name: part.reshape(size).clone() for (name, size), part in zip(SIZES.items(), parts, strict=True)}


def times(matrix: Tensor) -> Callable[[Vector, Vector], Vector]:
    def product(vector: Vector, out: Vector) -> Vector:
        image = named(matrix @ flat(vector))
        return {name: out[name].add_(value) for name, value in image.items()} if out else image

    return product


def start(seed: int = 1) -> Vector:
    torch.manual_seed(seed)
    return named(torch.randn(DIMENSION, dtype=torch.float64))


def test_all_steps_give_all_eigenvalues() -> None:
    values = torch.linspace(-2, 5, DIMENSION, dtype=torch.float64)
    krylov = lanczos(times(symmetric(values)), start(), basis=Basis(start()), iterations=99, dimension=DIMENSION)
    found, vectors = krylov.pairs()
    torch.testing.assert_close(found, values)
    assert krylov.beta == 0 and krylov.norm() == pytest.approx(5)
    assert isinstance(krylov.basis, Basis)
    top = krylov.basis.combine(vectors[:, -1])
    torch.testing.assert_close(symmetric(values) @ flat(top), 5 * flat(top))


def test_residuals_are_those_of_the_dense_matrix() -> None:
    matrix = symmetric(torch.linspace(1, 3, DIMENSION))
    krylov = lanczos(times(matrix), start(), basis=Basis(start()), iterations=6, dimension=DIMENSION)
    values, vectors = krylov.pairs()
    remaining, noise = krylov.residuals(vectors)
    assert isinstance(krylov.basis, Basis)
    for i in range(6):
        y = flat(krylov.basis.combine(vectors[:, i]))
        assert remaining[i] == pytest.approx((matrix @ y - values[i] * y).norm().item(), rel=1e-9)
    assert noise.max() < 1e-12


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_last_two_vectors_give_the_norm_that_all_give(steps: int) -> None:
    matrix = symmetric(torch.tensor([-9.0, *torch.linspace(-1, 4, DIMENSION - 1)]))
    whole = lanczos(times(matrix), start(), basis=Basis(start()), iterations=steps, dimension=DIMENSION)
    recent = lanczos(times(matrix), start(), basis=Recent(), iterations=steps, dimension=DIMENSION)
    assert recent.norm() == pytest.approx(whole.norm(), rel=1e-9)
    torch.testing.assert_close(recent.h, (whole.h + whole.h.t()) / 2)


def test_an_exhausted_space_ends_the_process_or_begins_anew() -> None:
    matrix = symmetric(torch.tensor([2.0] * 18 + [7.0]))  # two different eigenvalues: two steps know all
    for basis in (Basis(start()), Recent()):
        krylov = lanczos(times(matrix), start(), basis=basis, iterations=99, dimension=DIMENSION)
        assert len(basis) == 2 and krylov.beta == 0 and krylov.norm() == pytest.approx(7)
    whole = lanczos(
        times(matrix),
        start(),
        basis=Basis(start()),
        iterations=99,
        dimension=DIMENSION,
        fresh=lambda number: start(10 + number),
    )
    torch.testing.assert_close(whole.pairs()[0], torch.tensor([2.0] * 18 + [7.0], dtype=torch.float64))


def test_everything_stays_orthogonal_to_what_is_deflated() -> None:
    values = torch.tensor([*torch.linspace(0, 1, 18), 50.0])
    matrix = symmetric(values)
    kept = Basis(start())
    kept.append(named(torch.linalg.eigh(matrix)[1][:, -1]))
    krylov = lanczos(times(matrix), start(), basis=Basis(start()), iterations=99, dimension=18, deflated=kept)
    assert krylov.pairs()[0].max() < 1.001


def test_the_process_stops_when_it_is_told_to() -> None:
    seen: list[int] = []

    def enough(krylov: Krylov, exhausted: bool) -> bool:
        seen.append(len(krylov.h))
        return len(seen) == 3

    matrix = symmetric(torch.linspace(1, 3, DIMENSION))
    krylov = lanczos(times(matrix), start(), basis=Recent(), iterations=9, dimension=DIMENSION, stop=enough)
    assert seen == [1, 2, 3] and len(krylov.h) == 3


@pytest.mark.parametrize("kind", [Basis, Recent])
def test_a_product_that_is_not_finite_is_an_error(kind: type) -> None:
    basis = Basis(start()) if kind is Basis else Recent()
    with pytest.raises(FloatingPointError, match="Lanczos step 1 is not finite"):
        lanczos(times(symmetric(torch.full((19,), torch.inf))), start(), basis=basis, iterations=3, dimension=19)


class Halves:
    """A space whose vectors lie in two equal parts, one of them elsewhere."""

    def total(self, tensor: Tensor) -> Tensor:
        return tensor.mul_(2)


@pytest.mark.parametrize("kind", [Basis, Recent])
def test_sums_go_through_the_space(kind: type) -> None:
    vector = named(torch.ones(DIMENSION, dtype=torch.float64))
    basis = Basis(vector, Halves()) if kind is Basis else Recent(Halves())
    assert basis.norm(vector) == pytest.approx((2 * DIMENSION) ** 0.5)
