"""Heads measured in vLLM itself: any weights that it serves, forward passes only."""
