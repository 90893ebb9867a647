"""Promises: what may be said of a model's error, from examples that it never saw."""

from hf_pacgen.promises.noisy import NoisyPredictions
from hf_pacgen.promises.selective import FILE, SelectiveClassifier, save_selective

__all__ = ["FILE", "NoisyPredictions", "SelectiveClassifier", "save_selective"]
