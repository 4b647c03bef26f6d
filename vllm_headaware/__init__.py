"""Per-head KV cache policies for stock vLLM. Importing this package changes nothing."""

__version__ = "0.1.0"
