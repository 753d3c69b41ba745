"""The Python interface: `reduce` a model, `compare` methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokred.core import registry
from tokred.core.costs import CostTable
from tokred.core.match import match
from tokred.core.plan import Protocol
from tokred.core.vit import ReducedViT, check_supported
from tokred.errors import TokredError
from tokred.evaluation import foreign_plans
from tokred.models import adapters, foreign, tensor_files

if TYPE_CHECKING:
    from tokred.evaluation.comparison import Comparison


def reduce(
    model: Any,
    method: str,
    budget: float = 0.3,
    *,
    protocol: Protocol = "native",
    stages: tuple[int, ...] | None = None,
    seed: int = 0,
    adapter: str | Path | None = None,
    allow_unfitted: bool = False,
    **options: Any,
) -> ReducedViT:
    """Wrap a timm ViT so that it saves the fraction `budget` of its FLOPs by `method`.

    The model itself is not changed and its weights are not copied. The plan is in `.plan` of the result.

    Args:
        model: a timm `VisionTransformer` of standard blocks.
        method: a registered name (`tokred methods` lists them).
        budget: between 0 and 1.
        protocol: "native" for the method's published layers, "common" for 4, 7, 10.
        stages: layers, one-based, that take the place of the protocol's.
        seed: seed for methods that draw random numbers.
        adapter: fitted parameters, a file or a folder of them; by default those that tokred ships for these
            very weights. With an adapter of a full fit the result holds that fit's own backbone.
        allow_unfitted: give a learned method that has no adapter random parameters, to train them yourself.
        options: options of the method.

    Raises:
        TokredError: unknown names, an unsupported model, a budget that the method cannot reach, a learned
            method without an adapter, or an adapter that is for something else.
    """
    check_supported(model)
    registry.get(method)
    if adapter is not None and not isinstance(adapter, (str, Path)):
        raise TokredError(f"An adapter is given by the path of its file or folder; got {adapter!r}.")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise TokredError(
            "This model is on the meta device, without weights; call to_empty and load its weights first."
        )
    given, costs = [] if adapter is None else foreign.find([adapter]), CostTable(model)
    near = foreign_plans.nearest(given, costs, budget, {method: options}, stages)
    if method in near.refused:
        raise near.refused[method]
    weights_hash = tensor_files.hash_weights(model)
    options = adapters.fitted_options(near.adapters, method, options, weights_hash)
    found = near.matches.get(method) or match(
        costs, method, budget, protocol=protocol, stages=stages, options=options
    )
    costs.save()
    plan = found.plan
    reduced = ReducedViT(model, plan, seed=seed)
    if adapter is None and not reduced.learned:
        return reduced
    chosen = adapters.choose(near.adapters, plan, weights_hash)
    if chosen is not None:
        return chosen.apply(model, plan, weights_hash, seed)
    if adapter is not None:
        raise TokredError(
            f"There is no adapter of {method} at {adapter}; train one with `tokred fit {method}`."
        )
    if not allow_unfitted:
        layers = None if stages is None else " ".join(map(str, stages))
        command = adapters.fit_command(
            plan, "MODEL", stages=layers, protocol=None if protocol == "native" else protocol, weights="FILE"
        )
        raise adapters.unfitted(plan, weights_hash, command, setting="adapter")
    return reduced


def compare(
    model: str = "deit_s",
    budget: float | Sequence[float] = 0.3,
    out: str | Path | None = None,
    workers: int | None = None,
    **settings: Any,
) -> Comparison:
    """Compare methods on one model at one budget or several; `settings` are the other fields of `Config`.

    Raises:
        TokredError: see `Job`.
    """
    from tokred.evaluation.comparison import Job
    from tokred.evaluation.config import Config
    from tokred.report import outputs

    config = Config.from_mapping({"model": model, "budgets": budget, **settings})
    job = Job(config, outputs=outputs.files)
    if out:
        job.open(Path(out))
    return job.run(workers)
