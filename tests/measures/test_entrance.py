"""What every measurement refuses at its entrance."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
from tqdm.auto import tqdm
from transformers import Trainer, TrainingArguments

from hf_pacgen import (
    ScoreConfig,
    certify,
    expected_sharpness,
    hessian_diagonal,
    hessian_lipschitz,
    hessian_spectrum,
    hessian_vector_product,
    pacgen,
    worst_case_sharpness,
)
from hf_pacgen.measures.landscape import mean_loss

DATA = [tiny.examples("bert", 2)]
CONFIGURED: dict[str, Callable[..., Any]] = {
    "ScoreConfig": pacgen,
    "ScoreConfig of the diagonal": hessian_diagonal,
    "ScoreConfig of rho": hessian_lipschitz,
    "SpectrumConfig": hessian_spectrum,
    "SharpnessConfig": lambda model, data, **more: expected_sharpness(model, data, noise_scale=0.1, **more),
    "SharpnessConfig of the worst case": worst_case_sharpness,
    "CertificateConfig": lambda model, data, **more: certify(model, data, prior="zero", **more),
}
MEASURES = {**CONFIGURED, "product": lambda model, data: hessian_vector_product(model, data, {})}


class Pipeline:
    model = tiny.make("bert")


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_what_is_no_model_is_refused(measure: Callable[..., Any], tmp_path: Path) -> None:
    trainer = Trainer(tiny.make("bert"), TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]))
    for model, message in (
        ("folder", r"got str. Load it with from_pretrained\(\), or .* command 'hf-pacgen score'\."),
        (tmp_path, "got PosixPath. Load it with"),
        (trainer, r"model must be a loaded model, a torch.nn.Module; got Trainer. Pass trainer\.model\."),
        (Pipeline(), "got Pipeline. Pass the model inside, its attribute model"),
        (None, "got NoneType. Pass a PreTrainedModel"),
    ):
        with pytest.raises(TypeError, match=message):
            measure(model, DATA)


@pytest.mark.parametrize("name", CONFIGURED)
def test_settings_of_another_kind_are_refused(name: str) -> None:
    kind, measure = name.split()[0], CONFIGURED[name]
    with pytest.raises(TypeError, match=rf"config must be a {kind}; got dict. Pass config={kind}\(\*\*config\)\."):
        measure(tiny.make("bert"), DATA, config={"seed": 1})
    with pytest.raises(TypeError, match=rf"config must be a {kind}; got NoneType. Pass config={kind}\(\.\.\.\)"):
        measure(tiny.make("bert"), DATA, config=None)


@pytest.mark.parametrize("estimator", ["blend", "hutchinson", "exact"])
def test_a_label_or_a_token_that_the_model_does_not_know_names_its_batch(estimator: str) -> None:
    for name in ("labels", "input_ids"):
        batches = tiny.split(tiny.examples("bert", 6), 2, 2, 2)
        batches[1][name] = batches[1][name] + 1000
        with pytest.raises(ValueError, match=r"Batch 1 has a label or an input that the model has no place for \(.*\)"):
            pacgen(tiny.make("bert"), batches, config=ScoreConfig(estimator=estimator), progress=False)


def test_the_bar_says_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_pacgen.measures.session.tqdm", partial(tqdm, mininterval=0, miniters=1))
    model, batches = tiny.make("bert"), tiny.split(tiny.examples("bert", 6), 2, 2, 2)
    pacgen(model, batches, config=ScoreConfig(passes=2))
    shown = capsys.readouterr().err
    assert "ρ: 3 batches [" in shown and "Hessian diagonal:  50%|" in shown and "| 6/6 [" in shown
    mean_loss(model, batches, max_examples=5)  # how many batches that makes is known when they have been read
    assert "loss: 3 batches [" in capsys.readouterr().err
