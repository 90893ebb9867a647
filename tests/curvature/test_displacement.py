"""Directions made piece by piece, and weights that are displaced along them and come back bit for bit."""

from __future__ import annotations

import pytest
import torch

from hf_pacgen.curvature.displacement import (
    CHUNK,
    BoxDirection,
    Direction,
    RademacherDirection,
    SavedWeights,
    TensorDirection,
    chunks,
)

W = torch.randn(9, 64)


@pytest.mark.parametrize(
    "direction",
    [
        RademacherDirection(3),
        BoxDirection(3, gamma=0.5, epsilons={"w": 0.1}),
        TensorDirection({"w": torch.randn(9, 64)}),
    ],
    ids=["signs", "box", "stored"],
)
def test_pieces_and_rows_are_parts_of_the_whole(direction: Direction) -> None:
    whole = direction.piece("w", 0, W)
    assert whole.shape == W.shape
    flat = W.reshape(-1)
    assert direction.piece("w", 100, flat[100:300]).equal(whole.reshape(-1)[100:300])
    rows = torch.tensor([1, 4, 8])
    assert direction.rows("w", rows, W[rows]).equal(whole[rows])


def test_a_part_of_a_weight_has_its_part_of_the_signs() -> None:
    whole = RademacherDirection(3).piece("w", 0, W)
    part = RademacherDirection(3, offsets={"w": 128}).piece("w", 0, W[2:5])
    assert part.equal(whole[2:5])


def test_large_tensors_come_in_pieces_and_odd_ones_whole() -> None:
    large = torch.zeros(CHUNK + 5)
    assert [(start, len(piece)) for start, (piece,) in chunks(large)] == [(0, CHUNK), (CHUNK, 5)]
    assert [piece.shape for _, (piece,) in chunks(torch.zeros(2, 3).t())] == [torch.Size([3, 2])]


def test_weights_come_back_bit_for_bit_however_they_were_displaced() -> None:
    torch.manual_seed(0)
    parameters = {"a": torch.randn(130, 64).bfloat16(), "b": torch.randn(7, 5).t(), "c": torch.randn(())}
    before = {n: p.clone() for n, p in parameters.items()}
    with SavedWeights(parameters, by_rows=["a"]) as saved:
        assert "a" not in saved.copy
        for i in range(5):
            saved.displace([(RademacherDirection(i), 0.1), (RademacherDirection(9), 0.2)])
            assert parameters["a"].equal(before["a"]) and not parameters["b"].equal(before["b"])
            saved.look_up("a", torch.tensor([77, 3, 3]))
            once = parameters["a"].clone()
            saved.look_up("a", torch.tensor([[5, 77]]))  # a second reading displaces only what is new
            assert not parameters["a"][5].equal(before["a"][5]) and parameters["a"][77].equal(once[77])
            assert parameters["a"][4].equal(before["a"][4]) and not once[3].equal(before["a"][3])
            saved.displace([(RademacherDirection(i), 0.1)])
            assert parameters["a"].equal(before["a"])
            saved.displace([(RademacherDirection(i), 0.1), (RademacherDirection(9), 0.2)], whole=True)
            assert parameters["a"][[3, 77]].equal(once[[3, 77]]) and not parameters["a"][4].equal(before["a"][4])
            saved.look_up("a", torch.tensor([3]))
            assert parameters["a"][3].equal(once[3])
            if i % 2:
                saved.restore()
                saved.look_up("a", torch.tensor([3]))
                assert parameters["a"].equal(before["a"])
    assert all(p.equal(before[n]) for n, p in parameters.items())
