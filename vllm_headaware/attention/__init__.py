"""Attention layers split by head class, and the metadata their kernels read."""

SUPPORTED_DEVICES = ("cpu", "cuda")
"""vLLM device types that choice.py has kernels for."""

LIBRARY, OPERATION = "vllm_headaware", "split_attention"
"""The custom op that attends all classes of a layer."""
