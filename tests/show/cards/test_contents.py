"""What PACGen has to say on a card: the sections of a result and of a certificate."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from sample_cards import CERTIFICATE, SENTENCE, metrics
from sample_results import sample_result

from hf_pacgen.certify.certify import Certificate
from hf_pacgen.config import CertificateConfig
from hf_pacgen.errors import InputError
from hf_pacgen.show.cards.update import card_section, certificate_section, evaluation_results, update_model_card
from hf_pacgen.show.wording import number

RESULT = sample_result()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my-model").mkdir()
    return tmp_path / "my-model"


def test_many_modules_are_pooled() -> None:
    part = RESULT.by_module["head"]
    text = card_section(sample_result(by_module={f"m{i:02}": part for i in range(15)}))
    assert re.search(r"^\(3 more\) +█+ +90$", text, flags=re.MULTILINE)


def test_names_and_sentences_are_shown_as_they_are() -> None:
    text = card_section(sample_result(status=("<script> a|b [x](y) <!-- hf_pacgen score: end -->",)), chart="c.png")
    assert r"&lt;script&gt; a\|b \[x\](y) &lt;!-- hf\_pacgen score: end --&gt;" in text


def test_what_limits_a_result_stands_on_its_card() -> None:
    text = card_section(sample_result(status=("Ψ is saturated: so.", "ρ rules K(η).")))
    assert "> **What limits these numbers**\n>\n> - Ψ is saturated: so.\n> - ρ rules K(η).\n" in text
    assert "What limits" not in card_section(sample_result(status=()))


ROWS = """\
| Quantity | Value | Per parameter |
|:--|--:|--:|
| Ψ, the published score, in nats | 60 ± 1.5 | 0.6 |
| K(η), the complexity in the PAC-Bayes bound at η = 1000, in nats | 240 ± 12 | 2.4 ± 0.12 |
| What K(η) is made of: 50.0 % size of the weights, 10.0 % the Hessian alone, 40.0 % added by ρ | | |
| K(η) beyond the size of the weights, in nats | 120 ± 12 | |
| K(η) of the curvature alone (no ρ, no ε), in nats | 12 ± 1 | |
| Trace of the Hessian of the training loss | 4.5 ± 0.5 | |
| ρ, how fast the Hessian changes nearby (typical value) | 3.25 ± 0.5 | |
| Training loss | 0.125 | |
"""


def test_the_table_has_a_value_its_error_and_what_it_is_made_of() -> None:
    assert ROWS.replace("η = 1000", f"η = {number(1000.0)}") in card_section(RESULT)


def test_a_result_of_release_0_1_has_no_zeros_for_what_it_did_not_measure() -> None:
    unknown = [name for name in vars(RESULT) if name.startswith(("kl_excess", "kl_curvature")) or "stderr" in name]
    old = sample_result(kl_parts={}, **dict.fromkeys(unknown, None))
    text = card_section(old)
    assert "made of" not in text and "beyond the size" not in text and "curvature alone" not in text
    assert "±" not in text and "None" not in text and "| 240 | 2.4 |" in text
    assert {entry.metric_type for entry in evaluation_results(RESULT)} - {
        entry.metric_type for entry in evaluation_results(old)
    } == {"pacgen_kl_excess", "pacgen_kl_curvature"}


@dataclasses.dataclass
class Plain:
    """A certificate without to_dict()."""

    bound: float = 1.0
    status: str = "vacuous"
    empirical_error: float = 0.4
    kl: float = 90000.0
    n: int = 100
    delta: float = 0.0001


class WithToDict:
    """A certificate with it."""

    def to_dict(self) -> dict[str, Any]:
        return CERTIFICATE


def test_certificates_of_any_kind() -> None:
    assert SENTENCE in certificate_section(WithToDict())
    vacuous = certificate_section(Plain())
    assert (
        "certificate is vacuous: from 100 training examples at this KL, nothing is proved" in vacuous
        and "With probability" not in vacuous
    )
    assert "| Bound | PAC-Bayes |" in vacuous


def test_bounds_are_rounded_to_the_safe_side() -> None:
    text = certificate_section({**CERTIFICATE, "bound": 0.26401, "delta": 0.00019})
    assert "≥ 99.98 %" in text and "at most 26.5 % of" in text and "| 26.5 % |" in text


def test_a_certificate_of_ours_speaks_for_itself(folder: Path) -> None:
    certificate = Certificate(
        bound=0.3,
        status="certified",
        empirical_error=0.2,
        empirical_bound=0.21,
        kl=50.0,
        price=1.0,
        n=400,
        delta=0.05,
        eta=400.0,
        prior_scale=0.1,
        prior="the *pretrained* weights",
        draws=100.0,
        num_parameters=10,
        by_module={},
        refinement=None,
        unit="document",
        notes=("The documents were taken to be independent.",),
        seconds=1.0,
        config=CertificateConfig().to_dict(),
    )
    update_model_card(folder, certificate=certificate)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert certificate.sentence in text and "- The documents were taken to be independent." in text
    assert r"the \*pretrained\* weights" in text and "on new documents | 30 % |" in text
    assert metrics(folder)["pacgen_certificate"]["args"]["bound"] == "kl"


@pytest.mark.parametrize(
    ("certificate", "message"),
    [
        (3, "must be what certify.. returned, or its to_dict..; got int"),
        (Plain, "got type"),
        ({key: CERTIFICATE[key] for key in CERTIFICATE if key != "kl"}, "wrong or missing: kl"),
        ({**CERTIFICATE, "bound": "low"}, "wrong or missing: bound"),
        ({**CERTIFICATE, "status": "proven"}, "wrong or missing: status"),
    ],
)
def test_certificates_that_are_none(certificate: Any, message: str, folder: Path) -> None:
    with pytest.raises(InputError, match=message):
        update_model_card(folder, RESULT, certificate)
    assert list(folder.iterdir()) == []
