"""The Python interface: `reduce` a model, `compare` methods."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from tokred.core import registry
from tokred.core.backbone import check_supported
from tokred.core.calibrate import calibrate
from tokred.core.costs import CostTable
from tokred.core.match import Match, at_knob, at_tokens, check_counted, match
from tokred.core.plan import Plan, Protocol, counts_at_rate, resolve_stages
from tokred.core.reducer import Reducer
from tokred.core.schedule import UNIFORM, Schedule, choose
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError
from tokred.evaluation import foreign_plans
from tokred.models import adapters, foreign, tensor_files, zoo
from tokred.utils.devices import evaluating
from tokred.utils.text import spaced

if TYPE_CHECKING:
    from tokred.evaluation.comparison import Comparison


def reduce(
    model: Any,
    method: str,
    budget: float | None = None,
    *,
    keep: float | None = None,
    tokens: Sequence[int] | None = None,
    protocol: Protocol = "native",
    stages: Sequence[int] | Literal["all"] | None = None,
    schedule: str | Mapping[str, Any] | Schedule | None = None,
    threshold: float | None = None,
    images: Iterable[Tensor] | None = None,
    seed: int = 0,
    adapter: str | Path | None = None,
    allow_unfitted: bool = False,
    **options: Any,
) -> ReducedViT:
    """Wrap a timm ViT so that it saves the fraction `budget` of its FLOPs by `method`.

    The model itself is not changed and its weights are not copied. The result is a timm model too;
    `reduced.tokred` describes the reduction.

    Args:
        model: a timm `VisionTransformer` or `Eva` of standard blocks.
        method: a registered name (`tokred methods` lists them).
        budget: fraction of FLOPs to save, between 0 and 1, by default 0.3. Give at most one of `budget`,
            `keep`, `tokens` and `threshold`.
        keep: fraction of its patch tokens that each stage keeps.
        tokens: patch tokens kept after each stage.
        protocol: "native" for the method's published layers, "common" for 4, 7, 10.
        stages: layers, one-based, or "all", instead of the protocol's.
        schedule: name or YAML file of layers and token counts for any method, see docs/protocols.md.
        threshold: between 0 and 1, for a method whose counts depend on the image.
        images: batches of prepared images [B, channels, H, W] on which that threshold is calibrated, so that
            they save the budget on average: training or unlabelled images, not those of the test.
        seed: seed for methods that draw random numbers.
        adapter: fitted parameters, a file or a folder of them; by default those that tokred ships for these
            very weights. With the adapter of a full fit, the result has the backbone of that fit.
        allow_unfitted: give random parameters to a learned method without an adapter, to train them yourself.
        options: options of the method.

    Raises:
        TokredError: unknown names, an unsupported model, a budget that the method cannot reach, a learned
            method without an adapter, or an adapter for another method, model or plan.
    """
    check_supported(model)
    if adapter is not None and not isinstance(adapter, (str, Path)):
        raise TokredError(f"An adapter is given by the path of its file or folder; got {adapter!r}.")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise TokredError(
            "This model is on the meta device, without weights; call to_empty and load its weights first."
        )
    counts = choose(schedule, tokens) or UNIFORM
    if sum(value is not None for value in (budget, keep, counts.tokens, threshold)) > 1:
        raise TokredError("Give one of budget, keep, tokens and threshold; a schedule may have tokens.")
    cls = registry.get(method)
    _check_counts(cls, keep is not None or counts.tokens is not None, threshold, images)
    _check_schedule(counts, model, keep, stages)
    stages = counts.stages if stages is None else stages
    budget = 0.3 if budget is None else budget
    given, costs = [] if adapter is None else foreign.find([adapter]), CostTable(model)
    stages = None if stages is None else resolve_stages(cls, costs.depth, protocol, stages)
    shaped = UNIFORM if counts.tokens else counts
    near = foreign_plans.nearest(given, costs, budget, {method: options}, stages, shaped)
    if method in near.refused:
        raise near.refused[method]
    # Without an adapter of the method nobody asks for the hash, which reads all weights.
    weights_hash = tensor_files.hash_weights(model) if adapters.of_method(near.adapters, method) else ""
    options = adapters.fitted_options(near.adapters, method, options, weights_hash)
    place: Any = {"protocol": protocol, "stages": stages, "options": options}
    plan = _plan(costs, method, near.matches.get(method), budget, keep, counts, threshold, place)
    costs.save()
    reduced = ReducedViT(model, plan, seed=seed)
    if adapter is not None or reduced.learned:
        chosen = adapters.choose(near.adapters, plan, weights_hash)
        if chosen is not None:
            reduced = chosen.apply(model, plan, weights_hash, seed)
        elif adapter is not None:
            raise TokredError(
                f"There is no adapter of {method} at {adapter}; train one with `tokred fit {method}`."
            )
        elif not allow_unfitted:
            command = adapters.fit_command(
                plan,
                "MODEL",
                stages=None if stages is None else spaced(stages),
                protocol=None if protocol == "native" else protocol,
                weights="FILE",
            )
            raise adapters.unfitted(plan, weights_hash, command, setting="adapter")
    return reduced if images is None else _calibrated(reduced, costs, budget, images)


REDUCE_SETTINGS = frozenset(inspect.signature(reduce).parameters) - {"model", "method", "options"}


def _check_counts(
    cls: type[Reducer], fixed: bool, threshold: float | None, images: Iterable[Tensor] | None
) -> None:
    """Refuse settings of token counts that do not suit the method; `fixed` if `keep` or `tokens` is given."""
    if not cls.adaptive():
        if threshold is not None or images is not None:
            raise TokredError(
                f"{cls.name} keeps as many tokens of every image and takes no threshold or images; give a "
                "budget, keep or tokens."
            )
    elif (
        fixed
        or (threshold is None) == (images is None)
        or not isinstance(0 if threshold is None else threshold, Real)
        or not isinstance(() if images is None else images, Iterable)
    ):
        raise TokredError(
            f"How many tokens {cls.name} keeps depends on the image: give images, on which its threshold is "
            "set for a budget, or else a threshold between 0 and 1."
        )


def _calibrated(reduced: ReducedViT, costs: CostTable, budget: float, images: Iterable[Tensor]) -> ReducedViT:
    """The model with its threshold calibrated on `images`; its training modes stay as they are."""
    batches = [images] if isinstance(images, Tensor) else images
    with evaluating(reduced):
        calibrate(reduced, costs, budget, batches)
    return reduced


def _check_schedule(
    counts: Schedule, model: Any, keep: float | None, stages: Sequence[int] | Literal["all"] | None
) -> None:
    """Refuse a schedule that contradicts the model or the other arguments."""
    if counts.shape != "uniform" and keep is not None:
        raise TokredError(f"keep makes a uniform schedule; give a budget for the schedule {counts.name}.")
    if stages is not None and counts.stages is not None:
        raise TokredError(f"The schedule {counts.name} has its own layers; leave out stages.")
    architecture = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if architecture:  # a model that timm did not make has no name to compare
        zoo.check_made_for(counts, architecture)


def _plan(
    costs: CostTable,
    method: str,
    own: Match | None,
    budget: float,
    keep: float | None,
    counts: Schedule,
    threshold: float | None,
    place: Mapping[str, Any],
) -> Plan:
    """The plan by what sets the token counts; `own` is that of a foreign checkpoint."""
    cls = registry.get(method)
    if cls.adaptive():
        check_counted(cls, counts)
        if own is not None:  # a checkpoint has its own layers and options
            place = {**place, "stages": own.plan.stages, "options": dict(own.plan.options)}
        return at_knob(costs, method, cls.threshold if threshold is None else threshold, **place).plan
    if counts.tokens is not None:
        return at_tokens(costs, method, counts.tokens, **place).plan
    if keep is None:
        return (own or match(costs, method, budget, schedule=counts, **place)).plan
    if isinstance(keep, bool) or not isinstance(keep, Real) or not 0 < keep <= 1:
        raise TokredError(f"keep is the fraction of tokens that a stage keeps, such as 0.7; got {keep!r}.")
    layers = place["stages"] or resolve_stages(cls, costs.depth, place["protocol"])
    tokens = counts_at_rate(cls, costs.n, len(layers), float(keep))
    return Plan(method, layers, tokens, place["options"])


def compare(
    model: str = "deit_s",
    budget: float | Sequence[float] = 0.3,
    out: str | Path | None = None,
    workers: int | None = None,
    **settings: Any,
) -> Comparison:
    """Compare methods on one model at one budget or several, as `tokred compare` does.

    Args:
        model: name of the dense model, as for `--model`.
        budget: fraction of FLOPs to save, or several.
        out: folder for the results, in which the run can be resumed; by default nothing is written.
        workers: processes that load images.
        settings: other fields of `Config`, such as `methods` and `data`.

    Raises:
        TokredError: `workers` is no number of processes; else see `Job`.
    """
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 0):
        raise TokredError(f"workers is the number of processes that load images, 0 or more; got {workers!r}.")
    from tokred.evaluation.comparison import Job
    from tokred.evaluation.config import Config
    from tokred.report import outputs

    config = Config.from_mapping({"model": model, "budgets": budget, **settings})
    job = Job(config, outputs=outputs.files)
    if out:
        job.open(Path(out))
    return job.run(workers)
