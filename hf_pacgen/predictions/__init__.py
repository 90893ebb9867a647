"""Predictions averaged over noise on the weights, and the size of that noise."""
