"""One pass over the data for all methods: images are decoded once, and layers shared by plans run once.

Plans form a tree. Its trunk is the dense model, and a method branches off at its first stage: on each batch
the dense model runs up to that point, and the method continues from a copy of the state there. Methods that
branch off at the same point run one after the other, so that memory does not grow with their number. The
results equal those of running each model alone on the same batches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokred.core.reducer import View
from tokred.core.rules import broken_rule
from tokred.core.stage import State
from tokred.core.vit import Point, ReducedViT
from tokred.data.loading import Batch
from tokred.errors import TokredError
from tokred.evaluation.features import Features, distances, features_of
from tokred.evaluation.lanes import Lanes, Portions
from tokred.evaluation.predictions import Evaluation, Failure, finite
from tokred.utils.devices import autocast, is_out_of_memory

_START: Point = (1, "pre")


class Pass:
    """One pass over some batches.

    Args:
        dense: the dense model, which records the attention that `methods` need; see `dense_model`.
        methods: reduced models by name, on the dense model's backbone or, after a full fit, on their own.
        evaluation: predictions to fill in.
        device: device to run on; the models are moved there.
        dtype: dtype of matrix products; autocast is used unless it is float32.

    Attributes:
        waiting: fraction of worker time spent waiting for images.
        encodes: whether the models have no classifier, so that features are compared instead of predictions.
    """

    def __init__(
        self,
        dense: ReducedViT,
        methods: Mapping[str, ReducedViT],
        evaluation: Evaluation,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dense, self.methods, self.evaluation, self.dtype = dense, methods, evaluation, dtype
        self.device = device or torch.device("cpu")
        self.encodes = dense.backbone.num_classes < 1
        self.waiting = 0.0
        self._portions = Portions(self.device, evaluation.shrink)
        self._checked = set[str]()  # methods whose reductions were checked, or that failed
        for model in (dense, *methods.values()):
            model.to(self.device).eval()
        for name, model in methods.items():
            if model.adaptive:  # before threads enter counts
                evaluation.methods[name].count(
                    np.empty(0, dtype=np.int64), np.empty((0, len(model.stages)), dtype=np.int32)
                )

    def run(
        self,
        batches: Iterable[Batch],
        finished: Callable[[np.ndarray], None] = lambda indices: None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Evaluation:
        """Evaluate all batches.

        Args:
            batches: the batches.
            finished: function called with the indices of each batch, in order.
            meanwhile: function called about once a second while a batch is awaited. The most likely classes
                of the methods that have run on it are there.

        Raises:
            TokredError: the logits of the dense model are not finite, or it does not fit into memory.
        """
        lanes = Lanes(self.device)
        try:
            lanes.run(self._evaluate, batches, finished, meanwhile)
        finally:
            self.waiting = lanes.idle
        return self.evaluation

    def _evaluate(self, batch: Batch) -> np.ndarray:
        methods = {name: _isolated(model, name not in self._checked) for name, model in self.methods.items()}
        self._portions.run(lambda part: self._run(methods, part), batch)
        self._checked |= methods.keys()
        indices = batch.indices.numpy()
        self.evaluation.remark(batch.unreadable, batch.kinds)
        self.evaluation.done[indices] = True
        return indices

    @torch.inference_mode()
    def _run(self, methods: Mapping[str, ReducedViT], batch: Batch) -> None:
        """Run all models on a batch and store their predictions."""
        dense = self.dense
        self.evaluation.labels[batch.indices.numpy()] = batch.labels.numpy()
        tensors = (batch.images, batch.labels, batch.indices)
        images, labels, index = (tensor.to(self.device, non_blocking=True) for tensor in tensors)
        logits: dict[str, Tensor | None] = {}
        with autocast(self.device, self.dtype):
            state = dense.embed(images, index)
            target = self._dense_features(state.copy(), images, index) if self.encodes else None
            for point, names in _branches(dense, methods).items():
                state = dense.advance(state, stop=point)
                for name in names:
                    shared = state if methods[name].backbone is dense.backbone else None
                    logits[name] = self._branch(name, methods[name], shared, images, index, target)
            if target is not None:
                return
            dense_logits = self._finite(dense.logits(dense.advance(state)), images, index)
        indices = batch.indices.numpy()
        self.evaluation.dense.put(indices, dense_logits, labels, dense_logits)
        for name, output in logits.items():
            if output is not None:
                self.evaluation.methods[name].put(indices, output, labels, dense_logits)

    def _dense_features(self, state: State, images: Tensor, index: Tensor) -> Features:
        """The dense model's features of a batch, which those of the methods are compared with at once."""
        state = self.dense.advance(state)
        pooled = self._finite(self.dense.logits(state), images, index)
        target = features_of(self.dense, state, pooled)
        self.evaluation.dense.compare(index.cpu().numpy(), distances(target, target))
        return target

    def _finite(self, output: Tensor, images: Tensor, index: Tensor) -> Tensor:
        """The output of the dense model; a `TokredError` if it is not finite."""
        if not finite(output):
            place = _first_not_finite(self.dense, images, index)
            raise TokredError(
                f"The output of the dense model is not finite, first in {place}, {_span(index)}; "
                "check its weights."
            )
        return output

    def _branch(
        self,
        name: str,
        model: ReducedViT,
        shared: State | None,
        images: Tensor,
        index: Tensor,
        target: Features | None,
    ) -> Tensor | None:
        """Logits of a method on a batch, from the state shared with the dense model or else from the images.

        Without a classifier, where the dense model's features are the `target`, features are entered. None if
        the method fails on this batch or has failed before; the other methods continue.
        """
        first, failure = int(index[0]), self.evaluation.failed.get(name)
        if failure is not None and failure.image < first:
            return None
        try:
            # A copy, since a reducer may change its inputs in place.
            start = model.embed(images, index) if shared is None else shared.copy()
            state = model.advance(start)
            logits = model.logits(state)
            if finite(logits):
                if model.adaptive:
                    self.evaluation.methods[name].count(index.cpu().numpy(), state.counts.cpu().numpy())
                if target is not None:
                    parts = distances(features_of(model, state, logits), target)
                    self.evaluation.methods[name].compare(index.cpu().numpy(), parts)
                else:
                    self.evaluation.methods[name].choose(index.cpu().numpy(), logits)
                return logits
            place = _first_not_finite(model, images, index)
            reason = f"The output of {name} is not finite, first in {place}, {_span(index)}."
        except (Exception, SystemExit) as error:  # code of a method can raise anything
            exits = isinstance(error, SystemExit)
            text = f"{name} raises SystemExit." if exits else f"{error}".strip() or type(error).__name__
            reason = text.splitlines()[0]
            if is_out_of_memory(error):
                if len(images) > 1:
                    raise
                self._portions.limit = None  # memory was too small for this method only
        self.evaluation.fail(name, Failure(first, reason))
        return None


def evaluate(
    dense: ReducedViT, methods: Mapping[str, ReducedViT], batches: Iterable[Batch], n: int, **settings: Any
) -> Evaluation:
    """Run the dense model and all methods over n images, see `Pass.run`; `settings` are those of `Pass`."""
    return Pass(dense, methods, Evaluation.empty(n, methods), **settings).run(batches)


def dense_model(backbone: Any, methods: Iterable[ReducedViT]) -> ReducedViT:
    """The dense model, recording the attention that the first stage of each method uses."""
    record = set().union(*(model.recorded_before_first for model in methods if model.backbone is backbone))
    return ReducedViT(backbone, record=record)


def _isolated(model: ReducedViT, check: bool = False) -> ReducedViT:
    """A copy of the model with its own reducers on shared parameters, since a reducer may have state.

    With `check`, a reduction that breaks a rule raises a `TokredError`.
    """
    isolated = copy.copy(model)
    shared = {id(parameter): parameter for parameter in model.stages.parameters()}
    isolated._modules = {**model._modules, "stages": copy.deepcopy(model.stages, shared)}
    for stage in isolated.stage_list() if check else ():
        stage.reducer.register_forward_hook(_check)
    return isolated


def _check(reducer: Any, inputs: tuple[View], decision: object) -> None:
    batch, n = inputs[0].x.shape[:2]
    keep = None if reducer.adaptive() else reducer.keep
    rule = broken_rule(decision, batch, n, keep, inputs[0].valid if keep is None else None)
    if rule:
        raise TokredError(rule)


def _branches(dense: ReducedViT, methods: Mapping[str, ReducedViT]) -> dict[Point, list[str]]:
    """Names of methods by the point at which they branch off the dense model, in the order of its layers."""
    branches: dict[Point, list[str]] = {}
    for name, model in methods.items():
        point = model.first_point if model.backbone is dense.backbone else None
        branches.setdefault(point or _START, []).append(name)
    return dict(sorted(branches.items(), key=lambda branch: (branch[0][0], branch[0][1] == "mid")))


def _first_not_finite(model: ReducedViT, images: Tensor, index: Tensor) -> str:
    """The first part of a model whose output is not finite."""
    state = model.embed(images, index)
    if not finite(state.x):
        return "the patch embedding"
    return next((part for part, after in model.walk(state) if not finite(after.x)), "the classifier")


def _span(index: Tensor) -> str:
    return f"on images {int(index[0])} to {int(index[-1])}"
