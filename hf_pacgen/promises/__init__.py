"""Promises: what may be said of a model's error, from examples that it never saw."""

from hf_pacgen.promises.expected import ExpectedPromise, expected_promises
from hf_pacgen.promises.how import TrainedPromise, train_and_promise
from hf_pacgen.promises.noisy import NoisyModel
from hf_pacgen.promises.selective import FILE, SelectiveClassifier, save_selective

__all__ = [
    "FILE",
    "ExpectedPromise",
    "NoisyModel",
    "SelectiveClassifier",
    "TrainedPromise",
    "expected_promises",
    "save_selective",
    "train_and_promise",
]
