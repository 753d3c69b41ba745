"""The candidates of a comparison: methods at each budget or knob, with plans and parameters, and controls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tokred.core import registry
from tokred.core.costs import CostTable
from tokred.core.match import Match, at_knob, check_counted, match_each
from tokred.core.options import complete_options, default_options, options_text
from tokred.core.plan import Plan, stages_text
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError, Unfitted, Unreachable
from tokred.evaluation import foreign_plans
from tokred.evaluation.calibration import Calibration
from tokred.evaluation.config import RANDOM, Config, Fixed
from tokred.evaluation.controls import LOWRES, SMALLER, Control, lowres, smaller
from tokred.models import adapters, foreign
from tokred.models.adapters import Adapter
from tokred.models.zoo import Loaded
from tokred.tables.row import BASELINE, Row
from tokred.utils.text import spaced

_STATUS: dict[type, str] = {Unreachable: "unreachable", Unfitted: "unfitted"}


@dataclass(frozen=True, eq=False)
class Candidate:
    """One method or dense control at one budget or knob. It has either a model or a reason not to run.

    Attributes:
        method: name of the method or control.
        budget: fraction of FLOPs to save; None for a method at a knob or token counts and for a control
            without a budget.
        name: name of its predictions: the method, with its budget or knob if there are several.
        protocol: "native", "common" or "custom"; empty for a dense control.
        schedule: the schedule's name where it is not uniform.
        options: complete options of the method; for a dense control, what distinguishes it from others of
            its name.
        match: the plan and its cost; None for a dense control, and if there is no plan.
        control: the dense control; None for a method, and if the control does not exist.
        model: the model to evaluate, or None.
        adapter: the fitted parameters of the model, or None.
        refused: the error that prevents it from running, or None.
    """

    method: str
    budget: float | None
    name: str
    protocol: str = ""
    schedule: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    match: Match | None = None
    control: Control | None = None
    model: ReducedViT | None = None
    adapter: Adapter | None = None
    refused: TokredError | None = None

    @property
    def flops(self) -> int | None:
        """Multiply-accumulates of one image; None without a model."""
        cost = self.control or self.match
        return None if cost is None else cost.flops

    def reduction(self, costs: CostTable) -> float | None:
        """The fraction of the dense model's FLOPs that it saves; None without a model."""
        return None if self.flops is None else 1 - self.flops / costs.dense

    @property
    def unfitted(self) -> bool:
        """Whether it is a learned method with random parameters."""
        return self.model is not None and self.model.learned and self.adapter is None

    def row(self, costs: CostTable, data_hashes: Iterable[str] = ()) -> Row:
        """The columns of its row that are known before the evaluation, except those that all rows share.

        Args:
            costs: the cost table of the dense model.
            data_hashes: hashes of the images; an adapter fitted on images with one of them is marked.
        """
        match, control, adapter = self.match, self.control, self.adapter
        columns: dict[str, Any] = {
            "options": options_text(match.plan.options if match else self.options),
            "protocol": self.protocol,
            "schedule": self.schedule if match else "",
            "training": "none",
        }
        if control:
            columns |= {"reducer_gflops": 0.0, "tokens": str(control.patches)}
        if match:
            columns |= {
                "reducer_gflops": match.reducer_flops / 1e9,
                "stages": spaced(match.plan.stages),
                "tokens": spaced(match.plan.tokens),
                "knob": match.knob,
            }
        if adapter:
            columns |= {
                "training": adapter.card["training"],
                "images_seen": adapter.card["images_seen"],
                "adapter": adapter.hash,
                "fitted_here": any(adapter.saw(digest) for digest in data_hashes),
            }
        if isinstance(adapter, foreign.Checkpoint):  # trained at its own layers
            options = f"{columns['options']} {adapter.trained_at}".strip()
            columns |= {"protocol": "custom", "options": options}
        if self.refused is not None:
            status = _STATUS.get(type(self.refused), "failed")
            columns |= {"status": status, "error": str(self.refused)}
        return Row(
            method=self.method,
            budget=self.budget,
            control=self.method in (LOWRES, SMALLER) or registry.get(self.method).control,
            reduction=self.reduction(costs),
            gflops=None if self.flops is None else self.flops / 1e9,
            unfitted=self.unfitted,
            **columns,
        )


def baseline_row(costs: CostTable) -> Row:
    """The columns of the dense model's row that are known before the evaluation."""
    return Row(BASELINE, reduction=0.0, gflops=costs.dense / 1e9, reducer_gflops=0.0, training="none")


def build(
    config: Config, loaded: Loaded, costs: CostTable, calibration: Calibration | None = None
) -> list[Candidate]:
    """All candidates of a comparison: methods at the budgets, then methods at a knob, then controls.

    `calibration` sets thresholds; by default on a CPU, in float32.

    Raises:
        TokredError: a name or option is unknown, an adapter is for a method that is not compared, or no
            method can run.
    """
    names = list(config.methods or ())
    budgets: tuple[float | None, ...] = config.budgets if config.counts.tokens is None else (None,)
    add_random = config.controls and RANDOM not in names and budgets
    methods = [*names, RANDOM] if add_random else names
    files = _find_adapters(config, names)
    calibration = calibration or Calibration(config, loaded)
    at_budgets = [
        _at_budget(config, loaded, costs, methods, files, budget, calibration) for budget in budgets
    ]
    candidates = [by_method[method] for method in methods for by_method in at_budgets]
    candidates += [_at_knob(config, loaded, costs, files, fixed) for fixed in config.fixed]
    counts = Counter(candidate.name for candidate in candidates)
    repeated = next((name for name, count in counts.items() if count > 1), None)
    if repeated is not None:
        raise TokredError(
            f"Two candidates have the name {repeated}; give each knob once, and its stages too if it equals "
            "a budget."
        )
    compared = [candidate for candidate in candidates if candidate.method in names]
    if all(candidate.model is None for candidate in compared) and compared[0].refused:
        raise compared[0].refused
    return candidates + (_controls(config, loaded, costs) if config.controls else [])


def _find_adapters(config: Config, names: Iterable[str]) -> list[Adapter]:
    files = foreign.find(config.adapters)
    others = [adapter for adapter in files if adapter.card["method"] not in names]
    if files and len(others) == len(files):
        raise TokredError(
            f"The adapter {files[0].path} is for {files[0].card['method']}, "
            "which is not compared; add the method to --methods."
        )
    return files


def _at_budget(
    config: Config,
    loaded: Loaded,
    costs: CostTable,
    methods: Sequence[str],
    files: list[Adapter],
    budget: float | None,
    calibration: Calibration,
) -> dict[str, Candidate]:
    """The candidates of one budget, by method; None for those at the token counts of the schedule."""
    near = foreign_plans.Nearest(files)
    if budget is not None:
        near = foreign_plans.nearest(files, costs, budget, config.options, config.layers, config.counts)
    others = [
        name
        for name in methods
        if not (name in near.matches or name in near.refused or registry.get(name).adaptive())
    ]
    options = {name: _options(name, config, loaded, near.adapters) for name in methods}
    matches, refused = match_each(
        costs,
        others,
        budget,
        protocol=config.protocol,
        stages=config.layers,
        options=options,
        schedule=config.counts,
    )
    matches, refused = {**matches, **near.matches}, {**refused, **near.refused}
    candidates = {}
    for method in methods:
        candidate = Candidate(
            method=method,
            budget=budget,
            name=_name(config, method, budget),
            protocol=config.protocol if config.layers is None else "custom",
            schedule="" if config.counts.uniform else config.counts.name,
            options=complete_options(registry.get(method), options[method]),
            match=matches.get(method),
            refused=refused.get(method),
        )
        if registry.get(method).adaptive():
            candidates[method] = _calibrated(candidate, config, loaded, costs, near.adapters, calibration)
        else:
            candidates[method] = _with_model(candidate, config, loaded, near.adapters)
    return candidates


def _calibrated(
    candidate: Candidate,
    config: Config,
    loaded: Loaded,
    costs: CostTable,
    files: list[Adapter],
    calibration: Calibration,
) -> Candidate:
    """The candidate at the threshold that saves its budget on the images of the calibration.

    A foreign checkpoint has brought its layers.
    """
    method, budget = candidate.method, candidate.budget
    if candidate.refused is not None:
        return candidate
    try:
        check_counted(registry.get(method), config.counts)
        assert budget is not None  # None is for token counts
        start = candidate.match or at_knob(
            costs,
            method,
            registry.get(method).threshold,
            protocol=config.protocol,
            stages=config.layers,
            options=candidate.options,
        )
        candidate = _with_model(replace(candidate, match=start), config, loaded, files)
        if candidate.model is None:
            return replace(candidate, match=None)
        return replace(candidate, match=calibration.match(candidate.model, costs, budget))
    except TokredError as error:
        return replace(candidate, match=None, model=None, refused=error)


def _at_knob(
    config: Config, loaded: Loaded, costs: CostTable, files: list[Adapter], fixed: Fixed
) -> Candidate:
    """The candidate of a method at a value of its knob."""
    match = at_knob(
        costs,
        fixed.method,
        fixed.knob,
        protocol=config.protocol,
        stages=fixed.stages or config.layers,
        options=_options(fixed.method, config, loaded, files),
    )
    candidate = Candidate(method=fixed.method, budget=None, name=fixed.name, protocol="custom", match=match)
    return _with_model(candidate, config, loaded, files)


def _options(method: str, config: Config, loaded: Loaded, files: list[Adapter]) -> dict[str, Any]:
    """The options of a method: those that are set, and else those of its adapter."""
    return adapters.fitted_options(files, method, config.options.get(method, {}), loaded.weights_hash)


def _with_model(candidate: Candidate, config: Config, loaded: Loaded, files: list[Adapter]) -> Candidate:
    """The candidate with its reduced model; refused if it needs fitted parameters and there are none."""
    if candidate.match is None:
        return candidate
    plan, backbone, weights_hash = candidate.match.plan, loaded.model, loaded.weights_hash
    try:
        adapter = adapters.choose(files, plan, weights_hash)
        if adapter is not None:
            model = adapter.apply(backbone, plan, weights_hash, config.seed)
            return replace(candidate, model=model, adapter=adapter)
        model = ReducedViT(backbone, plan, seed=config.seed)
        if model.learned and not config.allow_unfitted:
            raise adapters.unfitted(plan, weights_hash, _fit_command(config, plan))
        return replace(candidate, model=model)
    except TokredError as error:
        return replace(candidate, refused=error)


def _controls(config: Config, loaded: Loaded, costs: CostTable) -> list[Candidate]:
    """The dense controls: one of lower resolution for each budget, and a smaller model if there is one."""
    controls = []
    for budget in config.budgets:
        candidate = Candidate(LOWRES, budget, _name(config, LOWRES, budget))
        try:
            controls.append(_with_control(candidate, lowres(costs, budget)))
        except TokredError as error:
            controls.append(replace(candidate, refused=error))
    control = smaller(loaded, config.img_size)
    return controls + ([_with_control(Candidate(SMALLER, None, SMALLER), control)] if control else [])


def _with_control(candidate: Candidate, control: Control) -> Candidate:
    return replace(candidate, control=control, model=control.model, options=control.options)


def _name(config: Config, method: str, budget: float | None) -> str:
    return method if budget is None or len(config.budgets) == 1 else f"{method}@{budget!r}"


def default_texts(methods: Iterable[str]) -> dict[str, str]:
    """The default options of registered methods, in the form of `Row.options`."""
    known = registry.catalog()
    return {
        name: options_text(default_options(registry.get(name)))
        for name in methods
        if name.partition("[")[0] in known
    }


def _fit_command(config: Config, plan: Plan) -> str:
    """The command that fits a method for this comparison."""
    size = {} if config.img_size is None else {"img-size": str(config.img_size)}
    return adapters.fit_command(
        plan,
        config.model,
        stages=stages_text(config.layers),
        protocol=None if config.protocol == "native" else config.protocol,
        data=config.data,
        weights=config.weights,
        **size,
    )
