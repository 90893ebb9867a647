"""PACGen for the Hugging Face stack: score, shaped noise and certificates."""

from hf_pacgen.config import Estimator, HVPMethod, ScoreConfig
from hf_pacgen.curvature.diagonal import DiagonalEstimate
from hf_pacgen.curvature.lipschitz import LipschitzEstimate
from hf_pacgen.measure import hessian_diagonal, hessian_lipschitz, hessian_vector_product, pacgen
from hf_pacgen.register import metric_path, register
from hf_pacgen.register import register_on_import as _register_on_import
from hf_pacgen.score import PACGenResult, pacgen_score

__version__ = "0.1.0.dev0"

__all__ = [
    # score
    "pacgen",
    "pacgen_score",
    "PACGenResult",
    "ScoreConfig",
    "Estimator",
    "HVPMethod",
    # curvature
    "hessian_diagonal",
    "hessian_lipschitz",
    "hessian_vector_product",
    "DiagonalEstimate",
    "LipschitzEstimate",
    # the metric of evaluate
    "metric_path",
    "register",
]

_register_on_import()
