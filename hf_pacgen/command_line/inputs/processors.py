"""What a model was trained with to turn text and images into numbers: its tokenizer, its image processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from hf_pacgen.command_line.quiet import quiet
from hf_pacgen.errors import refusing

PROCESSOR_FILE = "preprocessor_config.json"


def load_tokenizer(name: str, **source: Any) -> Any:
    """The model's tokenizer."""
    remedy = f"Save the one the model was trained with in the same folder: tokenizer.save_pretrained({name!r})."
    with quiet(), refusing(f"No tokenizer can be loaded from {name!r}", remedy):
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **source)
        # transformers makes up an empty one for a folder without its files
        if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
            raise ValueError("its vocabulary is empty")
        return tokenizer


def load_image_processor(name: str, **source: Any) -> Any:
    """The model's image processor; None where none was saved."""
    remedy = f"Save it again in the same folder, or remove its {PROCESSOR_FILE}."
    with quiet(), refusing(f"The image processor of {name!r} cannot be loaded", remedy):
        try:
            return transformers.AutoImageProcessor.from_pretrained(name, **source)
        except OSError:
            # transformers says the same of a file that is not there and of one that is broken
            if (Path(name) / PROCESSOR_FILE).is_file():
                raise
            return None
