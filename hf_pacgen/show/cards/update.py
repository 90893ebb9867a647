"""PACGen on model cards: in the ``model-index``, where the hub reads it, and in a section, where people do."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from hf_pacgen.errors import InputError
from hf_pacgen.files import write_atomically
from hf_pacgen.results.certificate import certificate_fields
from hf_pacgen.results.pacgen import PACGenResult
from hf_pacgen.show.cards.contents import card_section, certificate_section, evaluation_results, merged, new_card
from hf_pacgen.show.cards.document import Card, to_model_card

__all__ = ["CARD", "CHART", "NUMBERS", "card_section", "certificate_section", "evaluation_results", "update_model_card"]

OF_ADAPTERS = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "CAUSAL_LM": "text-generation",
    "SEQ_2_SEQ_LM": "text2text-generation",
}
"""The hub's names of tasks by the task types of PEFT."""
CARD, CHART, NUMBERS = "README.md", "pacgen_by_module.png", "pacgen.json"  # files in a model's folder


def update_model_card(
    card: str | os.PathLike[str] | ModelCard,
    result: PACGenResult | None = None,
    certificate: Any = None,
    *,
    model_name: str | None = None,
    task_type: str | None = None,
    dataset_type: str | None = None,
    dataset_name: str | None = None,
    dataset_split: str = "train",
) -> ModelCard:
    """Write a result, a certificate or both into a model card, and keep what else is there.

    Doing it again changes nothing.  In a folder, the numbers (``pacgen.json``) and, where matplotlib is installed, the
    chart by module go beside the card; without it the chart is drawn in text.  A result leaves the certificate that a
    card has as it is, and the other way round.

    Args:
        card: the folder of a model, whose ``README.md`` is changed or made; or a card, which is changed in place.
        result: of :func:`hf_pacgen.pacgen`.
        certificate: of :func:`hf_pacgen.certify`, or its ``to_dict()``.
        model_name: by default the one in the card's ``model-index``, or the folder's.
        task_type: such as ``text-classification``; by default read from the card, or from the model's ``config.json``.
        dataset_type, dataset_name, dataset_split: the training data, as the hub's id and as a name for people.  By
            default the card's first entry under ``datasets``.

    Raises:
        InputError: nothing to write, no such folder, a card with a broken front matter or broken markers, or a
            certificate that is none.  Nothing has been changed then.

    Returns:
        The card as ``huggingface_hub`` reads it.
    """
    if result is None and certificate is None:
        raise InputError("There is nothing to write into the card: give a result, a certificate, or both.")
    fields = None if certificate is None else certificate_fields(certificate)
    file = None if isinstance(card, ModelCard) else _card_file(card)
    folder = None if file is None else file.parent
    document = Card(str(card)) if file is None else _open(file, model_name)
    metadata = document.metadata
    about = {"dataset_type": dataset_type or _dataset_type(metadata), "dataset_split": dataset_split}
    task = task_type or _task_type(metadata, folder) or "other"
    entries = evaluation_results(result, fields, task_type=task, dataset_name=dataset_name, **about)
    index = metadata.get("model-index")
    name = model_name or (str(index[0]["name"]) if index else _folder_name(folder))
    # all that can be refused is made before the first file is written
    document.set("model-index", merged(index, name, entries))
    chart = CHART if folder and result and result.by_module and importlib.util.find_spec("matplotlib") else None
    if result is not None:
        document.put_section("score", card_section(result, chart=chart, numbers=NUMBERS if folder else None))
    if fields is not None:
        document.put_section("certificate", certificate_section(fields))
    updated = to_model_card(str(document))
    if isinstance(card, ModelCard):
        card.content = str(document)
        return card
    if file is not None:  # the card comes last: until then nothing refers to the files beside it
        if result is not None:
            result.save(file.with_name(NUMBERS))
        if result is not None and chart is not None:
            from hf_pacgen.show.plots import plot_by_module, save_figure

            save_figure(plot_by_module(result), file.with_name(chart))
        write_atomically(file, lambda target: target.write(str(document).encode()))
    return updated


def remove_files(folder: str | os.PathLike[str]) -> None:
    """Remove the numbers and the chart that a card in a folder has from here; those of no card of ours stay."""
    file = Path(folder) / CARD
    if file.is_file() and f"({NUMBERS})" in file.read_text(encoding="utf-8", errors="replace"):
        for name in (NUMBERS, CHART):
            file.with_name(name).unlink(missing_ok=True)


def _card_file(card: str | os.PathLike[str]) -> Path:
    path = Path(card)
    if path.is_dir():
        return path / CARD
    if path.is_file():  # the card itself, under whatever name
        return path
    raise InputError(f"The folder {os.fspath(card)!r} does not exist: expected the folder of a saved model.")


def _open(file: Path, model_name: str | None) -> Card:
    name = f"The card {file}"
    if not file.exists():
        folder = file.parent
        library = "transformers" if (folder / "config.json").is_file() else None
        return Card(new_card(model_name or _folder_name(folder), _task_type({}, folder), library), name=name)
    try:
        with file.open(encoding="utf-8", newline="") as stream:  # line breaks as they are
            return Card(stream.read(), name=name)
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text ({error}). Nothing was changed; convert it first.") from None


def _folder_name(folder: Path | None) -> str:
    return (folder.resolve().name if folder else "") or "model"


def _task_type(metadata: Mapping[str, Any], folder: Path | None) -> str | None:
    # the task that the card names, else the one whose head the saved model has
    for entry in metadata.get("model-index") or []:
        for group in entry["results"]:
            return str(group["task"]["type"])
    if isinstance(metadata.get("pipeline_tag"), str):
        return str(metadata["pipeline_tag"])
    if folder is None:
        return None
    adapter = _read(folder / "adapter_config.json")
    if str(adapter.get("task_type")) in OF_ADAPTERS:
        return OF_ADAPTERS[str(adapter["task_type"])]
    kind = (adapter.get("auto_mapping") or {}).get("base_model_class")
    base = Path(str(adapter.get("base_model_name_or_path") or folder))
    architectures = [kind] if kind else _read(folder / "config.json", base / "config.json").get("architectures")
    return _task_of(architectures) if isinstance(architectures, list) else None


def _read(*files: Path) -> dict[str, Any]:
    """The first of some configurations that is there; nothing where it is none, as a card does not depend on it."""
    file = next((file for file in files if file.is_file()), None)
    try:
        found = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _task_of(architectures: list[Any]) -> str | None:
    from transformers.modelcard import TASK_MAPPING  # only now: it brings all of transformers
    from transformers.models.auto import modeling_auto as auto

    further: list[tuple[str, Mapping[str, Any]]] = [
        ("image-segmentation", auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES),
        ("image-segmentation", auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES),
        ("multiple-choice", auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES),
    ]
    mappings: Mapping[str, Any] = TASK_MAPPING
    for task, names in (*mappings.items(), *further):
        for name in names.values():  # of a class, or of several
            if set(map(str, architectures)) & ({name} if isinstance(name, str) else set(name)):
                return str(task)
    return None


def _dataset_type(metadata: Mapping[str, Any]) -> str:
    datasets = metadata.get("datasets")
    first = datasets[0] if isinstance(datasets, list) and datasets else datasets
    return first if isinstance(first, str) and first else "unknown"
