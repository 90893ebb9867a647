"""The base of all results: they are written as JSON, with the version of their format, and read again."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import typing
import warnings
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

from hf_pacgen.errors import InputError
from hf_pacgen.files import write_atomically
from hf_pacgen.results.fields import FACTS, Facts, describe_type, excerpt, fits
from hf_pacgen.results.summary import as_html, text

R = TypeVar("R", bound="Result")

MAX_BYTES = 20_000_000  # of a result's file. That of a model of a thousand modules has 0.3 MB


class MissingFile(InputError, FileNotFoundError):
    """There is no such file."""


class Result:
    """Base of frozen dataclasses; every field says what it is, with ``measured(...)`` or ``other(...)``."""

    kind: ClassVar[str]  # what it is called in messages
    version: ClassVar[int] = 1  # of the format in which it is written
    remake: ClassVar[str] = "Measure the model again"  # the remedy where a file cannot be read
    derived: ClassVar[tuple[str, ...]] = ()  # properties that are written beside the fields, for other readers
    unversioned: ClassVar[bool] = False  # whether release 0.1 wrote it without a version

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):  # else @dataclass would write all fields on one line
            cls.__repr__ = Result.__repr__  # type: ignore[method-assign]
        # @dataclass has not run yet, so the fields are still attributes of the class
        hints = [name for name, hint in inspect.get_annotations(cls).items() if "ClassVar" not in str(hint)]
        described: dict[str, Any] = {n: getattr(vars(cls).get(n), "metadata", {}).get(FACTS) for n in hints}
        if bare := [name for name, facts in described.items() if facts is None]:
            raise TypeError(
                f"The fields {bare} of {cls.__name__} do not say what they are: declare each with "
                "measured(label, says=...), or with other(says) where it is no measure."
            )
        lines = [f"    {name}: {facts.meaning}." for name, facts in described.items()]
        # each field says what it is once, and help() and the docs find it where they look
        cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Attributes:", *lines])

    def __repr__(self) -> str:
        return text(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return as_html(self)

    @classmethod
    def facts(cls) -> dict[str, Facts]:
        """What every field is."""
        return {field.name: field.metadata[FACTS] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]

    @classmethod
    def keyed(cls, values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
        """The metrics among ``values`` that are known, which are by field name, under the keys of :meth:`metrics`."""
        known = {name for name, value in values.items() if value is not None}
        metrics = {name: facts.key for name, facts in cls.facts().items() if facts.key and name in known}
        return {f"{prefix}{key}": values[name] for name, key in metrics.items()}

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """The numbers under the keys by which they are logged, reported and compared, such as ``eval_pacgen_kl``."""
        return self.keyed(vars(self), prefix)

    @property
    def notes(self) -> tuple[str, ...]:
        """What limits the numbers, or was taken for granted, in sentences."""
        return tuple(getattr(self, "status", ()))

    def to_dict(self) -> dict[str, Any]:
        """All fields but tensors as values that JSON knows, with the version of this format."""
        names = [name for name, facts in self.facts().items() if facts.written]
        return {"version": self.version, **{name: _plain(getattr(self, name)) for name in (*names, *self.derived)}}

    @classmethod
    def from_dict(cls: type[R], values: Mapping[str, Any]) -> R:
        """The result from :meth:`to_dict`.  A missing field gets its default; unknown ones are left out with a warning.

        Raises:
            InputError: another version, a value of the wrong type, or a missing field that has no default.
        """
        if not isinstance(values, Mapping) or not ("version" in values or cls.unversioned):
            raise InputError(f"This is no {cls.kind} of hf_pacgen: expected a JSON object with a 'version'.")
        if strange := [name for name in values if not isinstance(name, str)]:
            raise InputError(f"The {cls.kind} has the key {excerpt(strange[0])}: expected strings, as in JSON.")
        if values.get("version", 1) != cls.version:
            raise InputError(
                f"The {cls.kind} has version {values['version']!r}; this release reads version {cls.version}. "
                f"{cls.remake}, or install the release that wrote it."
            )
        given = cls._known(values)
        hints = typing.get_type_hints(cls, localns={"Tensor": object})  # tensors are not written, so never looked at
        for name, value in given.items():
            if not fits(value, hints[name]):
                raise InputError(
                    f"{name!r} must be of type {describe_type(hints[name])}; got {excerpt(value)}. "
                    f"Write the file with {cls.__name__}.save()."
                )
            if typing.get_origin(hints[name]) is tuple:  # which JSON writes as a list
                given[name] = tuple(value)
        return cls(**given)

    @classmethod
    def _known(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        # the values of our fields, once none of those that are needed is missing
        facts = cls.facts()
        known = {name: values[name] for name, fact in facts.items() if fact.written and name in values}
        unknown = sorted(set(values) - {"version", *cls.derived, *known})
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        needed = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}
        if tensors := sorted(name for name in needed if not facts[name].written):
            raise InputError(
                f"A {cls.kind} cannot be read from JSON, which has no place for its tensors {tensors}. {cls.remake}."
            )
        if missing := sorted(needed - known.keys()):
            raise InputError(
                f"The {cls.kind} does not have the expected fields: missing {missing}, unknown {unknown}. {cls.remake}."
            )
        if unknown:  # a newer release may say more, and what it says of our fields still holds
            warnings.warn(
                f"The {cls.kind} has fields that this release does not know, and leaves out: {', '.join(unknown)}. "
                "A newer release may have written it.",
                stacklevel=3,  # where from_dict was called
            )
        return known

    @classmethod
    def parse(cls: type[R], data: bytes, name: str = "The file") -> R:
        """The result from the bytes of a file that somebody else may have written.

        Raises:
            InputError: more than ``MAX_BYTES``, no JSON, or what :meth:`from_dict` refuses.
        """
        values = _parse(data, name)
        try:
            return cls.from_dict(values)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None  # which of the files a person gave

    @classmethod
    def load(cls: type[R], path: str | os.PathLike[str]) -> R:
        """Read what :meth:`save` wrote.

        Raises:
            MissingFile: there is no such file.
            InputError: what :meth:`parse` refuses.
        """
        return cls.parse(_content(path), os.fspath(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, atomically.

        Raises:
            FileNotFoundError: the folder does not exist.
        """
        folder = Path(path).parent
        if not folder.is_dir():
            raise FileNotFoundError(f"Cannot write {path}: the folder {folder} does not exist. Make it first.")
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: str | os.PathLike[str]) -> Any:
    """The JSON in a file.

    Raises:
        MissingFile: there is no such file.
        InputError: it has more than ``MAX_BYTES``, or it is not JSON.
    """
    return _parse(_content(path), os.fspath(path))


def _content(path: str | os.PathLike[str]) -> bytes:
    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise MissingFile(f"{os.fspath(path)} {what}: expected a JSON file written by 'hf-pacgen score --output'.")
    with file.open("rb") as stream:
        return stream.read(MAX_BYTES + 1)  # enough to see that it is too large


def _parse(data: bytes, name: str) -> Any:
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{name} has more than {MAX_BYTES // 10**6} MB: expected a result written by hf_pacgen, which is smaller."
        )

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not a number of JSON")

    try:
        # the byte-order mark is what Windows puts before UTF-8; NaN and Infinity are Python's own additions
        return json.loads(data.decode("utf-8-sig"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # wrong encodings and malformed JSON are ValueErrors
        raise InputError(f"{name} is not JSON ({error}): expected a result written by hf_pacgen.") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value
