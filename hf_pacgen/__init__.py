"""PACGen for the Hugging Face stack: score, shaped noise, promises and certificates."""

import sys as _sys
from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING
from typing import Any as _Any

from hf_pacgen.old_paths import keep_working as _keep_working
from hf_pacgen.register import register_on_import as _register_on_import

if TYPE_CHECKING:  # type checkers read this, and not _NAMES; a test compares the two
    from hf_pacgen.certify.certify import certify
    from hf_pacgen.certify.splits import HeldOutPrior, train_prior
    from hf_pacgen.config import (
        CertificateConfig,
        NoiseConfig,
        PriorGroups,
        RelativeSharpnessConfig,
        ScoreConfig,
        SharpnessConfig,
        SpectrumConfig,
    )
    from hf_pacgen.maths.score import pacgen_score
    from hf_pacgen.measures.hessian import hessian_diagonal, hessian_lipschitz, hessian_vector_product
    from hf_pacgen.measures.pacgen import pacgen
    from hf_pacgen.measures.plan import plan
    from hf_pacgen.measures.relative_sharpness import relative_sharpness
    from hf_pacgen.measures.sharpness import expected_sharpness
    from hf_pacgen.measures.spectrum import hessian_spectrum
    from hf_pacgen.measures.worst_case import worst_case_sharpness
    from hf_pacgen.noise.perturbed import perturbed
    from hf_pacgen.predictions.noisy import noisy_predictions
    from hf_pacgen.promises.promise import promise
    from hf_pacgen.register import metric_path, register
    from hf_pacgen.results.certificate import Certificate
    from hf_pacgen.results.noisy_predictions import NoisyPredictions
    from hf_pacgen.results.pacgen import PACGenResult
    from hf_pacgen.results.plan import Plan
    from hf_pacgen.results.promise import Promise
    from hf_pacgen.training.arguments import PACGenTrainingArguments
    from hf_pacgen.training.callback.callback import PACGenCallback
    from hf_pacgen.training.trainer import PACGenTrainer

__version__ = "0.1.0"

__all__ = ["pacgen", "pacgen_score", "PACGenResult", "ScoreConfig"]
# what a score will take
__all__ += ["plan", "Plan"]
# curvature
__all__ += ["hessian_diagonal", "hessian_lipschitz", "hessian_vector_product", "hessian_spectrum", "SpectrumConfig"]
# sharpness
__all__ += ["expected_sharpness", "worst_case_sharpness", "SharpnessConfig"]
__all__ += ["relative_sharpness", "RelativeSharpnessConfig"]
# noise
__all__ += ["perturbed", "NoiseConfig", "PACGenCallback", "PACGenTrainer", "PACGenTrainingArguments"]
# predictions
__all__ += ["noisy_predictions", "NoisyPredictions"]
# promises
__all__ += ["promise", "Promise"]
# certificates
__all__ += ["certify", "Certificate", "CertificateConfig", "PriorGroups", "HeldOutPrior", "train_prior"]
# the metric of evaluate
__all__ += ["metric_path", "register"]

# By module, the names it has.  They are loaded when first asked for: importing torch and transformers takes seconds,
# and a process that only reads `hf_pacgen.errors`, or looks for the metric, needs neither.
_NAMES = {
    "certify.certify": "certify",
    "certify.splits": "HeldOutPrior train_prior",
    "config": "CertificateConfig NoiseConfig PriorGroups RelativeSharpnessConfig ScoreConfig SharpnessConfig "
    "SpectrumConfig",
    "maths.score": "pacgen_score",
    "measures.hessian": "hessian_diagonal hessian_lipschitz hessian_vector_product",
    "measures.pacgen": "pacgen",
    "measures.plan": "plan",
    "measures.relative_sharpness": "relative_sharpness",
    "measures.sharpness": "expected_sharpness",
    "measures.spectrum": "hessian_spectrum",
    "measures.worst_case": "worst_case_sharpness",
    "noise.perturbed": "perturbed",
    "predictions.noisy": "noisy_predictions",
    "promises.promise": "promise",
    "register": "metric_path register",
    "results.certificate": "Certificate",
    "results.noisy_predictions": "NoisyPredictions",
    "results.pacgen": "PACGenResult",
    "results.plan": "Plan",
    "results.promise": "Promise",
    "training.arguments": "PACGenTrainingArguments",
    "training.callback.callback": "PACGenCallback",
    "training.trainer": "PACGenTrainer",
}
_LATER = {name: f"hf_pacgen.{module}" for module, names in _NAMES.items() for name in names.split()}


class _Facade(_ModuleType):
    """``hf_pacgen.certify`` and ``hf_pacgen.register`` are functions, though a folder and a file have these names."""

    def __setattr__(self, name: str, value: _Any) -> None:
        # the import system binds a module to its parent when it is loaded, in whatever order that happens;
        # the function of that name must stay what `hf_pacgen.certify` gives
        if not (name in _LATER and isinstance(value, _ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> _Any:
    if name in _LATER:
        return getattr(_import_module(_LATER[name]), name)
    # as in the days when all modules were loaded at once, `import hf_pacgen` is enough for hf_pacgen.config
    if not name.startswith("_") and _find_spec(f"hf_pacgen.{name}") is not None:
        return _import_module(f"hf_pacgen.{name}")
    raise AttributeError(f"module 'hf_pacgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


globals().pop("register", None)  # the module, bound before the class below could refuse it
_sys.modules[__name__].__class__ = _Facade
_keep_working()
_register_on_import()
