"""Settings: one frozen, keyword-only dataclass per concern, with every check in its ``__post_init__``."""

from hf_pacgen.config.certificate import CertificateConfig, PriorGroups
from hf_pacgen.config.noise import CurvatureSource, NoiseConfig, NoiseDirection, NoiseDraw, NoiseShape, NoiseTarget
from hf_pacgen.config.recipes import NoiseRecipe
from hf_pacgen.config.score import Estimator, HVPMethod, ScoreConfig
from hf_pacgen.config.sharpness import RelativeSharpnessConfig, SharpnessConfig
from hf_pacgen.config.spectrum import SpectrumConfig, SpectrumEnd
from hf_pacgen.maths.likelihoods import Likelihood

__all__ = [
    "CertificateConfig",
    "CurvatureSource",
    "Estimator",
    "HVPMethod",
    "Likelihood",
    "NoiseConfig",
    "NoiseDirection",
    "NoiseDraw",
    "NoiseRecipe",
    "NoiseShape",
    "NoiseTarget",
    "PriorGroups",
    "RelativeSharpnessConfig",
    "ScoreConfig",
    "SharpnessConfig",
    "SpectrumConfig",
    "SpectrumEnd",
]
