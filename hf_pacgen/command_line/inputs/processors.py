"""What a model was trained with to turn text, images and sounds into numbers: its tokenizer, its processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from hf_pacgen.command_line.quiet import quiet
from hf_pacgen.errors import InputError, refusing

PROCESSOR_FILE = "preprocessor_config.json"
SPACED = ("bloom", "gpt2", "roberta", "deberta", "longformer", "led", "bart", "codegen")
"""Types of models whose tokenizers take words alone only where each is written with the space before it."""


def load_tokenizer(name: str, config: Any = None, **source: Any) -> Any:
    """The model's tokenizer."""
    remedy = f"Save the one the model was trained with in the same folder: tokenizer.save_pretrained({name!r})."
    with quiet(), refusing(f"No tokenizer can be loaded from {name!r}", remedy):
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **source)
        # transformers makes up an empty one for a folder without its files
        if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
            raise ValueError("its vocabulary is empty")
        return tokenizer


def load_word_tokenizer(name: str, config: Any = None, **source: Any) -> Any:
    """The model's tokenizer for words that are given one by one."""
    spaced = {"add_prefix_space": True} if getattr(config, "model_type", None) in SPACED else {}
    return load_tokenizer(name, config, **source, **spaced)


def load_image_processor(name: str, config: Any = None, **source: Any) -> Any:
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


def load_feature_extractor(name: str, config: Any = None, **source: Any) -> Any:
    """What makes the inputs of a model of sounds."""
    remedy = f"Save the one the model was trained with in the same folder: feature_extractor.save_pretrained({name!r})."
    with quiet(), refusing(f"No feature extractor can be loaded from {name!r}", remedy):
        found = transformers.AutoFeatureExtractor.from_pretrained(name, **source)
    if not hasattr(found, "sampling_rate"):
        raise InputError(
            f"The feature extractor of {name!r} is a {type(found).__name__}, which is not of sounds. {remedy}"
        )
    return found


def load_speech_processor(name: str, config: Any = None, **source: Any) -> tuple[Any, Any]:
    """What makes the inputs of a model of sounds, and the tokenizer of what is said."""
    return load_feature_extractor(name, config, **source), load_tokenizer(name, config, **source)
