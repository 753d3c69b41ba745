"""One step of a reduced model: `State`, all that a pass depends on, and `Stage`, a reducer at its place."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokred.core.attention import stand_in
from tokred.core.backbone import has_cls, num_heads
from tokred.core.plan import Plan
from tokred.core.reducer import Attention, Reducer, Site, View
from tokred.core.reduction import History, Mask, Merge, Reduction
from tokred.core.rng import Rng, seeded
from tokred.core.rotation import Rotation
from tokred.errors import TokredError, UnsupportedModel


@dataclass(frozen=True, eq=False)
class State:
    """Everything that the rest of a forward pass depends on.

    Attributes:
        x: [B, P + N, C] tokens, prefix first.
        layer: one-based; the layer that comes next (site "pre"), or whose attention has run (site "mid"). One
            past the last layer when done.
        site: the place in that layer.
        attention: attention of the last layer that ran, where it was recorded.
        images: [B] keys of the images for `View.rng`.
        history: the reductions so far; None before the first.
        rotation: the rotary position embedding of the tokens, where the model has one.
        grid: rows and columns of the images' patches; None where they are those of the model's own size.
    """

    x: Tensor
    layer: int = 1
    site: Site = "pre"
    attention: Attention | None = None
    images: Tensor | None = None
    history: History | None = None
    rotation: Rotation | None = None
    grid: tuple[int, int] | None = None

    @property
    def reductions(self) -> tuple[Reduction, ...]:
        """The decisions of the stages passed so far."""
        return self.history.reductions if self.history else ()

    @property
    def counts(self) -> Tensor:
        """[B, S] int64, tokens that each image had after each of the stages passed so far."""
        counts = [reduction.labels().amax(1) + 1 for reduction in self.reductions]
        return torch.stack(counts, dim=1) if counts else torch.zeros(len(self.x), 0, dtype=torch.long)

    @property
    def size(self) -> Tensor | None:
        """[B, N] patches that each token stands for; None while all are 1."""
        return self.history.size if self.history else None

    @property
    def alive(self) -> Tensor | None:
        """[B, N] in training by masks, 1 for the patch tokens that are still there, else 0."""
        return self.history.alive if self.history else None

    def reduced(self, x: Tensor, reduction: Reduction) -> State:
        """The state after a stage, with its tokens [B, P + M, C] and its decision."""
        rotation = self.rotation and self.rotation.reduced(reduction)
        return replace(self, x=x, history=History(reduction, self.history), rotation=rotation)

    def copy(self) -> State:
        """A copy with its own tensors, so that a method that writes into its view affects no other."""
        a = self.attention
        if a is not None:
            unrotated = None if a.unrotated is None else a.unrotated.clone()
            a = replace(a, q=a.q.clone(), k=a.k.clone(), v=a.v.clone(), unrotated=unrotated)
        return replace(self, x=self.x.clone(), attention=a)


class Stage(nn.Module):
    """A reducer at its place in a model: shows it a view and applies its decision.

    Args:
        reducer: makes the decision.
        layer: the layer, one-based.
        depth: number of layers of the model.
        num_prefix: number of prefix tokens.
        has_cls: whether the first of them is a CLS token.
        seed: the seed of `View.rng`.
        grid: rows and columns of the patches of an image of the model's own size.
    """

    def __init__(
        self,
        reducer: Reducer,
        layer: int,
        depth: int,
        num_prefix: int,
        has_cls: bool,
        seed: int = 0,
        grid: tuple[int, int] = (14, 14),
    ) -> None:
        super().__init__()
        self.reducer = reducer
        self.layer, self.depth, self.num_prefix, self.has_cls = layer, depth, num_prefix, has_cls
        self.seed, self.grid = seed, grid

    @property
    def _name(self) -> str:
        return self.reducer.name or type(self.reducer).__name__

    def _at_size(self, state: State) -> Reducer:
        """The reducer; for images of another size than the model's own, one that keeps tokens at its rate.

        Counts grow and shrink with the number of patches, rounded down. What owns a parameter for each token
        out has one count.
        """
        reducer = self.reducer
        if state.grid in (None, self.grid) or reducer.nested:
            return reducer
        own, patches = math.prod(self.grid), math.prod(state.grid)
        if patches == own:
            return reducer
        n = state.x.shape[1] - self.num_prefix
        if reducer.adaptive() or state.alive is not None:
            n = reducer.n * patches // own
        keep = (reducer.keep - reducer.extra) * patches // own + reducer.extra
        resized: Reducer = stand_in(reducer)
        resized.retarget(n, min(n, max(keep, reducer.floor(n))))
        return resized

    def view(self, state: State) -> View:
        """What the reducer may look at.

        Raises:
            TokredError: the stage was planned for another number of tokens.
        """
        prefix, x = state.x[:, : self.num_prefix], state.x[:, self.num_prefix :]
        adaptive, n = self.reducer.adaptive(), self._at_size(state).n
        fits = x.shape[1] <= n if adaptive else x.shape[1] == n
        if not fits and state.alive is None:
            raise TokredError(
                f"Layer {self.layer} was planned for {n} patch tokens, but this image has "
                f"{x.shape[1]}; plan for the size of your images."
            )
        return View(
            x=x,
            prefix=prefix,
            layer=self.layer,
            depth=self.depth,
            has_cls=self.has_cls,
            grid=state.grid or self.grid,
            rng=Rng(self.seed, state.images, self.layer),
            attention=state.attention,
            history=state.history,
            adaptive=adaptive and len(x) > 1,
        )

    def forward(self, state: State) -> State:
        """Apply the reducer's decision.

        Raises:
            TokredError: the reducer returned no decision, or one that leaves another number of tokens than
                planned; or the stage was planned for another number of tokens.
        """
        reducer = self._at_size(state)
        if reducer.keep == reducer.n and not reducer.adaptive():
            return state  # nothing to remove: the reducer is bypassed
        view = self.view(state)
        # Similarities in bfloat16 are full of ties. Tensors without data have no autocast of their own.
        device = "cpu" if view.x.is_meta else view.x.device.type
        off = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
        with off:
            reduction = reducer(view)
            if not isinstance(reduction, Reduction):
                raise TokredError(
                    f"{self._name}.forward must return Keep, Merge or Mix, not {type(reduction).__name__}."
                )
            if reducer.adaptive() and not isinstance(reduction, Mask):
                if not (isinstance(reduction, Merge) and reduction.drops):
                    raise TokredError(
                        f"{self._name} has a threshold, so it must return Merge(..., drops=True)."
                    )
                reduction = reduction.trimmed()
            x = reduction.apply(state.x, self.num_prefix)
        m = x.shape[1] - self.num_prefix
        if m != reducer.keep and not isinstance(reduction, Mask) and not reducer.adaptive():
            raise TokredError(
                f"{self._name} was to leave {reducer.keep} tokens at layer {self.layer}, but leaves {m}."
            )
        return state.reduced(x, reduction)


def build_stage(backbone: Any, plan: Plan, layer: int, n: int, keep: int, seed: int = 0) -> Stage:
    """The stage of a plan at one layer, from n to keep patch tokens, with parameters drawn by the seed.

    Raises:
        UnsupportedModel: the method needs a CLS token and the model has none.
    """
    cls = plan.reducer
    with seeded(seed + layer):
        reducer = cls(n, keep, backbone.embed_dim, num_heads(backbone), **plan.options)
    if cls.adaptive() and plan.knob is not None:
        reducer.threshold = plan.knob
    reducer.to(backbone.patch_embed.proj.weight.device)
    if reducer.needs_cls and not has_cls(backbone):
        raise UnsupportedModel(
            f"{cls.name} needs a CLS token, which this model does not have; choose another method."
        )
    facts = (len(backbone.blocks), backbone.num_prefix_tokens, has_cls(backbone))
    return Stage(reducer, layer, *facts, seed, backbone.patch_embed.grid_size)
