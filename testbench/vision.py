"""torchvision without its compiled operators: they want CUDA's libraries, and what image processors
use is Python."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

PLACE = Path(__file__).parents[1] / ".cache" / "torchvision"
"""Where `make vision-tool` puts it, apart from the environment: other packages would find it."""
DECLARED = re.compile(r'(?:torchvision::|register_meta\(")(\w+)')
_kept: list[Any] = []


def enable() -> None:
    """Let this process import torchvision.

    Raises:
        FileNotFoundError: `make vision-tool` was not run.
    """
    import torch

    declared = (PLACE / "torchvision" / "_meta_registrations.py").read_text(encoding="utf-8")
    operators = torch.library.Library("torchvision", "DEF")
    for name in sorted(set(DECLARED.findall(declared))):
        operators.define(f"{name}(Tensor x) -> Tensor")
    _kept.append(operators)  # they go when it goes
    sys.path.append(str(PLACE))
