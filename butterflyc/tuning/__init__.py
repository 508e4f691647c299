"""Tuning: which kernel with which parameters is fastest, measured, and kept for the next time."""
