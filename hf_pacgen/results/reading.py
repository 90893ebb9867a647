"""Results that come from a file or an upload, whoever wrote it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from hf_pacgen.errors import InputError
from hf_pacgen.results.pacgen import PACGenResult

__all__ = ["MAX_BYTES", "certificate_fields", "parse_result", "read_json", "read_result"]

MAX_BYTES = 20_000_000
"""Of a result's file.  That of a model of a thousand modules has 0.3 MB."""

MODULE_FIELDS = frozenset(
    {"score", "kl_complexity", "hessian_trace", "num_parameters", "active_fraction", "kl_active_fraction"}
)
CERTIFICATE_NUMBERS = ("bound", "empirical_error", "kl", "n", "delta")
"""Fields of a certificate that make no sense without each other."""


def read_result(path: str | os.PathLike[str]) -> PACGenResult:
    """A result that :meth:`PACGenResult.save` wrote, or a file that claims to be one.

    Raises:
        InputError: there is no such file, or it is none of ours.
    """
    return _to_result(read_json(path), os.fspath(path))


def parse_result(data: bytes, name: str = "The file") -> PACGenResult:
    """A result from the bytes of a file.

    Raises:
        InputError: more than ``MAX_BYTES``, no JSON, or not the JSON of a result of this version.
    """
    return _to_result(_parse(data, name), name)


def read_json(path: str | os.PathLike[str]) -> Any:
    """The JSON in a file.

    Raises:
        InputError: there is no such file, it has more than ``MAX_BYTES``, or it is not JSON.
    """
    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise InputError(f"{os.fspath(path)} {what}: expected a JSON file written by 'hf-pacgen score --output'.")
    with file.open("rb") as stream:
        return _parse(stream.read(MAX_BYTES + 1), os.fspath(path))


def _parse(data: bytes, name: str) -> Any:
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{name} has more than {MAX_BYTES // 10**6} MB: expected a result written by hf_pacgen, which is smaller."
        )

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a number of JSON")

    try:
        return json.loads(data.decode("utf-8-sig"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # wrong encodings and malformed JSON are ValueErrors
        raise InputError(f"{name} is not JSON ({error}): expected a result written by hf_pacgen.") from None


def _to_result(values: Any, name: str) -> PACGenResult:
    try:
        result = PACGenResult.from_dict(values)
    except (ValueError, TypeError) as error:
        raise InputError(f"{name}: {error}") from None
    if not isinstance(values["status"], list):  # a string would have become a tuple of letters
        raise InputError(f"{name}: 'status' must be of type list; got {_excerpt(values['status'])}.")
    hints = typing.get_type_hints(PACGenResult)
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if not _fits(value, hints[field.name]):
            raise InputError(
                f"{name}: {field.name!r} must be of type {_describe(hints[field.name])}; got {_excerpt(value)}. "
                "Write the file with PACGenResult.save()."
            )
    if result.num_parameters < 1:
        raise InputError(f"{name}: 'num_parameters' must be at least 1; got {result.num_parameters}.")
    for module, numbers in result.by_module.items():
        if numbers.keys() != MODULE_FIELDS or numbers["num_parameters"] < 1:
            raise InputError(
                f"{name}: the module {_excerpt(module)} must have {', '.join(sorted(MODULE_FIELDS))}, and at least one "
                f"parameter; it has {_excerpt(numbers)}. Write the file with PACGenResult.save()."
            )
    return result


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of the type that a field is declared with."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is types.UnionType:
        return any(_fits(value, argument) for argument in arguments)
    if hint is float:  # a whole number is written without a point; a huge one becomes infinite
        return isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and _is_finite(value)
    if origin is dict:
        return isinstance(value, Mapping) and all(
            _fits(key, arguments[0]) and _fits(entry, arguments[1]) for key, entry in value.items()
        )
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(entry, arguments[0]) for entry in value)
    return isinstance(value, hint)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer with more than 308 digits
        return False


def _describe(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def certificate_fields(certificate: Any) -> dict[str, Any]:
    """The fields of a certificate: an object with ``to_dict()``, a dataclass, or a mapping.

    Raises:
        InputError: it is none of these, or lacks what makes it a certificate.
    """
    if hasattr(certificate, "to_dict"):
        certificate = certificate.to_dict()
    elif dataclasses.is_dataclass(certificate) and not isinstance(certificate, type):
        certificate = dataclasses.asdict(certificate)
    if not isinstance(certificate, Mapping):
        raise InputError(
            f"A certificate must be what certify() returned, or its to_dict(); got {type(certificate).__name__}."
        )
    fields = dict(certificate)
    wrong = [name for name in CERTIFICATE_NUMBERS if not _fits(fields.get(name), float)]
    if wrong or fields.get("status") not in ("certified", "vacuous"):
        raise InputError(
            f"A certificate must have the numbers {', '.join(CERTIFICATE_NUMBERS)}, and a status, 'certified' or "
            f"'vacuous'; wrong or missing: {', '.join(wrong or ['status'])}. Write it with Certificate.to_dict()."
        )
    return fields
