"""Batches, the loss that is measured, and the objective made of both."""
