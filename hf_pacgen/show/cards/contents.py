"""What PACGen has to say on a model card: entries of its ``model-index``, and sections of its text."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index

from hf_pacgen.maths.certified_bound import Bound
from hf_pacgen.results.certificate import (
    certificate_fields,
    comparison,
    examples_of,
    has_test_set,
    rounded_up,
    sentence,
)
from hf_pacgen.results.pacgen import PACGenResult
from hf_pacgen.show.wording import further_metrics, number, parts, percent, with_error

CERTIFICATE = "pacgen_certificate"
BOUND_NAMES = {bound.value: bound.facts.label for bound in Bound}

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=jinja2.StrictUndefined,  # a misspelled name raises, where jinja would write nothing
    trim_blocks=True,
    lstrip_blocks=True,
)


def plain(value: Any) -> str:
    """Text on one line which Markdown shows as it is: names and sentences come from files of others."""
    text = " ".join(str(value).split())
    # first the ampersand, or it would escape what the others put in
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


TEMPLATES.filters.update(plain=plain, number=number, percent=percent)


def evaluation_results(
    result: PACGenResult | None,
    certificate: Mapping[str, Any] | None = None,
    *,
    task_type: str = "other",
    dataset_type: str = "unknown",
    dataset_name: str | None = None,
    dataset_split: str = "train",
) -> list[EvalResult]:
    """The entries of a ``model-index``: the metrics of the result, with the settings as arguments, and the bound."""
    entry = functools.partial(
        EvalResult,
        task_type=task_type,
        dataset_type=dataset_type,
        dataset_name=dataset_name or (dataset_type if dataset_type != "unknown" else "training data"),
        dataset_split=dataset_split,
    )
    entries = []
    if result is not None:
        # K(η) with the η it was taken at, which "n" alone would not tell
        arguments = {"pacgen": result.config, "pacgen_kl": {**result.config, "eta": result.eta}}
        names = {facts.key: facts.name for facts in result.facts().values()}
        entries = [
            entry(metric_type=key, metric_name=names[key], metric_value=value, metric_args=arguments.get(key))
            for key, value in result.metrics().items()
        ]
    if certificate is not None:
        proof = {key: certificate[key] for key in ("status", "empirical_error", "kl", "n", "delta")}
        name = f"Certified error ({_bound_name(certificate)}, δ = {number(certificate['delta'])})"
        entries.append(
            entry(
                metric_type=CERTIFICATE,
                metric_name=name,
                metric_value=certificate["bound"],
                metric_args={**_settings(certificate), **proof},
            )
        )
    return entries


def card_section(result: PACGenResult, *, chart: str | None = None, numbers: str | None = None) -> str:
    """The section for people, in Markdown.

    Args:
        result: what it is about.
        chart: address of the picture by module; None draws it in text.
        numbers: address of the result's JSON, if it is there to link to.
    """
    # as code that makes the same settings; a backtick would end the code block
    settings = [
        f"    {key}={json.dumps(value) if isinstance(value, str) else repr(value)},".replace("`", "'")
        for key, value in result.config.items()
        if value is not None
    ]
    return TEMPLATES.get_template("pacgen_section.md.jinja").render(
        result=result,
        with_error=functools.partial(with_error, result),
        parts=parts(result),
        further=list(further_metrics(result)),
        chart=chart,
        numbers=numbers,
        bars="" if chart else _text_bars(result),
        limits=result.notes,
        settings=settings,
    )


def certificate_section(certificate: Any) -> str:
    """The section of a certificate, in Markdown."""
    fields = certificate_fields(certificate)
    return TEMPLATES.get_template("certificate_section.md.jinja").render(
        certificate=fields,
        sentence=fields.get("sentence") or sentence(fields),
        comparison=comparison(fields),
        error=rounded_up(fields["bound"]),
        examples=examples_of(fields),
        test_set=rounded_up(fields["test_set_bound"]) if has_test_set(fields) else None,
        unit=fields.get("unit") or "example",
        notes=fields.get("notes") or (),
        kind=_bound_name(fields),
    )


def new_card(model_name: str, task_type: str | None, library_name: str | None) -> str:
    """A card for a model that has none."""
    data = ModelCardData(library_name=library_name, pipeline_tag=task_type, tags=["pacgen"]).to_yaml()
    return TEMPLATES.get_template("model_card.md.jinja").render(card_data=data, model_name=plain(model_name)) + "\n"


def _settings(certificate: Mapping[str, Any]) -> Mapping[str, Any]:
    settings = certificate.get("config")
    return settings if isinstance(settings, Mapping) else {}  # another program's certificate may have none


def _bound_name(certificate: Mapping[str, Any]) -> str:
    return BOUND_NAMES.get(str(_settings(certificate).get("bound")), "PAC-Bayes")


def _text_bars(result: PACGenResult, count: int = 12, width: int = 32) -> str:
    ranked, rest = result.ranked_modules(count)
    rows = [(name, values["kl_complexity"]) for name, values in ranked]
    if rest:  # so that the bars add up to K(η)
        rows.append((f"({len(rest)} more)", sum(values["kl_complexity"] for values in rest)))
    longest = max((value for _, value in rows), default=0.0) or 1.0
    labels = [" ".join(name.split()).replace("`", "'") for name, _ in rows]
    room = max(map(len, labels), default=0)
    return "\n".join(
        f"{label:<{room}}  {'█' * round(width * value / longest):<{width}}  {number(value)}"
        for label, (_, value) in zip(labels, rows, strict=True)
    )


def merged(index: list[dict[str, Any]] | None, name: str, new: list[EvalResult]) -> list[dict[str, Any]]:
    """The model-index with new entries instead of those of the same metric, task and data; all others as they were."""
    # the card compares what it had with what it gets, so the old index stays as it is
    models: list[dict[str, Any]] = copy.deepcopy(index or [])
    (addition,) = eval_results_to_model_index(name, new)
    model = next((entry for entry in models if entry["name"] == name), None)
    if model is None:
        return [*models, addition]
    for group in addition["results"]:
        same = next((known for known in model["results"] if _subject(known) == _subject(group)), None)
        if same is None:
            model["results"].append(group)
        else:
            ours = {metric["type"] for metric in group["metrics"]}
            same["metrics"] = [m for m in same["metrics"] if m["type"] not in ours] + group["metrics"]
    return models


def _subject(group: Mapping[str, Any]) -> tuple[Any, ...]:
    # what a group of metrics is about: as ``EvalResult.unique_identifier``, with the name for data without an id
    data = group["dataset"]
    return (group["task"]["type"], data["type"], data.get("config"), data.get("split"), data.get("revision")) + (
        (data["name"],) if data["type"] == "unknown" else ()
    )
