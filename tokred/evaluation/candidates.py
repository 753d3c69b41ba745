"""The entries of a comparison: methods at each budget or knob, with plan and parameters, or why there are none; and controls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tokred.core import registry
from tokred.core.flops import CostTable
from tokred.core.match import Match, at_knob, match_each
from tokred.core.options import complete_options, options_text
from tokred.core.plan import Plan
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError, Unfitted, Unreachable
from tokred.evaluation import foreign_plans
from tokred.evaluation.config import Config, Fixed, method_names
from tokred.evaluation.controls import LOWRES, RANDOM, SMALLER, Control, lowres, smaller
from tokred.models import adapters, foreign
from tokred.models.adapters import Adapter
from tokred.models.zoo import Loaded
from tokred.tables.row import BASELINE, Row
from tokred.utils.text import spaced

_STATUS: dict[type, str] = {Unreachable: "unreachable", Unfitted: "unfitted"}


@dataclass
class Entry:
    """One method, or dense control, at one budget or knob.

    Attributes:
        budget: the fraction of FLOPs to save; None of a method at a knob, and of a control that has no budget.
        name: of its outcomes: the method's, with the budget or knob where there are several.
        refused: why it does not run; else it has a model, and a match or a control.
    """

    method: str
    budget: float | None
    name: str
    match: Match | None = None
    model: ReducedViT | None = None
    adapter: Adapter | None = None
    refused: TokredError | None = None
    control: Control | None = None

    def describe(self, config: Config, costs: CostTable, row: Row) -> None:
        """Enter into a row what is known before any image is seen."""
        row.method, row.budget = self.method, self.budget
        if self.refused:
            row.status, row.error = _STATUS.get(type(self.refused), "failed"), str(self.refused)
        if self.method in (LOWRES, SMALLER):
            row.control = True
            if self.control:
                row.gflops, row.reduction, row.reducer_gflops = (
                    self.control.flops / 1e9,
                    1 - self.control.flops / costs.dense,
                    0.0,
                )
                row.options, row.tokens = options_text(self.control.options), str(self.control.patches)
            return
        cls = registry.get(self.method)
        custom = config.stages is not None or (self.match is not None and self.match.budget is None)
        row.protocol, row.control = "custom" if custom else config.protocol, cls.control
        chosen = self.match.plan.options if self.match else config.options.get(self.method, {})
        row.options = options_text(complete_options(cls, chosen))
        if self.match:
            found = self.match
            row.reduction, row.gflops, row.reducer_gflops = (
                found.reduction,
                found.flops / 1e9,
                found.reducer_flops / 1e9,
            )
            row.stages, row.tokens, row.knob = (
                spaced(found.plan.stages),
                spaced(found.plan.tokens),
                found.knob,
            )
        if self.adapter:
            card = self.adapter.card
            row.training, row.images_seen, row.adapter = (
                card["training"],
                card["images_seen"],
                self.adapter.hash,
            )
            row.fitted_here = self.adapter.saw(row.data_hash)
            if isinstance(self.adapter, foreign.Checkpoint):
                row.protocol = "custom"  # its own layers
                row.options = f"{row.options} {self.adapter.trained_at}".strip()
        elif self.model is not None and self.model.learned:
            row.unfitted = True

    def reduction(self, costs: CostTable) -> float | None:
        """Fraction of the dense model's FLOPs that it saves; None where it does not run."""
        if self.control:
            return 1 - self.control.flops / costs.dense
        return self.match.reduction if self.match else None


def build(config: Config, loaded: Loaded, costs: CostTable) -> list[Entry]:
    """All entries of a comparison: methods at the budgets, then those at a knob, then controls.

    Raises:
        TokredError: unknown names or options, adapters for nothing that is compared, or no entry that can run.
    """
    names = method_names(config)
    asked = list(names) if not config.controls or RANDOM in names or not config.budgets else [*names, RANDOM]
    given = _find_adapters(config, names)
    entries: dict[tuple[str, float], Entry] = {}
    for budget in config.budgets:
        near = foreign_plans.nearest(given, costs, budget, config.options, config.stages)
        others = [name for name in asked if name not in near.matches and name not in near.refused]
        matches, refused = match_each(
            costs, others, budget, protocol=config.protocol, stages=config.stages, options=config.options
        )
        matches, refused = {**matches, **near.matches}, {**refused, **near.refused}
        for method in asked:
            entry = Entry(
                method,
                budget,
                _name(config, method, budget),
                matches.get(method),
                refused=refused.get(method),
            )
            entries[method, budget] = entry
            _build_model(entry, config, loaded, near.adapters)
    ordered = [entries[method, budget] for method in asked for budget in config.budgets]
    for one in config.fixed:
        ordered.append(_fixed(config, costs, one))
        _build_model(ordered[-1], config, loaded, given)
    twice = next(
        (name for name, count in Counter(entry.name for entry in ordered).items() if count > 1), None
    )
    if twice is not None:
        raise TokredError(
            f"Two plans are called {twice}; give each knob once, with its stages where a budget is the same number."
        )
    wanted = [entry for entry in ordered if entry.method in names]
    if all(entry.model is None for entry in wanted) and wanted[0].refused:
        raise wanted[0].refused
    return ordered + (_controls(config, loaded, costs) if config.controls else [])


def _name(config: Config, method: str, budget: float) -> str:
    return method if len(config.budgets) == 1 else f"{method}@{budget!r}"


def _fixed(config: Config, costs: CostTable, fixed: Fixed) -> Entry:
    stages = fixed.stages or config.stages
    options = config.options.get(fixed.method, {})
    found = at_knob(costs, fixed.method, fixed.knob, protocol=config.protocol, stages=stages, options=options)
    return Entry(fixed.method, None, fixed.name, found)


def _controls(config: Config, loaded: Loaded, costs: CostTable) -> list[Entry]:
    """The dense controls: one of lower resolution for each budget, and a smaller model where there is one."""
    found = []
    for budget in config.budgets:
        entry = Entry(LOWRES, budget, _name(config, LOWRES, budget))
        try:
            entry.control = lowres(costs, budget)
        except TokredError as error:
            entry.refused = error
        found.append(entry)
    sister = smaller(loaded, config.img_size)
    if sister:
        found.append(Entry(SMALLER, None, SMALLER, control=sister))
    for entry in found:
        entry.model = entry.control.model if entry.control else None
    return found


def describe_baseline(row: Row, costs: CostTable) -> None:
    """Enter into a row what is known of the unreduced model."""
    row.method, row.gflops, row.reduction, row.reducer_gflops = BASELINE, costs.dense / 1e9, 0.0, 0.0


def _find_adapters(config: Config, names: Iterable[str]) -> list[Adapter]:
    given = foreign.find(config.adapters)
    strangers = [adapter for adapter in given if adapter.card["method"] not in names]
    if given and len(strangers) == len(given):
        raise TokredError(
            f"The adapter {given[0].path} is for {given[0].card['method']}, which is not compared; see --methods."
        )
    return given


def _build_model(entry: Entry, config: Config, loaded: Loaded, given: list[Adapter]) -> None:
    """The reduced model, with its fitted parameters where there are any; what has none and needs some is refused."""
    if entry.match is None:
        return
    plan, backbone, weights_hash = entry.match.plan, loaded.model, loaded.weights_hash
    try:
        entry.adapter = adapters.choose(given, plan, weights_hash)
        if entry.adapter is not None:
            entry.model = entry.adapter.apply(backbone, plan, weights_hash, config.seed)
            return
        model = ReducedViT(backbone, plan, seed=config.seed)
        if model.learned and not config.allow_unfitted:
            entry.refused = adapters.unfitted(plan, weights_hash, _fit_command(config, plan))
        else:
            entry.model = model
    except TokredError as error:
        entry.refused, entry.adapter = error, None


def _fit_command(config: Config, plan: Plan) -> str:
    """The command that fits a method for this comparison."""
    stages = None if config.stages is None else spaced(config.stages)
    protocol = None if config.protocol == "native" else config.protocol
    size = {} if config.img_size is None else {"img-size": str(config.img_size)}
    return adapters.fit_command(
        plan, config.model, stages=stages, protocol=protocol, data=config.data, weights=config.weights, **size
    )
