"""Noise-shaped training and scores inside the Trainer of transformers."""
