"""timm's interface of a reduced model: the names of its parts, its features and its settings.

Parts of the backbone carry the names that they have there, in `state_dict`, in `named_parameters` and as
attributes, so that weights and scripts for the backbone serve the reduced model. Reducers are "reducers.*".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from timm.models._features import feature_take_indices
from torch import Tensor, nn

from tokred.core.backbone import check_pool, classify, pools_patches
from tokred.core.inspection import Inspection
from tokred.core.reduction import unmerge
from tokred.core.stage import State
from tokred.errors import TokredError

_SIZE = "token_size"  # the attribute in which features of models that pool patches carry their sizes


class TimmModel(nn.Module):
    """What timm asks of a Vision Transformer, on a backbone and stages that subclasses set and run."""

    backbone: Any
    stages: nn.ModuleDict
    depth: int
    num_prefix: int
    embed: Callable[..., State]
    advance: Callable[..., State]
    run: Callable[..., State]

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_post_hook(_name_as_outside)

    @property
    def tokred(self) -> Inspection:
        """What the reduction does: `plan`, `summary()` and `trace(images)`."""
        return Inspection(self)

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Tokens after the last layer and its norm, [B, P + M, C]: as many patch tokens as the plan leaves.

        Where the head pools patch tokens, the tensor carries their sizes, by which `forward_head` weighs
        them. `forward_intermediates` gives features on the grid of patches.
        """
        state = self.run(x, attn_mask)
        features: Tensor = self.backbone.norm(state.x)
        if pools_patches(self.backbone) and state.size is not None:
            setattr(features, _SIZE, state.size)
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False, size: Tensor | None = None) -> Tensor:
        """Logits [B, classes] of normalised tokens [B, P + M, C], or what enters the classifier.

        Args:
            x: what `forward_features` returned.
            pre_logits: whether to leave out the classifier.
            size: [B, M] patches that each token stands for; by default those that `x` carries.

        Raises:
            TokredError: tokens are pooled by their sizes, which are lost.
        """
        if pools_patches(self.backbone) and len(self.stages):
            size = getattr(x, _SIZE, None) if size is None else size
            if size is None:
                raise TokredError(
                    "This model pools tokens by their sizes, which these features do not carry; give them "
                    "as forward_features returned them, or with size=model.run(images).size."
                )
        return classify(self.backbone, x, size, pre_logits)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
    ) -> Any:
        """Features of layers on the full grid of patches, in timm's forms; see timm's method of this name.

        Each patch has the features of the token that holds it after the layer, and zeros where that was
        dropped. The final features, where they are returned, are those of `forward_features`.

        Args:
            x: images, [B, channels, H, W].
            indices: layers, from 0; the last ones, if it is a number; by default all.
            return_prefix_tokens: whether to return the prefix tokens of each layer too.
            norm: whether to apply the final norm.
            stop_early: whether to stop behind the last of these layers.
            output_fmt: "NCHW", or "NLC" for [B, N, C].
            intermediates_only: whether to leave out the final features.
            output_dict: whether to return a dictionary.
            attn_mask: not supported, as in `run`.

        Raises:
            TokredError: another `output_fmt`, layers that the model does not have, or a mask.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise TokredError(f"output_fmt must be NCHW or NLC, got {output_fmt!r}.")
        try:
            layers, last = feature_take_indices(self.depth, indices)
        except (AssertionError, TypeError, ValueError):
            raise TokredError(
                f"indices are layers from 0 to {self.depth - 1}, or the number of last layers; got "
                f"{indices!r}."
            ) from None
        if attn_mask is not None:
            self.run(x, attn_mask)
        state, patches, prefixes = self.embed(x), [], []
        for layer in range(last + 1 if stop_early else self.depth):
            state = self.advance(state, stop=(layer + 2, "pre"))
            if layer in layers:
                tokens = self.backbone.norm(state.x) if norm else state.x
                prefixes.append(tokens[:, : self.num_prefix])
                patches.append(unmerge(state.reductions, tokens[:, self.num_prefix :]))
        if output_fmt == "NCHW":
            grid = self.backbone.patch_embed.dynamic_feat_size(x.shape[-2:])
            patches = [y.mT.unflatten(-1, tuple(grid)).contiguous() for y in patches]
        with_prefix = return_prefix_tokens and self.num_prefix > 0
        if output_dict:
            features = {"image_intermediates": patches}
            features |= {"image_intermediates_prefix": prefixes} if with_prefix else {}
            return (
                features if intermediates_only else features | {"image_features": self.backbone.norm(state.x)}
            )
        intermediates = list(zip(patches, prefixes, strict=True)) if with_prefix else patches
        return intermediates if intermediates_only else (self.backbone.norm(state.x), intermediates)

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        attn_mask: Tensor | None = None,
    ) -> Any:
        """`forward_intermediates` under the argument names of DINO."""
        form = "NCHW" if reshape else "NLC"
        return self.forward_intermediates(
            x, n, return_prefix_tokens, norm, output_fmt=form, intermediates_only=True, attn_mask=attn_mask
        )

    def get_classifier(self) -> nn.Module:
        """The backbone's classifier."""
        return self.backbone.get_classifier()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the shared backbone a new classifier, or none for 0 classes.

        Raises:
            UnsupportedModel: a pooling in which tokens cannot count by their sizes.
        """
        check_pool(global_pool)
        self.backbone.reset_classifier(num_classes, global_pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute layers again in the backward pass, which saves memory; a setting of the shared backbone."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should leave alone."""
        return set(self.backbone.no_weight_decay())

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm groups parameters by layers; those of reducers go with the head."""
        return self.backbone.group_matcher(coarse=coarse)

    def __getattr__(self, name: str) -> Any:
        """Parts and settings of the backbone, and "reducers", under the names that parameters have."""
        modules = self.__dict__.get("_modules", {})
        if name in modules:
            return modules[name]
        if name == "reducers" and "stages" in modules:
            return modules["stages"]
        if "backbone" in modules and _holds(modules["backbone"], name):
            return getattr(modules["backbone"], name)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what belongs to the backbone there, so that both have it."""
        backbone = self.__dict__.get("_modules", {}).get("backbone")
        if backbone is None or name in self.__dict__ or name in self._modules or not _holds(backbone, name):
            super().__setattr__(name, value)
        elif name in backbone._parameters and type(value) is not nn.Parameter and isinstance(value, Tensor):
            backbone._parameters[name] = value  # as torch.func.functional_call does for the time of a call
        else:
            setattr(backbone, name, value)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """All modules; the backbone has the name of the model itself, and its parts their names within it."""
        for name, module in super().named_modules(memo, prefix, remove_duplicate):
            yield _outer(name, prefix), module

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Parameters and buffers: the backbone's under its own keys, the reducers' under "reducers."."""
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        state = super().state_dict(*args, **kwargs)
        for key in [key for key in state if key.startswith(prefix)]:
            state[_outer(key, prefix.removesuffix("."))] = state.pop(key)
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Read keys as `state_dict` writes them, or as the modules are called here."""
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = key.removeprefix(prefix)
            if name.startswith("reducers."):
                state_dict[f"{prefix}stages.{name.removeprefix('reducers.')}"] = state_dict.pop(key)
            elif not name.startswith(("backbone.", "stages.")):
                state_dict[f"{prefix}backbone.{name}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _name_as_outside(model: nn.Module, keys: Any) -> None:
    """Name keys that are missing, or too many, as `state_dict` does."""
    for names in (keys.missing_keys, keys.unexpected_keys):
        names[:] = [_outer(name) for name in names]


def _holds(backbone: nn.Module, name: str) -> bool:
    """Whether a name is that of a parameter, a buffer, a module or a plain attribute."""
    own = backbone.__dict__
    return name in own or any(name in own[kind] for kind in ("_parameters", "_buffers", "_modules"))


def _outer(name: str, prefix: str = "") -> str:
    """The public form of the name of a module, parameter or buffer of a `TimmModel` called `prefix`."""
    start = f"{prefix}." if prefix else ""
    inner = name.removeprefix(start)
    first, dot, rest = inner.partition(".")
    if first == "backbone":
        return f"{start}{rest}" if dot else prefix
    return f"{start}reducers{dot}{rest}" if first == "stages" else name
