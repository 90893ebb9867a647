"""Numbers of any kind as tensors; the errors are run through the metric, in test_pacgen.py of the metric."""

from __future__ import annotations

import numpy
import pytest
import torch

from hf_pacgen.errors import InputError
from hf_pacgen.maths.arrays import to_number, to_tensors


def test_kinds_and_types() -> None:
    assert to_tensors([1, 2], "w")["weights"].dtype is torch.float64
    assert to_tensors(numpy.ones(2, dtype=numpy.float32), "w")["weights"].dtype is torch.float32
    given = torch.ones(2, dtype=torch.bfloat16)
    assert to_tensors(given, "w")["weights"] is given, "not copied"
    assert list(to_tensors([torch.ones(1), numpy.ones(2)], "w")) == ["0", "1"]
    assert to_tensors({"a": 3.0}, "w")["a"].shape == ()


def test_read_only_arrays_are_fine() -> None:
    array = numpy.ones(2)
    array.setflags(write=False)
    assert to_tensors(array, "w")["weights"].tolist() == [1, 1]


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), numpy.ones(2), torch.ones(2)])
def test_what_is_no_number(value: object) -> None:
    with pytest.raises(InputError, match="rho must be a finite number; got"):
        to_number(value, "rho")
    with pytest.raises(InputError, match=r"w must hold real numbers; got torch\.bool"):
        to_tensors([True], "w")


def test_numbers_of_libraries() -> None:
    assert [to_number(value, "rho") for value in (1, numpy.float32(1), torch.tensor([1.0]))] == [1.0, 1.0, 1.0]
