"""What models are for that have none of our tasks: every table named is one of transformers."""

from __future__ import annotations

from transformers.models.auto import modeling_auto as auto

from hf_pacgen.command_line.inputs.other_tasks import OTHERS, POINTS, other_task


def test_every_table_is_there() -> None:
    tables = [name for names in OTHERS.values() for name in names]
    assert all(hasattr(auto, f"MODEL_FOR_{name}_MAPPING_NAMES") for name in tables)


def test_losses_at_random_points_are_of_instance_segmentation() -> None:
    assert {other_task([name]) for name in POINTS} == {"instance or panoptic segmentation"}
    assert other_task(["BertForSequenceClassification"]) is None
