"""Building the candidates of a comparison: methods with plans and parameters, and dense controls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tokred.core import registry
from tokred.core.costs import CostTable
from tokred.core.match import at_knob, check_counted, match_each
from tokred.core.options import complete_options
from tokred.core.plan import Plan, stages_text
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError
from tokred.evaluation import foreign_plans
from tokred.evaluation.calibration import Calibration
from tokred.evaluation.candidates import Candidate
from tokred.evaluation.config import RANDOM, Config, Fixed
from tokred.evaluation.controls import LOWRES, SMALLER, Control, lowres, smaller
from tokred.models import adapters, foreign
from tokred.models.adapters import Adapter
from tokred.models.zoo import Loaded


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
