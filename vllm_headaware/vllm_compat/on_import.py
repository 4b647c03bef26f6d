"""Run something right after a module is first imported, without importing it now."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def on_import(module_name: str, action: Callable[[], None]) -> None:
    """Call action() once the module has been executed; at once if it has been already."""
    module = sys.modules.get(module_name)
    if module is None:
        sys.meta_path.insert(0, _Watcher(module_name, action))
    elif not getattr(module.__spec__, "_initializing", False):
        action()


class _Watcher(MetaPathFinder):
    """Finds one module once, through the other finders, and adds the action to its loader."""

    def __init__(self, module_name: str, action: Callable[[], None]) -> None:
        self.module_name = module_name
        self.action = action

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != self.module_name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_then_act(module: ModuleType) -> None:
            execute(module)
            self.action()

        spec.loader.exec_module = execute_then_act  # type: ignore[method-assign]
        return spec
