"""What a user names on a command line, made into a model and its training data."""

from __future__ import annotations

from hf_pacgen.inputs.errors import InputError

__all__ = ["InputError"]
