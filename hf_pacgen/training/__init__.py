"""Noise and scores inside the Trainer of transformers."""
