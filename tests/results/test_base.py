"""Results from files and uploads: what is ours is read, and nothing else."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from sample_results import module, sample_result

from hf_pacgen.errors import InputError
from hf_pacgen.results.base import MAX_BYTES, MissingFile
from hf_pacgen.results.pacgen import PACGenResult

RESULT = sample_result()


def changed(**changes: Any) -> bytes:
    return json.dumps({**RESULT.to_dict(), **changes}).encode()


@pytest.mark.parametrize("result", [RESULT, sample_result(hessian_trace_stderr=None, hvp_method=None, by_module={})])
def test_what_was_saved_is_read(result: Any, tmp_path: Path) -> None:
    result.save(tmp_path / "result.json")
    assert PACGenResult.load(tmp_path / "result.json") == result
    assert PACGenResult.parse((tmp_path / "result.json").read_bytes()) == result


def test_whole_numbers_and_a_byte_order_mark() -> None:
    assert PACGenResult.parse(b"\xef\xbb\xbf" + changed(score=60, loss=0)).score == 60


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"F is not JSON \(.*\): expected a result written by hf_pacgen"),
        (b"\x89PNG\xff", "F is not JSON"),
        (b"[" * 200_000, "F is not JSON"),
        (b"[1]", "no result of hf_pacgen: expected a JSON object with a 'version'"),
        (b"{}", "no result of hf_pacgen"),
        (changed(version=2), "version 2; this release reads version 1"),
        (json.dumps({"version": 1, "score": 3}).encode(), "missing"),
        (changed(score=math.nan), "NaN is not a number of JSON"),
        (changed(score=math.inf), "Infinity is not a number of JSON"),
        (changed(score="low"), "'score' must be of type float; got 'low'"),
        (changed(score=True), "'score' must be of type float; got True"),
        (changed(score=10**400), "'score' must be of type float; got 1000"),
        (changed(num_parameters=1.5), "'num_parameters' must be of type int; got 1.5"),
        (changed(num_parameters=0), "'num_parameters' must be at least 1; got 0"),
        (changed(hessian_trace_stderr="?"), r"'hessian_trace_stderr' must be of type float \| None"),
        (changed(hvp_method=3), r"'hvp_method' must be of type str \| None"),
        (changed(status=["a", 3]), "'status' must be of type"),
        (changed(status="a sentence"), "'status' must be of type"),
        (changed(status=7), "F: "),
        (changed(config=[]), "'config' must be of type"),
        (changed(by_module=[]), "'by_module' must be of type"),
        (changed(by_module={"a": {"score": "x"}}), "'by_module' must be of type"),
        (changed(by_module={"a": {"score": 1.0}}), "the module 'a' must have hessian_trace, kl_complexity, "),
        (
            changed(kl_parts={"weights": 1.0}),
            r"'kl_parts' must have weights, hessian, lipschitz, or be empty; it has {'w",
        ),
        (changed(kl_parts={**RESULT.kl_parts, "dropout": 1.0}), "'kl_parts' must have weights, hessian, lipschitz, or"),
        (changed(kl_excess="much"), r"'kl_excess' must be of type float \| None; got 'much'"),
        (changed(by_module={"a": module(1, 1, 0)}), "and at least one parameter"),
        (changed(by_module={"a" * 99: {}}), r"the module 'aaaa.*\.\.\. must have"),
    ],
)
def test_what_is_none_of_ours(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PACGenResult.parse(data, "F")


def test_too_large() -> None:
    assert PACGenResult.parse(changed() + b" " * (MAX_BYTES - len(changed()))) == RESULT
    with pytest.raises(InputError, match="F has more than 20 MB"):
        PACGenResult.parse(changed() + b" " * (MAX_BYTES + 1 - len(changed())), "F")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"no\.json does not exist: expected a JSON file") as error:
        PACGenResult.load(tmp_path / "no.json")
    assert isinstance(error.value, InputError) and isinstance(error.value, FileNotFoundError)
    with pytest.raises(InputError, match="is a folder: expected a JSON file"):
        PACGenResult.load(tmp_path)
