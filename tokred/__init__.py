"""tokred: compare token-reduction methods for Vision Transformers at one FLOP budget.

    model = tokred.reduce(timm_model, "lotm", budget=0.3)   # a reduced model, ready to use
    tokred.compare("deit_s", budget=0.3)                    # the cross-method table

Names are imported when they are first used, so that the command line starts at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tokred.errors import names_arguments
from tokred.utils import timm_hook

__version__ = "0.1.0"

_PUBLIC = {
    "reduce": "tokred.api",
    "compare": "tokred.api",
    "export": "tokred.models.export",
    "show": "tokred.visualize.show",
    "register": "tokred.core.registry",
    "Reducer": "tokred.core.reducer",
    "View": "tokred.core.reducer",
    "Keep": "tokred.core.reduction",
    "Merge": "tokred.core.reduction",
    "Mix": "tokred.core.reduction",
    "unmerge": "tokred.core.reduction",
    "ReducedViT": "tokred.core.vit",
    "Plan": "tokred.core.plan",
    "TokredError": "tokred.errors",
}
_CALLED = ("reduce", "compare", "export", "show")  # with arguments, which the command line has as flags

__all__ = ["__version__", *_PUBLIC]

timm_hook.install()


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tokred' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = names_arguments(value) if name in _CALLED else value
    return globals()[name]
