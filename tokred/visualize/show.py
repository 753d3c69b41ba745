"""`show`: make a gallery from images, methods and budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tokred.core.costs import CostTable
from tokred.data import preflight, sources, user_images
from tokred.data.source import Source
from tokred.data.user_images import Given
from tokred.errors import TokredError
from tokred.evaluation import builder
from tokred.evaluation.config import Config
from tokred.evaluation.engine import dense_model, evaluate
from tokred.evaluation.inputs import load_weights, open_images, prepare
from tokred.models import zoo
from tokred.utils.devices import resolve_precision
from tokred.utils.distributed import Processes
from tokred.utils.text import plain_name, spaced, visible
from tokred.visualize import trace
from tokred.visualize.gallery import Gallery
from tokred.visualize.sheet import check_extent
from tokred.visualize.trace import Map

Layers = Literal["last", "all"] | tuple[int, ...]
_FEW = 4  # stages; of a method with more, only the last is drawn


def show(
    images: Sequence[Given] = (),
    methods: Sequence[str] = (),
    budget: float | Sequence[float] = 0.3,
    model: str = "deit_s",
    *,
    index: Sequence[int] | None = None,
    disagree: int | None = None,
    layers: Layers = "last",
    size: int | None = None,
    **settings: Any,
) -> Gallery:
    """Draw the tokens that methods merge, keep and drop in images, and their predictions.

    Args:
        images: files or Pillow images; by default those of the data set.
        methods: names of methods or groups; by default those of the group "core".
        budget: the fraction of FLOPs to save, or several.
        model: a name of tokred or timm.
        index: indices of images in the data set; by default the first three.
        disagree: number of images to show, those on which models disagree most among the first `limit` of
            the data set, by default 64.
        layers: "last" for the last stage, "all" for a row after each stage, or the layers after which to
            draw.
        size: longer side of each picture in pixels.
        settings: the other fields of `Config`. With `images`, `data` is the data set whose weights and class
            names are used.

    Raises:
        TokredError: the input is invalid, or no method can run.
    """
    config = Config.from_mapping({"model": model, "budgets": budget, "methods": methods or None, **settings})
    return Showing(config, images, index, disagree, layers, size).run()


class Showing:
    """A gallery with checked input, made by `run`. The arguments are those of `show`.

    Raises:
        TokredError: the input is invalid. This is known before any model runs.
    """

    def __init__(
        self,
        config: Config,
        images: Sequence[Given] = (),
        index: Sequence[int] | None = None,
        disagree: int | None = None,
        layers: Layers = "last",
        size: int | None = None,
    ) -> None:
        _check(images, index, disagree, size)
        self.config, self.images, self.disagree = config, images, disagree
        self.layers, self.size = layers, size
        files = user_images.source(images) if images else None
        data = None if images and config.data is None else open_images(config)
        self.loaded = self._load(data)
        if data is not None and not images:
            own = config.weights is not None
            data = preflight.align(data, self.loaded.model.num_classes, self.loaded.weights, own=own)
        self.source = files or data or user_images.source(images)
        self.index = user_images.check_index(self.source, index, default=len(images) or 3)
        self.names = user_images.class_names(data, self.loaded)
        self.preparation = prepare(config, self.loaded, data)
        self.device = Processes.device(config.device)
        self.dtype = resolve_precision(config.precision, self.device)
        self._plan()

    @property
    def file_name(self) -> str:
        """The default name of the picture."""
        if self.images:
            what = Path(user_images.names(self.images)[0]).stem
        else:
            chosen = f"{self.disagree}-disputed" if self.disagree else "-".join(map(str, self.index[:6]))
            what = f"{self.source.name}-{chosen}"
        budgets = [f"{budget:g}" for budget in self.config.budgets]
        return "-".join(["show", plain_name(self.config.model), plain_name(what), *budgets]) + ".png"

    def _load(self, data: Source | None) -> zoo.Loaded:
        try:
            return load_weights(self.config, data)
        except TokredError as error:
            named = self.config.data is not None or self.config.weights is not None
            if not self.images or named or "cannot be loaded" not in str(error):
                raise
            hint = f"use the shipped weights for PhotoDigits with --data {sources.PHOTODIGITS}"
            raise TokredError(f"{str(error).rstrip('.')}, or {hint}.") from error

    def _plan(self) -> None:
        costs, model = CostTable(self.loaded.model), self.loaded.model
        self.candidates = builder.build(replace(self.config, controls=False), self.loaded, costs)
        models = {candidate.name: candidate.model for candidate in self.candidates}
        self.models = {name: model for name, model in models.items() if model is not None}
        self.rows = {candidate.name: candidate.row(costs) for candidate in self.candidates}
        depth = len(model.blocks)
        if not isinstance(self.layers, str) and not all(1 <= layer <= depth for layer in self.layers or (0,)):
            expected = f'last, all, or layers from 1 to {depth}, such as "4 7 10"'
            raise TokredError(f"--show-stages takes {expected}; got {spaced(self.layers)!r}.")
        rows = {"all": 5, "last": 1}[self.layers] if isinstance(self.layers, str) else len(self.layers)
        images = self.disagree or len(self.index)
        check_extent(images, len(self.models), rows, model.patch_embed.img_size, self.size)
        self.gflops = costs.dense / 1e9

    def run(self) -> Gallery:
        """Run all models over the images.

        Raises:
            TokredError: an image cannot be read, or the dense model fails.
        """
        index = self.index if self.disagree is None else self._disagreeing(self.disagree)
        batches = trace.load(self.source, self.preparation, index, self.config.batch_size or 16)
        traced = trace.trace(self.loaded.model, self.models, batches, device=self.device, dtype=self.dtype)
        for name, reason in traced.failed.items():
            self.rows[name] = replace(self.rows[name], status="failed", error=reason)
        numbered = [f"{self.source.split} {i}" for i in index]
        captions = user_images.names(self.images) if self.images else numbered
        budgets, counts = [f"{100 * budget:g}" for budget in self.config.budgets], self.config.counts
        saved = f", {', '.join(budgets)} % fewer FLOPs" if budgets else ""
        saved += "" if counts.uniform else f", {counts.name} schedule"
        where = "" if self.images else f" on {self.source.name}, {self.source.split} split"
        return Gallery(
            traced=traced,
            rows=self.rows,
            gflops=self.gflops,
            names=self.names,
            captions=[visible(caption) for caption in captions],
            title=visible(f"{self.config.model}{where}{saved}"),
            subtitle=visible(f"Weights: {self.loaded.weights}."),
            layers=shown_layers(list(traced.maps.values()), self.layers),
            size=self.size,
        )

    def _disagreeing(self, count: int) -> list[int]:
        """The indices of the images on which models disagree most."""
        source = self.source.limit(self.config.limit or 64)
        batches = trace.load(source, self.preparation, range(len(source)), self.config.batch_size or 16)
        dense = dense_model(self.loaded.model, self.models.values())
        evaluation = evaluate(dense, self.models, batches, len(source), device=self.device, dtype=self.dtype)
        return [int(i) for i in trace.choose(evaluation, count)]


def _check(
    images: Sequence[Given], index: Sequence[int] | None, disagree: int | None, size: int | None
) -> None:
    if sum((bool(images), index is not None, disagree is not None)) > 1:
        raise TokredError(
            "Give only one of image files, --index and --disagree, which all choose the images."
        )
    if size is not None and not 32 <= size <= 2048:
        raise TokredError(f"--size is the longer side of each picture, from 32 to 2048 pixels; got {size}.")
    if disagree is not None and disagree < 1:
        raise TokredError(
            f"--disagree is the number of images to show and must be at least 1, got {disagree}."
        )


def shown_layers(maps: Sequence[Map], layers: Layers) -> tuple[int, ...]:
    """The layers after which to draw; empty for the last stage alone.

    "all" means after each stage of any model. Of a model with more than four stages only the last one is
    drawn; if all models have more, four stages of the longest plan are drawn.
    """
    if layers == "last":
        return ()
    if layers != "all":
        return tuple(sorted(set(layers)))
    few = [tokens.layers for tokens in maps if 0 < len(tokens.layers) <= _FEW]
    many = [tokens.layers for tokens in maps if len(tokens.layers) > _FEW]
    chosen = {layer for plan in few for layer in plan} | {plan[-1] for plan in many}
    if many and not few:
        longest = max(many, key=len)
        chosen |= {longest[round(len(longest) * part / _FEW) - 1] for part in range(1, _FEW + 1)}
    return tuple(sorted(chosen))
