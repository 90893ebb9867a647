"""Certificates: bounds on the error of the noisy model."""
