"""The model `tokred_vit` in timm's registry, so that timm's scripts make reduced models by name.

python train.py --model tokred_vit --model-kwargs base=deit_small_patch16_224 method=lotm budget=0.3
"""

from __future__ import annotations

from typing import Any

from timm.models._registry import register_model


@register_model  # type: ignore[untyped-decorator]
def tokred_vit(pretrained: bool = False, **settings: Any) -> Any:
    """A reduced model: `base`, `method`, and what else `tokred.reduce` and the base model take."""
    import timm

    from tokred import api
    from tokred.core import registry
    from tokred.core.options import default_options
    from tokred.errors import TokredError
    from tokred.models.zoo import timm_name

    if not {"base", "method"} <= settings.keys():
        raise TokredError("tokred_vit needs the names of a base model and a method: base=NAME method=NAME.")
    base, method = settings.pop("base"), settings.pop("method")
    known = {*api.REDUCE_SETTINGS, *default_options(registry.get(method))}
    chosen = {name: settings.pop(name) for name in sorted(known & settings.keys())}
    model = timm.create_model(timm_name(base), pretrained=pretrained, **settings)
    reduced = api.reduce(model, method, **chosen)
    object.__setattr__(reduced, "_model_args", {})  # timm notes its arguments there, not in the base model's
    return reduced
