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


def reductions(candidates: Iterable[Candidate], costs: CostTable) -> dict[str, float]:
    """The fractions of FLOPs that candidates save, by name; those without a model are left out."""
    saved = {candidate.name: candidate.reduction(costs) for candidate in candidates}
    return {name: reduction for name, reduction in saved.items() if reduction is not None}


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
    builder = _Builder(config, loaded, costs, calibration or Calibration(config, loaded))
    candidates = builder.methods()
    counts = Counter(candidate.name for candidate in candidates)
    repeated = next((name for name, count in counts.items() if count > 1), None)
    if repeated is not None:
        raise TokredError(
            f"Two candidates have the name {repeated}; give each knob once, and its stages too if it equals "
            "a budget."
        )
    compared = [candidate for candidate in candidates if candidate.method in (config.methods or ())]
    if all(candidate.model is None for candidate in compared) and compared[0].refused:
        raise compared[0].refused
    return candidates + (builder.controls() if config.controls else [])


class _Builder:
    """Makes the candidates of one comparison; the arguments are those of `build`."""

    def __init__(self, config: Config, loaded: Loaded, costs: CostTable, calibration: Calibration) -> None:
        self.config, self.loaded, self.costs, self.calibration = config, loaded, costs, calibration

    def methods(self) -> list[Candidate]:
        """Methods at the budgets, or at the token counts of the schedule, then methods at a knob."""
        config, names = self.config, list(self.config.methods or ())
        budgets: tuple[float | None, ...] = config.budgets if config.counts.tokens is None else (None,)
        add_random = config.controls and RANDOM not in names and budgets
        methods = [*names, RANDOM] if add_random else names
        files = foreign.find(config.adapters)
        others = [adapter for adapter in files if adapter.card["method"] not in names]
        if files and len(others) == len(files):
            raise TokredError(
                f"The adapter {files[0].path} is for {files[0].card['method']}, "
                "which is not compared; add the method to --methods."
            )
        at_budgets = [self._at_budget(methods, files, budget) for budget in budgets]
        candidates = [by_method[method] for method in methods for by_method in at_budgets]
        return candidates + [self._at_knob(files, fixed) for fixed in config.fixed]

    def _at_budget(
        self, methods: Sequence[str], files: list[Adapter], budget: float | None
    ) -> dict[str, Candidate]:
        """The candidates of one budget, by method; None for those at the token counts of the schedule."""
        config, near = self.config, foreign_plans.Nearest(files)
        if budget is not None:
            near = foreign_plans.nearest(
                files, self.costs, budget, config.options, config.layers, config.counts
            )
        planned = {*near.matches, *near.refused}
        others = [name for name in methods if name not in planned and not registry.get(name).adaptive()]
        options = {name: self._options(name, near.adapters) for name in methods}
        matches, refused = match_each(
            self.costs,
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
                name=self._name(method, budget),
                protocol=config.protocol if config.layers is None else "custom",
                schedule="" if config.counts.uniform else config.counts.name,
                options=complete_options(registry.get(method), options[method]),
                match=matches.get(method),
                refused=refused.get(method),
            )
            complete = self._calibrated if registry.get(method).adaptive() else self._with_model
            candidates[method] = complete(candidate, near.adapters)
        return candidates

    def _calibrated(self, candidate: Candidate, files: list[Adapter]) -> Candidate:
        """The candidate at the threshold that saves its budget on the images of the calibration.

        A foreign checkpoint has brought its layers.
        """
        method, budget, config = candidate.method, candidate.budget, self.config
        if candidate.refused is not None:
            return candidate
        try:
            check_counted(registry.get(method), config.counts)
            assert budget is not None  # None is for token counts
            start = candidate.match or at_knob(
                self.costs,
                method,
                registry.get(method).threshold,
                protocol=config.protocol,
                stages=config.layers,
                options=candidate.options,
            )
            candidate = self._with_model(replace(candidate, match=start), files)
            if candidate.model is None:
                return replace(candidate, match=None)
            return replace(candidate, match=self.calibration.match(candidate.model, self.costs, budget))
        except TokredError as error:
            return replace(candidate, match=None, model=None, refused=error)

    def _at_knob(self, files: list[Adapter], fixed: Fixed) -> Candidate:
        """The candidate of a method at a value of its knob."""
        match = at_knob(
            self.costs,
            fixed.method,
            fixed.knob,
            protocol=self.config.protocol,
            stages=fixed.stages or self.config.layers,
            options=self._options(fixed.method, files),
        )
        candidate = Candidate(fixed.method, None, fixed.name, protocol="custom", match=match)
        return self._with_model(candidate, files)

    def _options(self, method: str, files: list[Adapter]) -> dict[str, Any]:
        """The options of a method: those that are set, and else those of its adapter."""
        chosen = self.config.options.get(method, {})
        return adapters.fitted_options(files, method, chosen, self.loaded.weights_hash)

    def _with_model(self, candidate: Candidate, files: list[Adapter]) -> Candidate:
        """The candidate with its reduced model; refused if it needs fitted parameters and there are none."""
        if candidate.match is None:
            return candidate
        plan, backbone, weights_hash = candidate.match.plan, self.loaded.model, self.loaded.weights_hash
        try:
            adapter = adapters.choose(files, plan, weights_hash)
            if adapter is not None:
                model = adapter.apply(backbone, plan, weights_hash, self.config.seed)
                return replace(candidate, model=model, adapter=adapter)
            model = ReducedViT(backbone, plan, seed=self.config.seed)
            if model.learned and not self.config.allow_unfitted:
                raise adapters.unfitted(plan, weights_hash, self._fit_command(plan))
            return replace(candidate, model=model)
        except TokredError as error:
            return replace(candidate, refused=error)

    def controls(self) -> list[Candidate]:
        """The dense controls: lower resolution for each budget, and a smaller model if there is one."""
        controls = []
        for budget in self.config.budgets:
            candidate = Candidate(LOWRES, budget, self._name(LOWRES, budget))
            try:
                controls.append(_with_control(candidate, lowres(self.costs, budget)))
            except TokredError as error:
                controls.append(replace(candidate, refused=error))
        control = smaller(self.loaded, self.config.img_size)
        return controls + ([_with_control(Candidate(SMALLER, None, SMALLER), control)] if control else [])

    def _name(self, method: str, budget: float | None) -> str:
        return method if budget is None or len(self.config.budgets) == 1 else f"{method}@{budget!r}"

    def _fit_command(self, plan: Plan) -> str:
        """The command that fits a method for this comparison."""
        config = self.config
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


def _with_control(candidate: Candidate, control: Control) -> Candidate:
    return replace(candidate, control=control, model=control.model, options=control.options)


def default_texts(methods: Iterable[str]) -> dict[str, str]:
    """The default options of registered methods, in the form of `Row.options`."""
    known = registry.catalog()
    return {
        name: options_text(default_options(registry.get(name)))
        for name in methods
        if name.partition("[")[0] in known
    }
