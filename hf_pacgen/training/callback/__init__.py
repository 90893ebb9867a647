"""Noise and scores in a Trainer that knows nothing of them."""

from hf_pacgen.training.callback.callback import PACGenCallback, ScoreOn

__all__ = ["PACGenCallback", "ScoreOn"]
