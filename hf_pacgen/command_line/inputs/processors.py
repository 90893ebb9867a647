"""What a model was trained with to turn text and images into numbers: its tokenizer, its image processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from hf_pacgen.command_line.quiet import quiet
from hf_pacgen.errors import InputError, describe

__all__ = ["load_image_processor", "load_tokenizer"]

PROCESSOR_FILE = "preprocessor_config.json"


def load_tokenizer(name: str, **source: Any) -> Any:
    """The model's tokenizer."""
    with quiet():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, **source)
        except Exception as error:
            raise _no_tokenizer(name, describe(error)) from error
    # transformers makes up an empty one for a folder without its files
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        raise _no_tokenizer(name, "its vocabulary is empty")
    return tokenizer


def _no_tokenizer(name: str, why: str) -> InputError:
    return InputError(
        f"No tokenizer can be loaded from {name!r}: {why}. "
        f"Save the one the model was trained with in the same folder: tokenizer.save_pretrained({name!r})."
    )


def load_image_processor(name: str, **source: Any) -> Any:
    """The model's image processor; None where none was saved."""
    with quiet():
        try:
            return transformers.AutoImageProcessor.from_pretrained(name, **source)
        except Exception as error:
            if isinstance(error, OSError) and not (Path(name) / PROCESSOR_FILE).is_file():
                return None
            raise InputError(
                f"The image processor of {name!r} cannot be loaded: {describe(error)}. "
                f"Save it again in the same folder, or remove its {PROCESSOR_FILE}."
            ) from error
