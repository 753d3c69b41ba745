"""`ReducedViT`: a timm ViT with reducers between its layers. The backbone is called, never changed.

A forward pass is a `State` that moves through sites:
before each layer ("pre") and between its attention and its MLP ("mid"). It can start from any state, which
lets many plans share one dense prefix. All that belongs to one call is in its states, so threads may share a
model; and all parts of the backbone are read when they are called, so that what has been replaced, wrapped,
cast or moved since is what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokred.core import backbone as parts
from tokred.core.backbone import check_supported, has_cls, num_patches
from tokred.core.plan import Plan
from tokred.core.reducer import Site
from tokred.core.rng import check_seed
from tokred.core.stage import Stage, State, build_stage
from tokred.core.timm_model import TimmModel
from tokred.errors import TokredError, UnsupportedModel
from tokred.utils.numbers import whole

Point = tuple[int, Site]


class ReducedViT(TimmModel):
    """A timm `VisionTransformer` or `Eva` that runs a plan; the empty plan gives the logits of the backbone.

    It has the interface of the backbone, its settings and the names of its parameters; see `TimmModel`.

    Args:
        backbone: built from timm's standard blocks. It is shared, not copied: any number of `ReducedViT` may
            hold the same one.
        plan: which tokens go where; by default none.
        record: further layers whose attention `advance` leaves in the state.
        seed: the seed of `View.rng`, and of parameters that are drawn.

    Where the backbone takes images of other sizes (`dynamic_img_size`), stages keep the same fractions of
    their patches; FLOPs are those of the backbone's own size.

    Reducers start in evaluation mode, whatever the mode of the backbone, so that the model reduces: `train()`
    asks for what a method does in training, where DynamicViT masks tokens instead of removing them. As in any
    module that holds a shared one, `train()` and `eval()` set the mode of the backbone too.

    Raises:
        UnsupportedModel: blocks, attention or pooling that are not timm's standard ones, or a method that
            needs a CLS token which the model lacks.
    """

    def __init__(
        self, backbone: Any, plan: Plan | None = None, record: Iterable[int] = (), seed: int = 0
    ) -> None:
        super().__init__()
        check_supported(backbone)
        if not isinstance(plan, Plan | None):
            raise TokredError(f"A plan is a tokred.Plan; got {plan!r}.")
        self.backbone, self.plan = backbone, plan or Plan()
        self.depth, self.num_prefix = len(backbone.blocks), backbone.num_prefix_tokens
        self.has_cls = has_cls(backbone)
        self.stages = nn.ModuleDict()
        self._build_stages(check_seed(seed))
        # `train` would set it in all parts of the backbone, frozen ones too.
        self.training = backbone.training
        self.stages.eval()
        self.proportional = any(stage.reducer.proportional for stage in self.stage_list())
        self.adaptive = any(stage.reducer.adaptive() for stage in self.stage_list())
        self.recorded = frozenset(self._looked_at() | self._layers(record))

    def _build_stages(self, seed: int) -> None:
        n = num_patches(self.backbone)
        for layer, keep in zip(self.plan.stages, self.plan.tokens, strict=True):
            # Where all tokens stay there is nothing to remove, and the reducer is bypassed.
            if keep != n or self.plan.reducer.adaptive():
                stage = build_stage(self.backbone, self.plan, layer, n, keep, seed)
                if n == num_patches(self.backbone):
                    stage.reducer.check_first()
                self.stages[_key(layer, stage.reducer.site)] = stage
            n = keep

    def stage_list(self) -> list[Stage]:
        """The stages in the order in which they run."""
        return cast("list[Stage]", list(self.stages.values()))

    def _looked_at(self) -> set[int]:
        """Layers whose attention a stage looks at: its own at "mid", the one before at "pre"."""
        layers = {stage.layer - (stage.reducer.site == "pre") for stage in self.stage_list()}
        return layers - {0}

    def _layers(self, record: Any) -> set[int]:
        """Layers whose attention the user wants recorded.

        Raises:
            TokredError: they are no layers of this model.
        """
        try:
            layers = {whole(layer) for layer in record}
        except TypeError:
            layers = {0}
        if any(not 1 <= layer <= self.depth for layer in layers):
            raise TokredError(f"record takes layers from 1 to {self.depth}, such as (4, 7); got {record!r}.")
        return layers

    @property
    def learned(self) -> bool:
        """Whether a reducer owns parameters, so that the model means nothing before they are fitted."""
        return any(stage.reducer.learned for stage in self.stage_list())

    def __prepare_scriptable__(self) -> None:
        """Called by `torch.jit.script`, which cannot read the methods' code."""
        raise UnsupportedModel(
            "torch.jit.script cannot compile a reduced model; use torch.export, tokred.export or "
            "torch.jit.trace."
        )

    def retarget(self, tokens: tuple[int, ...]) -> None:
        """Change the tokens that the stages keep, as fitting for any budget does at every step.

        Args:
            tokens: patch tokens kept after each stage of the plan. One that was left out of the model for
                keeping all must do so still.

        Raises:
            TokredError: another number of counts than of stages, or a count that a stage cannot keep.
        """
        if len(tokens) != len(self.plan.stages):
            raise TokredError(
                f"The plan has {len(self.plan.stages)} stages, so retarget needs as many counts; got "
                f"{tokens!r}."
            )
        n = num_patches(self.backbone)
        for layer, keep in zip(self.plan.stages, tokens, strict=True):
            key = _key(layer, self.plan.reducer.site)
            if key in self.stages:
                cast("Stage", self.stages[key]).reducer.retarget(n, keep)
            elif keep != n:
                raise TokredError(
                    f"Layer {layer} of this model has no stage, so it cannot keep {keep} of {n} tokens."
                )
            n = keep

    @property
    def recorded_before_first(self) -> set[int]:
        """Layers whose attention the first stage looks at and a dense model must therefore record for it."""
        point = self.first_point
        return {layer for layer in self._looked_at() if point and layer <= point[0] - (point[1] == "pre")}

    @property
    def first_point(self) -> Point | None:
        """Where this model first differs from the dense one; None for the dense model itself."""
        for stage in self.stage_list():
            return stage.layer, stage.reducer.site
        return None

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Logits, [B, classes], of images [B, channels, H, W]."""
        return self.logits(self.run(x, attn_mask))

    def run(self, x: Tensor, attn_mask: Tensor | None = None) -> State:
        """The state after the last layer: final tokens, their sizes and the reductions on the way."""
        if attn_mask is not None:
            raise TokredError("ReducedViT does not support attn_mask, because positions of tokens change.")
        return self.advance(self.embed(x))

    def embed(self, x: Tensor, images: Tensor | None = None) -> State:
        """The state before layer 1 of images x [B, channels, H, W]; `images` [B] are keys for `View.rng`.

        Raises:
            TokredError: the backbone drops patches in training, so that no plan holds; it has another number
                of layers than before; or it cannot take such images.
        """
        if len(self.stages) and parts.drops_patches(self.backbone):
            raise TokredError(
                "This model drops random patches in training, so no plan of its tokens holds; build it with "
                "patch_drop_rate=0, or call eval()."
            )
        if len(self.backbone.blocks) != self.depth:
            raise UnsupportedModel(
                f"The model had {self.depth} layers when it was reduced and has {len(self.backbone.blocks)} "
                "now; reduce it again."
            )
        tokens, rotation = parts.embed(self.backbone, x)
        grid = parts.grid(self.backbone, x)
        return State(tokens, images=images, rotation=rotation, grid=grid)

    def advance(self, state: State, stop: Point | None = None) -> State:
        """Run layers and stages from a state up to a point, whose own stage is not applied, or to the end."""
        end = state
        for _, end in self.walk(state, stop):  # noqa: B007
            pass
        return end

    def walk(self, state: State, stop: Point | None = None) -> Iterator[tuple[str, State]]:
        """As `advance`, part by part: the name of each part and the state after it."""
        while state.layer <= self.depth and (state.layer, state.site) != stop:
            layer, site = state.layer, state.site
            if _key(layer, site) in self.stages:
                state = self.stages[_key(layer, site)](state)
                yield f"the reduction at layer {layer}", state
            state = self._call(self.attend if site == "pre" else self.mlp, state)
            yield f"the {'attention' if site == 'pre' else 'MLP'} of layer {layer}", state

    def _call(self, part: Callable[[State], State], state: State) -> State:
        """A part of a layer, computed again in the backward pass where the backbone asks for that."""
        if self.backbone.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(part, state, use_reentrant=False)
        return part(state)

    def logits(self, state: State) -> Tensor:
        """Logits of a state after the last layer."""
        size = state.size if parts.pools_patches(self.backbone) else None
        return parts.classify(self.backbone, self.backbone.norm(state.x), size)

    def attend(self, state: State) -> State:
        """The state after the attention of its layer, with what entered the scores where that is recorded."""
        block, alive = self._block(state.layer), state.alive
        if alive is not None:
            alive = torch.cat([alive.new_ones(alive.shape[0], self.num_prefix), alive], dim=1)
        rotation = None if state.rotation is None else state.rotation.of(state.layer)
        record = state.layer in self.recorded
        x, attention = parts.attend(block, state.x, self._log_size(state), alive, record, rotation)
        return replace(state, x=x, site="mid", attention=attention)

    def mlp(self, state: State) -> State:
        """The state after the MLP of its layer."""
        x = parts.mlp(self._block(state.layer), state.x)
        return replace(state, x=x, layer=state.layer + 1, site="pre")

    def _block(self, layer: int) -> Any:
        """A block of the backbone, as it is now.

        Raises:
            UnsupportedModel: it has become a module without the parts of a block.
        """
        block = self.backbone.blocks[layer - 1]
        if not (hasattr(block, "attn") and hasattr(block, "mlp")):
            raise UnsupportedModel(
                f"Layer {layer} of the model is now {type(block).__name__}, whose attention and MLP tokred "
                "cannot find; wrap its parts, such as attn and mlp."
            )
        return block

    def _log_size(self, state: State) -> Tensor | None:
        """Additive mask of proportional attention and of padding, [B, 1, 1, P + N]; log 0 is -inf."""
        padded = self.adaptive and len(state.x) > 1 and state.alive is None  # one image has no padding
        size = state.size if self.proportional or padded else None
        if size is None:
            return None
        if not self.proportional:
            size = (size > 0).to(size.dtype)
        if state.alive is not None:  # tokens that are masked in training keep their scores
            size = torch.where(size > 0, size, 1)
        return (
            torch.cat([size.new_ones(size.shape[0], self.num_prefix), size], dim=1)
            .log()
            .to(state.x.dtype)[:, None, None, :]
        )


def _key(layer: int, site: Site) -> str:
    return f"{site}{layer}"
