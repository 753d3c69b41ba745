"""A candidate of a comparison: a method or control at one budget or knob, and what its row says of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokred.core import registry
from tokred.core.costs import CostTable
from tokred.core.match import Match
from tokred.core.options import default_options, options_text
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError, Unfitted, Unreachable
from tokred.evaluation.controls import LOWRES, SMALLER, Control
from tokred.models import foreign
from tokred.models.adapters import Adapter
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


def default_texts(methods: Iterable[str]) -> dict[str, str]:
    """The default options of registered methods, in the form of `Row.options`."""
    known = registry.catalog()
    return {
        name: options_text(default_options(registry.get(name)))
        for name in methods
        if name.partition("[")[0] in known
    }
