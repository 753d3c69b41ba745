"""tokred's model in timm's registry, without importing timm before somebody does."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_REGISTRY, _ENTRY = "timm.models", "tokred.models.timm_entry"


class _AfterTimm(MetaPathFinder):
    """Lets timm's models be imported as ever, and the entry after them."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        loader, execute = spec.loader, spec.loader.exec_module

        def execute_both(module: ModuleType) -> None:
            execute(module)
            importlib.import_module(_ENTRY)

        loader.exec_module = execute_both  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Register the entry now if timm is there, else when it is imported."""
    if _REGISTRY in sys.modules:
        importlib.import_module(_ENTRY)
    elif not any(isinstance(finder, _AfterTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTimm())
