"""Layers on a GPU: kernels checked there, then timed against standard mixtures of experts."""
