"""What :func:`hf_pacgen.certify` proved, as a record that is printed, saved and read."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CERTIFICATE_VERSION", "Certificate"]

CERTIFICATE_VERSION = 1
"""Version of the form in which certificates are written."""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What is proved about a noisy model.

    The noisy (Gibbs) model draws new noise on its weights for every example.  With probability at least 1 - δ over
    the draw of the n examples (and over the draws of the noise that estimate its error on them), its expected error
    on a new example of the same distribution is at most ``bound``.  Nothing is said about the model without noise.

    Attributes:
        bound: on the noisy model's true error, at most 1.
        status: "certified", or "vacuous" where the bound is 1, which proves nothing.
        empirical_error: the noisy model's mean error on the n examples, over the draws.
        empirical_bound: its Monte-Carlo upper bound, which went into ``bound``.
        kl: KL(posterior‖N(p, τ²)) in nats, at the chosen τ.
        price: what the choice of τ from its grid cost, in nats: the bound is taken at ``kl + price``.
        n: number of independent examples (documents, for language models).
        delta: δ, half for the bound and half for the draws.
        eta: η of the Hoeffding bound; for the kl bound, which has none, the η that shaped the noise.
        prior_scale: τ; where every module has its own (``by_module``), their geometric mean over the weights.
        prior: what the prior is centered on, in words.
        draws: draws of the noise on the whole sample.
        num_parameters: number of certified weights.
        by_module: for every module that owns certified weights its ``kl`` in nats, ``kl_share``, ``num_parameters``
            and ``prior_scale``.
        refinement: None without; else ``steps``, and what a few draws estimate of the bounds before and after
            (``shaped_bound``, ``refined_bound``) and of the ``gain``.
        unit: "example" or "document".
        notes: what was taken for granted, in sentences.
        seconds: wall-clock time.
        config: the settings.
    """

    bound: float
    status: str
    empirical_error: float
    empirical_bound: float
    kl: float
    price: float
    n: int
    delta: float
    eta: float
    prior_scale: float
    prior: str
    draws: float
    num_parameters: int
    by_module: dict[str, dict[str, float]]
    refinement: dict[str, float] | None
    unit: str
    notes: tuple[str, ...]
    seconds: float
    config: dict[str, Any]

    @property
    def sentence(self) -> str:
        """What is certified, in one sentence; the error is rounded up and the probability down."""
        confidence = f"{math.floor(1e4 * (1 - self.delta) + 1e-6) / 100:g} %"
        given = f"With probability ≥ {confidence} over the draw of the {self.n:,} training {self.unit}s, the noisy"
        if self.status == "vacuous":
            return f"The certificate is vacuous: from {self.n:,} training {self.unit}s at this KL, nothing is proved."
        error = f"{math.ceil(1e3 * self.bound - 1e-9) / 10:g} %"
        if self.unit == "document":
            return f"{given} model errs on at most {error} of the labels of a new one, on average over documents."
        return f"{given} classifier errs on at most {error} of new ones."

    def to_dict(self) -> dict[str, Any]:
        """The certificate as JSON-able values, with the version of this form and its sentence."""
        values = dataclasses.asdict(self)
        return {"version": CERTIFICATE_VERSION, **values, "notes": list(self.notes), "sentence": self.sentence}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Certificate:
        """The certificate from :meth:`to_dict`.

        Raises:
            ValueError: another version, or fields missing or unknown; the message names them.
        """
        if not isinstance(values, Mapping) or "version" not in values:
            raise ValueError("This is no certificate of hf_pacgen: expected a JSON object with a 'version'.")
        if values["version"] != CERTIFICATE_VERSION:
            raise ValueError(
                f"The certificate has version {values['version']!r}; this release reads version {CERTIFICATE_VERSION}. "
                "Certify the model again, or install the release that wrote it."
            )
        names = {field.name for field in dataclasses.fields(cls)}
        given = set(values) - {"version", "sentence"}
        if given != names:
            raise ValueError(
                f"The certificate does not have the expected fields: missing {sorted(names - given)}, "
                f"unknown {sorted(given - names)}."
            )
        return cls(**{name: values[name] for name in names - {"notes"}}, notes=tuple(values["notes"]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the certificate as JSON, atomically.

        Raises:
            FileNotFoundError: the folder does not exist.
        """
        target = Path(path)
        if not target.parent.is_dir():
            raise FileNotFoundError(f"Cannot write {target}: the folder {target.parent} does not exist. Make it first.")
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Certificate:
        """Read a certificate that :meth:`save` wrote.

        Raises:
            ValueError: the file is no JSON, or no certificate of this version.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} is not a JSON file ({error}); expected a certificate written by hf_pacgen."
            ) from None
        return cls.from_dict(values)
