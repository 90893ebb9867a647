"""PACGen for the Hugging Face stack: score, shaped noise and certificates."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING
from typing import Any as _Any

from hf_pacgen.config import CertificateConfig, NoiseConfig, PriorGroups, ScoreConfig, SharpnessConfig, SpectrumConfig
from hf_pacgen.maths.score import pacgen_score
from hf_pacgen.measures.hessian import hessian_diagonal, hessian_lipschitz, hessian_vector_product
from hf_pacgen.measures.pacgen import pacgen
from hf_pacgen.noise.perturbed import perturbed
from hf_pacgen.old_paths import keep_working as _keep_working
from hf_pacgen.register import metric_path, register
from hf_pacgen.register import register_on_import as _register_on_import
from hf_pacgen.results.pacgen import PACGenResult

if TYPE_CHECKING:
    from hf_pacgen.certify.certify import certify
    from hf_pacgen.certify.splits import HeldOutPrior, train_prior
    from hf_pacgen.measures.sharpness import expected_sharpness
    from hf_pacgen.measures.spectrum import hessian_spectrum
    from hf_pacgen.measures.worst_case import worst_case_sharpness
    from hf_pacgen.results.certificate import Certificate
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

# These import transformers' Trainer, or rooms that a score does not need: they are loaded when first asked for.
_LATER = {
    "Certificate": "hf_pacgen.results.certificate",
    "certify": "hf_pacgen.certify.certify",
    "expected_sharpness": "hf_pacgen.measures.sharpness",
    "hessian_spectrum": "hf_pacgen.measures.spectrum",
    "HeldOutPrior": "hf_pacgen.certify.splits",
    "PACGenCallback": "hf_pacgen.training.callback.callback",
    "PACGenTrainer": "hf_pacgen.training.trainer",
    "PACGenTrainingArguments": "hf_pacgen.training.arguments",
    "train_prior": "hf_pacgen.certify.splits",
    "worst_case_sharpness": "hf_pacgen.measures.worst_case",
}


def __getattr__(name: str) -> _Any:
    if name in _LATER:
        return getattr(_import_module(_LATER[name]), name)
    raise AttributeError(f"module 'hf_pacgen' has no attribute {name!r}")


_keep_working(__name__)
_register_on_import()
