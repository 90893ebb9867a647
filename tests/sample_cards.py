"""Cards and certificates made by hand, and how to look at what became of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load

CERTIFICATE: dict[str, Any] = {
    "bound": 0.264,
    "status": "certified",
    "empirical_error": 0.16,
    "kl": 272.0,
    "n": 12000,
    "delta": 0.05,
    "prior": "zero",
    "config": {"bound": "kl", "seed": 0},
}


SENTENCE = (
    "With probability ≥ 95 % over the draw of the 12,000 training examples, the noisy classifier errs on at most "
    "26.4 % of new ones."
)


# What a careful author has: comments, quotes and flow style, a second model, an entry with keys of its own.
EXISTING = """\
---
# the license was chosen by the lab
license: "apache-2.0"   # as the base model
language: [en, de]
model-index:
- name: my-model
  results:
  - task: {type: text-classification, name: Sentiment}
    dataset: {type: glue, name: GLUE SST-2, split: validation, lab_note: kept}
    metrics:
    - {type: accuracy, value: 0.91, lab_note: kept}
- name: its-sibling
  results: []
# the tags come last
tags:
- tweets
---

# My model

Read me   \n\n<details>&nbsp;</details>

## Generalization

My own words.
"""


def write(folder: Path, text: str) -> Path:
    card = folder / "README.md"
    card.write_bytes(text.encode())
    return card


def metrics(folder: Path, model: int = 0, group: int = 0) -> dict[str, Any]:
    index = metadata_load(folder / "README.md")["model-index"]  # type: ignore[index]
    return {metric["type"]: metric for metric in index[model]["results"][group]["metrics"]}
