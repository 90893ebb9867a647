"""Noise on a model's weights, and the curvature that shapes it."""
