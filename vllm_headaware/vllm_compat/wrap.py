"""How a vLLM function is wrapped: once, visibly, with the original in reach."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

_MARK = "_vllm_headaware_wrapper"


def wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace owner.name by wrapper(original, *args, **kwargs).

    A second call with the same wrapper does nothing; other wrappers go around it.

    Works for module functions, methods, class methods and static methods. `owner` must define the
    name itself; an inherited one would be copied down.
    """
    raw = owner.__dict__[name]
    kind = type(raw) if isinstance(raw, (classmethod, staticmethod)) else None
    original = raw.__func__ if kind else raw
    around = original
    while around is not None:
        if getattr(around, _MARK, None) is wrapper:
            return
        around = getattr(around, "__wrapped__", None)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    setattr(wrapped, _MARK, wrapper)
    setattr(owner, name, kind(wrapped) if kind else wrapped)
