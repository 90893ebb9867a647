"""PACGen for the Hugging Face stack: score, shaped noise and certificates."""

import sys as _sys
from importlib import import_module as _import_module
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING
from typing import Any as _Any

from hf_pacgen.old_paths import keep_working as _keep_working
from hf_pacgen.register import register_on_import as _register_on_import

if TYPE_CHECKING:
    from hf_pacgen.certify.certify import certify
    from hf_pacgen.certify.splits import HeldOutPrior, train_prior
    from hf_pacgen.config import (
        CertificateConfig,
        NoiseConfig,
        PriorGroups,
        ScoreConfig,
        SharpnessConfig,
        SpectrumConfig,
    )
    from hf_pacgen.maths.score import pacgen_score
    from hf_pacgen.measures.hessian import hessian_diagonal, hessian_lipschitz, hessian_vector_product
    from hf_pacgen.measures.pacgen import pacgen
    from hf_pacgen.measures.sharpness import expected_sharpness
    from hf_pacgen.measures.spectrum import hessian_spectrum
    from hf_pacgen.measures.worst_case import worst_case_sharpness
    from hf_pacgen.noise.perturbed import perturbed
    from hf_pacgen.register import metric_path, register
    from hf_pacgen.results.certificate import Certificate
    from hf_pacgen.results.pacgen import PACGenResult
    from hf_pacgen.training.arguments import PACGenTrainingArguments
    from hf_pacgen.training.callback.callback import PACGenCallback
    from hf_pacgen.training.trainer import PACGenTrainer

__version__ = "0.1.0"

__all__ = [
    # score
    "pacgen",
    "pacgen_score",
    "PACGenResult",
    "ScoreConfig",
    # curvature
    "hessian_diagonal",
    "hessian_lipschitz",
    "hessian_vector_product",
    "hessian_spectrum",
    "SpectrumConfig",
    # sharpness
    "expected_sharpness",
    "worst_case_sharpness",
    "SharpnessConfig",
    # noise
    "perturbed",
    "NoiseConfig",
    "PACGenCallback",
    "PACGenTrainer",
    "PACGenTrainingArguments",
    # certificates
    "certify",
    "Certificate",
    "CertificateConfig",
    "PriorGroups",
    "HeldOutPrior",
    "train_prior",
    # the metric of evaluate
    "metric_path",
    "register",
]

# Where each name is. It is loaded when first asked for: importing torch and transformers takes seconds, and a process
# that only reads `hf_pacgen.errors`, or looks for the metric, needs neither.
_LATER = {
    "Certificate": "hf_pacgen.results.certificate",
    "CertificateConfig": "hf_pacgen.config",
    "HeldOutPrior": "hf_pacgen.certify.splits",
    "NoiseConfig": "hf_pacgen.config",
    "PACGenCallback": "hf_pacgen.training.callback.callback",
    "PACGenResult": "hf_pacgen.results.pacgen",
    "PACGenTrainer": "hf_pacgen.training.trainer",
    "PACGenTrainingArguments": "hf_pacgen.training.arguments",
    "PriorGroups": "hf_pacgen.config",
    "ScoreConfig": "hf_pacgen.config",
    "SharpnessConfig": "hf_pacgen.config",
    "SpectrumConfig": "hf_pacgen.config",
    "certify": "hf_pacgen.certify.certify",
    "expected_sharpness": "hf_pacgen.measures.sharpness",
    "hessian_diagonal": "hf_pacgen.measures.hessian",
    "hessian_lipschitz": "hf_pacgen.measures.hessian",
    "hessian_spectrum": "hf_pacgen.measures.spectrum",
    "hessian_vector_product": "hf_pacgen.measures.hessian",
    "metric_path": "hf_pacgen.register",
    "pacgen": "hf_pacgen.measures.pacgen",
    "pacgen_score": "hf_pacgen.maths.score",
    "perturbed": "hf_pacgen.noise.perturbed",
    "register": "hf_pacgen.register",
    "train_prior": "hf_pacgen.certify.splits",
    "worst_case_sharpness": "hf_pacgen.measures.worst_case",
}


class _Facade(_ModuleType):
    """``hf_pacgen.certify`` and ``hf_pacgen.register`` are functions, though a folder and a file have these names."""

    def __setattr__(self, name: str, value: _Any) -> None:
        # the import system binds a module to its parent when it is loaded, in whatever order that happens
        if not (name in _LATER and isinstance(value, _ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> _Any:
    if name not in _LATER:
        raise AttributeError(f"module 'hf_pacgen' has no attribute {name!r}")
    return getattr(_import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


globals().pop("register", None)  # the module, bound before the class below could refuse it
_sys.modules[__name__].__class__ = _Facade
_keep_working(__name__)
_register_on_import()
