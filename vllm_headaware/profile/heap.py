"""Memory that is freed goes back to the system."""

from __future__ import annotations

import ctypes

MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of glibc's malloc.h."""
LARGE = 2**18
"""Bytes from which on an allocation has pages of its own."""
FEW_TOKENS = 1200
"""Prompts up to this long leave little behind, and giving it back takes a third of the time."""


def give_back_large_blocks() -> None:
    """For the rest of this process. glibc would keep freed tensors of up to 32 MB in its heap, in
    pieces that the next ones do not fit in: a backward pass holds five times what it needs."""
    try:
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, LARGE)
    except (OSError, AttributeError):  # another C library
        return
