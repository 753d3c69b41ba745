"""`ReducedViT`: a timm ViT with reducers between its layers. The backbone is called, never changed.

This is the only file that knows a timm class by name. A forward pass is a `State` that moves through sites: before each layer ("pre")
and between its attention and its MLP ("mid"). It can start from any state, which lets many plans share one dense prefix.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from timm.layers import Attention as TimmAttention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from tokred.core.attention import masked, recorded, tap
from tokred.core.plan import Plan
from tokred.core.reducer import Attention, Reducer, Rng, Site, View, seeded
from tokred.core.reduction import Mask, Reduction, Sizes
from tokred.errors import TokredError, UnsupportedModel

Point = tuple[int, Site]


@dataclass(frozen=True)
class State:
    """Everything that the rest of a forward pass depends on.

    Attributes:
        x: [B, P + N, C] tokens, prefix first.
        layer: one-based layer that comes next, or that has run its attention (site "mid"). One past the last when done.
        site: where in that layer.
        sizes: [B, N] patches that each token stands for, or what adds them up; None while all are 1.
        attention: of the last layer that ran, where it was recorded.
        images: [B] keys of the images for `View.rng`.
        reductions: of the stages passed so far.
        alive: [B, N] in training by masks, 1 for the patch tokens that are still there, else 0.
    """

    x: Tensor
    layer: int = 1
    site: Site = "pre"
    sizes: Tensor | Sizes | None = None
    attention: Attention | None = None
    images: Tensor | None = None
    reductions: tuple[Reduction, ...] = ()
    alive: Tensor | None = None

    @property
    def size(self) -> Tensor | None:
        """[B, N] patches that each token stands for; None while all are 1."""
        return self.sizes.value if isinstance(self.sizes, Sizes) else self.sizes

    def copy(self) -> State:
        """A state with tensors of its own, so that what one method writes into its view no other method sees."""
        attention = self.attention
        if attention is not None:
            attention = replace(
                attention, q=attention.q.clone(), k=attention.k.clone(), v=attention.v.clone()
            )
        size = self.size
        return replace(
            self, x=self.x.clone(), sizes=None if size is None else size.clone(), attention=attention
        )


class Stage(nn.Module):
    """One reducer at one site: shows it a view and applies its decision to features, sizes and sources.

    `sizes` says that the model uses token sizes later: then they are part of the stage's work. Else they wait until somebody asks.
    """

    def __init__(
        self,
        reducer: Reducer,
        layer: int,
        depth: int,
        num_prefix: int,
        has_cls: bool,
        seed: int,
        sizes: bool = False,
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.reducer = reducer
        self.layer, self.depth, self.num_prefix, self.has_cls, self.seed = (
            layer,
            depth,
            num_prefix,
            has_cls,
            seed,
        )

    def view(self, state: State) -> View:
        """What the reducer may look at.

        Raises:
            TokredError: the stage was planned for another number of tokens.
        """
        prefix, x = state.x[:, : self.num_prefix], state.x[:, self.num_prefix :]
        if x.shape[1] != self.reducer.n and state.alive is None:
            raise TokredError(
                f"Layer {self.layer} was planned for {self.reducer.n} patch tokens, but this image gives {x.shape[1]}; "
                "make the plan for the image size that you run."
            )
        sizes = torch.ones_like(x[..., 0], dtype=torch.float32) if state.sizes is None else state.sizes
        rng = Rng(self.seed, state.images, self.layer)
        return View(x, sizes, prefix, self.layer, self.depth, self.has_cls, rng, state.attention, state.alive)

    def forward(self, state: State) -> State:
        view = self.view(state)
        if self.reducer.keep == self.reducer.n:
            return state  # nothing to remove: the reducer is bypassed
        with torch.autocast(view.x.device.type, enabled=False):  # similarities in bfloat16 are full of ties
            reduction = self.reducer(view)
            tokens = reduction.pool(state.x, self.num_prefix)
        alive = reduction.alive if isinstance(reduction, Mask) else None
        sizes = Sizes(view.sizes, reduction)
        return replace(
            state,
            x=tokens,
            sizes=sizes.value if self.sizes else sizes,
            reductions=(*state.reductions, reduction),
            alive=alive,
        )

    def twin(self) -> Stage:
        """The same stage with a reducer of its own, buffers and parts included, on the same parameters."""
        twin = copy.copy(self)
        shared = {id(parameter): parameter for parameter in self.reducer.parameters()}
        twin._modules = {"reducer": copy.deepcopy(self.reducer, shared)}
        return twin


class ReducedViT(nn.Module):
    """A timm `VisionTransformer` that runs a plan. With the empty plan its logits are the backbone's, bit for bit.

    Args:
        backbone: built from timm's standard `Block`, with token or average pooling. It is shared, not copied: any number of
            `ReducedViT` may hold the same one.
        plan: which tokens go where; by default none.
        record: further layers whose attention `advance` leaves in the state.
        seed: of `View.rng`.

    Raises:
        UnsupportedModel: blocks, attention or pooling that are not timm's standard ones, or a method that needs a CLS token which
            the model lacks.
    """

    def __init__(
        self, backbone: VisionTransformer, plan: Plan | None = None, record: Iterable[int] = (), seed: int = 0
    ) -> None:
        super().__init__()
        check_supported(backbone)
        self.backbone, self.plan = backbone, plan or Plan()
        self.depth, self.num_prefix = len(backbone.blocks), backbone.num_prefix_tokens
        self.has_cls = backbone.cls_token is not None
        self.stages = nn.ModuleDict()
        self._build_stages(seed)
        self.training = (
            backbone.training
        )  # which `train` would set in every part of the backbone, frozen ones too
        self.stages.train(backbone.training)
        self.proportional = any(stage.reducer.proportional for stage in self.stage_list())
        # A plain dict: the taps share their modules with the backbone and stay out of the state dict.
        self._taps = {layer: tap(backbone.blocks[layer - 1].attn) for layer in self._recorded() | set(record)}

    def _build_stages(self, seed: int) -> None:
        if not self.plan.stages:
            return
        cls, n = self.plan.reducer, num_patches(self.backbone)
        for layer, keep in zip(self.plan.stages, self.plan.tokens, strict=True):
            if keep == n:
                continue  # nothing to remove: the reducer is bypassed
            with seeded(seed + layer):
                reducer = cls(n, keep, self.backbone.embed_dim, num_heads(self.backbone), **self.plan.options)
            if reducer.needs_cls and not self.has_cls:
                raise UnsupportedModel(
                    f"{cls.name} needs a CLS token, which this model does not have; choose a method that works without."
                )
            sizes = reducer.proportional or self.backbone.global_pool == "avg"
            stage = Stage(reducer, layer, self.depth, self.num_prefix, self.has_cls, seed, sizes)
            self.stages[_key(layer, reducer.site)] = stage
            n = keep

    def stage_list(self) -> list[Stage]:
        """The stages in the order in which they run."""
        return cast("list[Stage]", list(self.stages.values()))

    def _recorded(self) -> set[int]:
        """Layers whose attention a stage looks at: its own at "mid", the one before at "pre"."""
        layers = {stage.layer - (stage.reducer.site == "pre") for stage in self.stage_list()}
        return layers - {0}

    @property
    def learned(self) -> bool:
        """Whether a reducer owns parameters, so that the model means nothing before they are fitted."""
        return any(stage.reducer.learned for stage in self.stage_list())

    def retarget(self, tokens: tuple[int, ...]) -> None:
        """Let the stages keep other counts, as far as they were built for: fitting for any budget draws them anew at every step.

        Args:
            tokens: patch tokens kept after each stage of the plan. One that was left out of the model for keeping all must do so still.
        """
        n = num_patches(self.backbone)
        for layer, keep in zip(self.plan.stages, tokens, strict=True):
            key = _key(layer, self.plan.reducer.site)
            if key in self.stages:
                reducer = cast("Stage", self.stages[key]).reducer
                reducer.n, reducer.keep = n, keep
            elif keep != n:
                raise TokredError(
                    f"Layer {layer} of this model reduces nothing, so it cannot keep {keep} of {n} tokens."
                )
            n = keep

    @property
    def recorded_before_first(self) -> set[int]:
        """Layers whose attention the first stage looks at and a dense model must therefore record for it."""
        point = self.first_point
        return {layer for layer in self._recorded() if point and layer <= point[0] - (point[1] == "pre")}

    @property
    def first_point(self) -> Point | None:
        """Where this model first differs from the dense one; None for the dense model itself."""
        for stage in self.stage_list():
            return stage.layer, stage.reducer.site
        return None

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Logits, [B, classes], of images [B, 3, H, W]."""
        return self.head(self.run(x, attn_mask))

    def run(self, x: Tensor, attn_mask: Tensor | None = None) -> State:
        """The state after the last layer: final tokens, their sizes and the reductions on the way."""
        if attn_mask is not None:
            raise TokredError(
                "ReducedViT takes no attn_mask: tokens move, so a mask given from outside loses its meaning."
            )
        return self.advance(self.embed(x))

    def embed(self, x: Tensor, images: Tensor | None = None) -> State:
        """Images [B, 3, H, W] to the state before layer 1. `images` are keys for random numbers, [B] int64."""
        backbone = self.backbone
        tokens = backbone.norm_pre(backbone.patch_drop(backbone._pos_embed(backbone.patch_embed(x))))
        return State(tokens, images=images)

    def advance(self, state: State, stop: Point | None = None) -> State:
        """Run layers and stages from a state up to a point, whose own stage is not yet applied; by default to the end."""
        while state.layer <= self.depth and (state.layer, state.site) != stop:
            key = _key(state.layer, state.site)
            if key in self.stages:
                state = self.stages[key](state)
            state = self._attend(state) if state.site == "pre" else self._mlp(state)
        return state

    def walk(self, state: State) -> Iterator[tuple[str, State]]:
        """As `advance`, part by part: the name of each and the state after it."""
        while state.layer <= self.depth:
            layer, site = state.layer, state.site
            key = _key(layer, site)
            if key in self.stages:
                state = self.stages[key](state)
                yield f"the reduction at layer {layer}", state
            state = self._attend(state) if site == "pre" else self._mlp(state)
            yield f"the {'attention' if site == 'pre' else 'MLP'} of layer {layer}", state

    def head(self, state: State) -> Tensor:
        """Logits of a state after the last layer."""
        x = self.backbone.norm(state.x)
        if self.backbone.global_pool == "avg" and state.size is not None:
            # The head averages patch tokens; one token that is their mean by size gives it what it would have averaged.
            size = state.size.to(x.dtype).unsqueeze(-1)
            mean = (x[:, self.num_prefix :] * size).sum(1, keepdim=True) / size.sum(1, keepdim=True)
            x = torch.cat([x[:, : self.num_prefix], mean], dim=1)
        return self.backbone.forward_head(x)

    def _attend(self, state: State) -> State:
        block = self.backbone.blocks[state.layer - 1]
        tapped = self._taps.get(state.layer)
        bias = self._log_size(state)
        attn = tapped or block.attn
        if state.alive is not None:
            attn = masked(
                attn, torch.cat([state.alive.new_ones(len(state.x), self.num_prefix), state.alive], dim=1)
            )
        x = state.x + block.drop_path1(block.ls1(attn(block.norm1(state.x), attn_mask=bias)))
        return replace(state, x=x, site="mid", attention=recorded(tapped, bias) if tapped else None)

    def _mlp(self, state: State) -> State:
        block = self.backbone.blocks[state.layer - 1]
        x = state.x + block.drop_path2(block.ls2(block.mlp(block.norm2(state.x))))
        return replace(state, x=x, layer=state.layer + 1, site="pre")

    def _log_size(self, state: State) -> Tensor | None:
        """Additive mask of proportional attention, [B, 1, 1, P + N]."""
        size = state.size if self.proportional else None
        if size is None:
            return None
        return (
            torch.cat([size.new_ones(len(size), self.num_prefix), size], dim=1)
            .log()
            .to(state.x.dtype)[:, None, None, :]
        )

    def twin(self) -> ReducedViT:
        """The same model on the same weights, for use in another thread: taps and reducers may keep something for themselves."""
        twin = copy.copy(self)
        twin._taps = {layer: tap(self.backbone.blocks[layer - 1].attn) for layer in self._taps}
        twin._modules = {
            **self._modules,
            "stages": nn.ModuleDict(
                {_key(stage.layer, stage.reducer.site): stage.twin() for stage in self.stage_list()}
            ),
        }
        return twin

    def train(self, mode: bool = True) -> ReducedViT:
        super().train(mode)
        for tapped in self._taps.values():
            tapped.training = mode
        return self


def check_supported(model: nn.Module) -> None:
    """Refuse, by name, a model that `ReducedViT` would run wrongly.

    Raises:
        UnsupportedModel
    """
    name = type(model).__name__
    if (
        not isinstance(model, VisionTransformer)
        or type(model).forward_features is not VisionTransformer.forward_features
    ):
        raise UnsupportedModel(
            f"{name} is not a standard timm VisionTransformer; tokred reduces ViT and DeiT models, such as deit_s."
        )
    for block in model.blocks:
        if type(block) is not Block:
            raise UnsupportedModel(
                f"{name} is built from {type(block).__name__}, but tokred knows only timm's standard Block."
            )
        if type(block.attn) is not TimmAttention:
            raise UnsupportedModel(
                f"{name} uses {type(block.attn).__name__}, but tokred knows only timm's standard Attention."
            )
    if (
        model.global_pool not in ("token", "avg")
        or model.attn_pool is not None
        or getattr(model, "pool_include_prefix", False)
    ):
        raise UnsupportedModel(
            f"{name} pools by {model.global_pool or 'nothing'!r}; tokred supports pooling by CLS token and by patch average."
        )


def num_patches(model: VisionTransformer) -> int:
    """Patch tokens of an image of the model's own size."""
    return int(model.patch_embed.num_patches)


def num_heads(model: VisionTransformer) -> int:
    """Attention heads of each layer."""
    return int(model.blocks[0].attn.num_heads)


def _key(layer: int, site: Site) -> str:
    return f"{site}{layer}"
