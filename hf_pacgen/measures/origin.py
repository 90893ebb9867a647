"""Where a result comes from: which weights, which data, which versions."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, TypeVar

from hf_pacgen.model.dequantized import quantized_layers
from hf_pacgen.model.fingerprint import adapter_fingerprint, weights_fingerprint
from hf_pacgen.model.state import unwrap

R = TypeVar("R")

LIBRARIES = ("hf_pacgen", "torch", "transformers", "peft", "bitsandbytes")
"""Those whose version a result depends on, where they are loaded."""


def origin_of(model: Any, data: Any) -> dict[str, Any]:
    """The origin of a measure of a model; all processes that share its weights call this together.

    ``model`` has its name, revision, data type, and as ``weights`` the :func:`weights_fingerprint` (None where weights
    cannot be read), of an adapter on a quantized base also the :func:`adapter_fingerprint` as ``adapter``; ``data``, of
    a ``datasets.Dataset``, its name, split, rows and fingerprint.
    """
    inner = unwrap(model)
    config = getattr(inner, "config", None)
    first = next((p for p in inner.parameters() if p.is_floating_point()), None)
    info = getattr(data, "info", None)
    known = {
        "name": getattr(info, "dataset_name", None),
        "config": getattr(info, "config_name", None),
        "split": None if getattr(data, "split", None) is None else str(data.split),
        "fingerprint": getattr(data, "_fingerprint", None),
        "rows": len(data) if info is not None and hasattr(data, "__len__") else None,
    }
    return {
        "model": {
            "name": getattr(config, "_name_or_path", None) or type(inner).__name__,
            "revision": getattr(config, "_commit_hash", None),
            "dtype": None if first is None else str(first.dtype).removeprefix("torch."),
            "weights": weights_fingerprint(inner),
            # a quantized base has no checksum that is the same everywhere, and its adapter has
            **({"adapter": adapter_fingerprint(inner)} if quantized_layers(inner) else {}),
        },
        "data": {key: value for key, value in known.items() if value is not None},
        "versions": {
            name: str(version)
            for name in LIBRARIES
            if (version := getattr(sys.modules.get(name), "__version__", None)) is not None
        },
    }


def with_origin(result: R, model: Any, data: Any) -> R:
    """The result with its origin, if it is one that is written to files and has none yet; anything else as it is."""
    if not dataclasses.is_dataclass(result) or getattr(result, "origin", None) != {}:
        return result
    return dataclasses.replace(result, origin=origin_of(model, data))  # type: ignore[type-var]
