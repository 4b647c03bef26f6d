"""Tests against the real engine: vLLM's own scheduler, block pool, model runner and CPU op."""
