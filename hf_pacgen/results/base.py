"""Results that are written as JSON, with the version of their form, and read again."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

__all__ = ["Record"]

R = TypeVar("R", bound="Record")


class Record:
    """Base of frozen dataclasses whose fields are values that JSON knows, and tuples of them.

    Attributes:
        kind: what it is called in messages.
        version: of the form in which it is written.
        remake: how to make one anew, where another version was found.
        derived: properties that are written beside the fields, for other readers.
    """

    kind: ClassVar[str]
    version: ClassVar[int]
    remake: ClassVar[str]
    derived: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """All fields as values that JSON knows, with the version of this form."""
        fields = dataclasses.asdict(self)  # type: ignore[call-overload]
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        return {"version": self.version, **values, **{name: getattr(self, name) for name in self.derived}}

    @classmethod
    def from_dict(cls: type[R], values: Mapping[str, Any]) -> R:
        """The record from :meth:`to_dict`.

        Raises:
            ValueError: another version, or fields missing or unknown; the message names them.
        """
        if not isinstance(values, Mapping) or "version" not in values:
            raise ValueError(f"This is no {cls.kind} of hf_pacgen: expected a JSON object with a 'version'.")
        if values["version"] != cls.version:
            raise ValueError(
                f"The {cls.kind} has version {values['version']!r}; this release reads version {cls.version}. "
                f"{cls.remake}, or install the release that wrote it."
            )
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        names, given = {f.name for f in fields}, set(values) - {"version", *cls.derived}
        if given != names:
            raise ValueError(
                f"The {cls.kind} does not have the expected fields: missing {sorted(names - given)}, "
                f"unknown {sorted(given - names)}."
            )
        tuples = {f.name for f in fields if str(f.type).startswith("tuple")}
        return cls(**{name: tuple(values[name]) if name in tuples else values[name] for name in names})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, atomically.

        Raises:
            FileNotFoundError: the folder does not exist.
        """
        target = Path(path)
        if not target.parent.is_dir():
            raise FileNotFoundError(f"Cannot write {target}: the folder {target.parent} does not exist. Make it first.")
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls: type[R], path: str | os.PathLike[str]) -> R:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file is no JSON, or no record of this kind and version.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} is not a JSON file ({error}); expected a {cls.kind} written by hf_pacgen."
            ) from None
        return cls.from_dict(values)
