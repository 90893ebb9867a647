"""PACGen on model cards."""
