"""The Space of the metric: look at a result, or score a small model of the hub.

    python app.py            # on localhost; stop with Ctrl+C

It reads what is uploaded and what is on the hub, and no other file: uploads come as bytes, names that are a path here
are refused, and no token of this machine is used.
"""

from __future__ import annotations

import html
import logging
import os
import re
from pathlib import Path

# Before gradio and huggingface_hub are imported, which read them then: no telemetry, no token of this machine.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")

import gradio as gr
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from hf_pacgen.config import ScoreConfig
from hf_pacgen.errors import InputError, describe
from hf_pacgen.results.base import MAX_BYTES
from hf_pacgen.results.pacgen import PACGenResult
from hf_pacgen.show.cards.update import NUMBERS
from hf_pacgen.show.plots import plot_by_module
from hf_pacgen.show.wording import further_metrics, number, parts, with_error

logger = logging.getLogger("hf_pacgen.app")

MAX_PARAMETERS = 150_000_000  # of a model that is scored here: a free Space has two slow cores
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
INTRODUCTION = """\
# PACGen
How well should the solution that a model's training found generalize? PACGen measures it from the model and its
training data alone. **Lower is better.**"""
NOTHING = (
    "<div class='pacgen-note'>Upload the <code>result.json</code> that <code>hf-pacgen score --output</code> wrote, "
    "or name a model of the hub.</div>"
)
NO_CHART = gr.Plot(None, visible=False)
CSS = """
.pacgen-tiles {display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: .8rem; margin: .2rem 0}
.pacgen-tile {border: 1px solid var(--border-color-primary); border-radius: .6rem; padding: .7rem .9rem}
.pacgen-tile b {display: block; font-size: 1.6rem; line-height: 1.3}
.pacgen-tile small {display: block; opacity: .75}
.pacgen-note, .pacgen-warning, .pacgen-error {border-radius: .6rem; padding: .7rem .9rem; margin-top: .8rem}
.pacgen-note {border: 1px dashed var(--border-color-primary)}
.pacgen-warning {border-left: .35rem solid #D55E00; background: #D55E0018}
.pacgen-error {border-left: .35rem solid #B00020; background: #B0002018}
.pacgen-warning ul {margin: .3rem 0 0 1.1rem; list-style: disc}
"""


def show_upload(data):
    """What an uploaded file says: numbers, chart."""
    if data is None:
        return NOTHING, NO_CHART
    return _shown(lambda: PACGenResult.parse(data, "The uploaded file"))


def show_model(model, dataset, dataset_config, examples):
    """The result that a hub model carries, or else one that is measured now."""
    return _shown(lambda: hub_result(model or "", dataset or "", dataset_config or None, int(examples)))


def _shown(get_result):
    try:
        result = get_result()
        chart = gr.Plot(plot_by_module(result).figure, visible=True) if result.by_module else NO_CHART
        return summary(result), chart
    except InputError as error:
        text = str(error)
    except Exception as error:  # the page must answer, whatever a model, a data set or the network does
        logger.exception("Could not show the result")
        text = f"That did not work: {describe(error)}."
    return f"<div class='pacgen-error' role='alert'>{html.escape(text)}</div>", NO_CHART


def hub_result(model, dataset, dataset_config, examples):
    """The result in a model's repository, or a new one on a part of its training data.

    Raises:
        InputError: a name that is none, a model that cannot be found or is too large, or unsuitable data.
    """
    _check_id(model, "model")
    info = _look_up(model)
    # the size first: a file that is too large is not even fetched
    if any(file.rfilename == NUMBERS and (file.size or 0) <= MAX_BYTES for file in info.siblings or []):
        return PACGenResult.load(hf_hub_download(model, NUMBERS, token=False))
    command = f"hf-pacgen score {model} --dataset {dataset or 'TRAINING_DATA'} --output result.json"
    if not dataset:
        raise InputError(
            f"{model} has no {NUMBERS}. Name the data it was trained on to score it here, or run '{command}' and "
            "upload the result."
        )
    _check_id(dataset, "data set", owner=True)
    # what the hub says of the weights, before any of them is loaded
    size = getattr(info.safetensors, "total", None)
    if size is None or size > MAX_PARAMETERS:
        what = "of unknown size" if size is None else f"of {size:,} parameters"
        raise InputError(
            f"{model} is {what}; at most {MAX_PARAMETERS:,} are scored here. Run '{command}' on a machine of your "
            "own and upload the result."
        )
    return measure(model, dataset, dataset_config, examples)


def measure(model, dataset, dataset_config, examples):
    """PACGen of a model on a random part of its training data, as ``hf-pacgen score`` does it."""
    import torch  # only now: a result is shown without it

    from hf_pacgen.command_line.inputs.data import DataArguments
    from hf_pacgen.command_line.inputs.load import load_subject
    from hf_pacgen.command_line.inputs.models import ModelArguments
    from hf_pacgen.measures.pacgen import pacgen

    arguments = DataArguments(dataset=[dataset], dataset_config=dataset_config)
    subject = load_subject(model, ModelArguments(device="cpu"), arguments, device=torch.device("cpu"))
    return pacgen(subject.model, subject.examples, config=ScoreConfig(max_examples=examples), progress=False)


def _check_id(name, what, owner=False):
    # a name that is also a path here would make transformers and datasets read this machine's files
    if not HUB_ID.fullmatch(name) or ".." in name or (owner and "/" not in name) or Path(name).exists():
        form = "owner/name" if owner else "owner/name or name"
        raise InputError(f"{name!r} is not the id of a {what} on the Hugging Face hub: expected {form}.")


def _look_up(model):
    try:
        return HfApi(token=False).model_info(model, files_metadata=True, timeout=20)
    except Exception as error:  # not found, not public, no connection: each library below has its own errors
        raise InputError(
            f"The model {model!r} could not be looked up on the Hugging Face hub: {describe(error)}. "
            "Check the name and the connection, or upload a result.json instead."
        ) from error


def summary(result):
    """The numbers as tiles, and what limits them."""
    facts, value, made_of = result.facts(), lambda name: with_error(result, name), parts(result)
    # release 0.1 did not know these
    further = [name for name in ("kl_excess", "kl_curvature") if getattr(result, name) is not None]
    tiles = (
        ("Ψ, the published score", value("score"), f"{value('score_per_parameter')} per parameter"),
        (
            f"K(η) at η = {number(result.eta)}",
            value("kl_complexity"),
            f"{value('kl_complexity_per_parameter')} per parameter" + f"; {made_of}" * bool(made_of),
        ),
        *((facts[name].label, value(name), facts[name].says) for name in further),
        ("Trace of the Hessian", value("hessian_trace"), facts["hessian_trace"].says),
        ("ρ", value("hessian_lipschitz"), facts["hessian_lipschitz"].says),
        *((fact.label, text, fact.meaning) for fact, text in further_metrics(result)),
        ("Parameters", f"{result.num_parameters:,}", f"scored on {result.num_examples:,} training examples"),
    )
    boxes = "".join(
        f"<div class='pacgen-tile'><small>{html.escape(label)}</small>"
        f"<b>{html.escape(value)}</b><small>{html.escape(note)}</small></div>"
        for label, value, note in tiles
    )
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in result.notes)
    warning = f"<div class='pacgen-warning' role='note'>What limits these numbers<ul>{items}</ul></div>"
    return f"<div class='pacgen-tiles'>{boxes}</div>" + (warning if items else "")


def metric_card():
    """The README beside this file, without its front matter."""
    text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    match = REGEX_YAML_BLOCK.search(text)
    return text[match.end() :] if match else text


def build():
    """The page."""
    with gr.Blocks(title="PACGen", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                with gr.Tab("Upload a result"):
                    # as bytes: a path would let a caller of the API name any file of this machine
                    upload = gr.File(
                        label="result.json (at most 20 MB)", file_types=[".json"], type="binary", height=140
                    )
                with gr.Tab("Model on the hub"):
                    model = gr.Textbox(label="Model", placeholder="owner/name", info=f"Shows its {NUMBERS}, if any.")
                    dataset = gr.Textbox(
                        label="Training data", placeholder="owner/name", info="To score a small model now."
                    )
                    dataset_config = gr.Textbox(label="Its configuration", placeholder="default")
                    examples = gr.Slider(8, 256, value=64, step=8, label="Examples to score")
                    show = gr.Button("Show", variant="primary")
            with gr.Column(scale=5):
                numbers = gr.HTML(NOTHING)
                chart = gr.Plot(show_label=False, format="png", elem_id="by-module", visible=False)
        with gr.Accordion("About the metric", open=True):
            gr.Markdown(metric_card())
        upload.change(show_upload, upload, [numbers, chart], api_name="read_result")
        show.click(show_model, [model, dataset, dataset_config, examples], [numbers, chart], api_name="read_model")
    return page


if __name__ == "__main__":
    # The fonts are the system's: gradio's own come over the network.
    theme = gr.themes.Default(
        font=["ui-sans-serif", "system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    build().launch(max_file_size=MAX_BYTES, theme=theme, css=CSS, footer_links=[], share=False)
