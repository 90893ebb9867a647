"""What every measurement refuses at its entrance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers import Trainer, TrainingArguments

from hf_pacgen import (
    certify,
    expected_sharpness,
    hessian_diagonal,
    hessian_lipschitz,
    hessian_spectrum,
    hessian_vector_product,
    pacgen,
    worst_case_sharpness,
)

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
