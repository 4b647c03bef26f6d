"""Where this user's files that can be made again are."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """This package's folder in the user's cache; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllm-headaware"
