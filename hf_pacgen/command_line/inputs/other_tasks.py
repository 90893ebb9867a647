"""Models of transformers that are trained for none of our tasks: what they are for, and how to score them."""

from __future__ import annotations

from collections.abc import Sequence

from transformers.models.auto import modeling_auto as auto

OTHERS = {
    "instance or panoptic segmentation": ("INSTANCE_SEGMENTATION", "UNIVERSAL_SEGMENTATION", "IMAGE_SEGMENTATION"),
    "speech to text by a decoder": ("SPEECH_SEQ_2_SEQ",),
    "images with text": ("IMAGE_TEXT_TO_TEXT", "VISUAL_QUESTION_ANSWERING", "DOCUMENT_QUESTION_ANSWERING"),
    "images and texts that belong together": ("ZERO_SHOT_IMAGE_CLASSIFICATION", "ZERO_SHOT_OBJECT_DETECTION"),
    "next-sentence prediction": ("NEXT_SENTENCE_PREDICTION",),
    "questions on tables": ("TABLE_QUESTION_ANSWERING",),
    "videos": ("VIDEO_CLASSIFICATION",),
    "depth": ("DEPTH_ESTIMATION",),
    "hidden parts of images": ("MASKED_IMAGE_MODELING",),
    "frames or speakers of sounds": ("AUDIO_FRAME_CLASSIFICATION", "AUDIO_XVECTOR"),
    "speech from text": ("TEXT_TO_SPECTROGRAM", "TEXT_TO_WAVEFORM"),
    "time series": ("TIME_SERIES_CLASSIFICATION", "TIME_SERIES_PREDICTION", "TIME_SERIES_REGRESSION"),
}
"""What models are for, by the tables of their classes in ``transformers``, without MODEL_FOR and MAPPING_NAMES."""
POINTS = "Mask2FormerForUniversalSegmentation", "OneFormerForUniversalSegmentation"
"""Classes whose loss is taken at points drawn at random, so that two passes differ."""


def other_task(architectures: Sequence[str]) -> str | None:
    """What a model is for that has none of our tasks; None where that cannot be told.

    >>> other_task(["MaskFormerForInstanceSegmentation"])
    'instance or panoptic segmentation'
    """
    for what, tables in OTHERS.items():
        for table in tables:
            # not every release of transformers has all of them
            entries = getattr(auto, f"MODEL_FOR_{table}_MAPPING_NAMES", {}).values()
            names = {name for entry in entries for name in ([entry] if isinstance(entry, str) else entry)}
            if names.intersection(architectures):
                return what
    return None


def from_python(architectures: Sequence[str]) -> str:
    """How to score such a model."""
    call = "Score it from Python as it is trained: hf_pacgen.pacgen(model, train_dataset, collate_fn=data_collator)"
    if set(architectures) & set(POINTS):
        return f"{call}, with a loss_fn that seeds torch first, since its loss is taken at points drawn at random."
    return f"{call}."
