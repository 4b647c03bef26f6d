"""What `make gpu-check` does on a machine with an NVIDIA GPU, and `--dry-run` on any other."""

import importlib.util
import os

if importlib.util.find_spec("flashinfer") is None:
    # Nothing here needs it; vLLM's sampler would, though it has one of its own too.
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
