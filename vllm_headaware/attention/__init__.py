"""Attention layers split by head class, and the metadata their kernels read."""

SUPPORTED_DEVICES = ("cpu",)
"""vLLM device types with a backend in backend.BACKENDS (importing that table imports vLLM)."""
