"""Adapters: fitted parameters of a method in a safetensors file, with a card of what they serve.

A reducer's adapter holds its parameters alone; one of a full fit holds the whole model. It serves one
backbone, by the hash of its weights, one method with its options, and its layers; fitted for any budget it
serves all token counts, else only its own.
"""

from __future__ import annotations

import copy
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokred.core import registry
from tokred.core.options import (
    changed_options,
    complete_options,
    default_options,
    options_arguments,
    typed_options,
)
from tokred.core.plan import Plan
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError, Unfitted
from tokred.models import zoo
from tokred.models.tensor_files import hash_file, read_card, read_weights, write_tensors
from tokred.utils.text import plain_name, spaced

SHIPPED = zoo.SHIPPED / "adapters"
ANY = "any"
_SCALE, _LEAST_SCALE = "/scale", 2.0**-24  # the smallest float16
_CARD = frozenset(
    ("method", "options", "stages", "tokens", "budget", "training", "weights_hash", "model", "images_seen")
)


@dataclass(frozen=True)
class Adapter:
    """A file of fitted parameters that has been found, not yet read."""

    path: Path
    card: Mapping[str, Any]

    @property
    def full(self) -> bool:
        """Whether it holds the backbone too."""
        return bool(self.card["training"] == "full")

    def saw(self, data_hash: str) -> bool:
        """Whether it was fitted on images of this hash, or chosen by them."""
        return data_hash in (self.card.get("data_hash"), self.card.get("validation_hash"))

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the file."""
        return hash_file(self.path)

    def tensors(self) -> dict[str, Tensor]:
        """What is in the file, float32: "stages.*", and "backbone.*" of a full fit.

        Raises:
            TokredError: it cannot be read.
        """
        return unpack(read_weights(self.path))

    def difference(self, plan: Plan, weights_hash: str) -> str:
        """Why the adapter cannot serve a plan on a backbone, as the end of a sentence; "" if it can."""
        card, cls = self.card, plan.reducer
        if card["method"] != cls.name:
            return f"it was fitted for {card['method']}, not for {cls.name}"
        wanted = plan.options
        fitted = {**default_options(cls), **card["options"]}  # a card older than an option means its default
        for name in sorted({*wanted, *fitted}):
            if wanted.get(name) != fitted.get(name):
                return f"it was fitted with {name}={fitted.get(name)}, not with {name}={wanted.get(name)}"
        if tuple(card["stages"]) != plan.stages:
            return f"it was fitted at layers {spaced(card['stages'])}, not at {spaced(plan.stages)}"
        if card["weights_hash"] not in (None, weights_hash):  # None: it brings a backbone of its own
            hashes = f"hash {card['weights_hash'][:8]}, not {weights_hash[:8]}"
            return f"it was fitted on other backbone weights ({card['model']}, {hashes})"
        tokens = card["tokens"] or ()
        if card["budget"] != ANY and tuple(tokens) != plan.tokens:
            counts = f"{spaced(tokens)} tokens, not for {spaced(plan.tokens)}"
            return f"it was fitted for {counts}; --any-budget fits for all counts"
        return ""

    def apply(self, backbone: Any, plan: Plan, weights_hash: str, seed: int = 0) -> ReducedViT:
        """The reduced model with the fitted parameters. The backbone is shared, or, of a full fit, a new one.

        Raises:
            TokredError: the adapter is for something else, or damaged.
        """
        difference = self.difference(plan, weights_hash)
        if difference:
            raise TokredError(f"The adapter {self.path} cannot be used here: {difference}.")
        tensors = self.tensors()
        if self.full:
            backbone, prefix = copy.deepcopy(backbone), "backbone."
            own = {key: value for key, value in tensors.items() if key.startswith(prefix)}
            self._load(backbone, {key.removeprefix(prefix): value for key, value in own.items()})
        model = ReducedViT(backbone, plan, seed=seed)
        wanted = model.stages.state_dict()
        fitted = {}
        for key, value in wanted.items():
            stored = tensors.get(f"stages.{key}")
            if stored is None:
                raise TokredError(f"The adapter {self.path} cannot be used here: it lacks stages.{key}.")
            nested = key.partition("reducer.")[2] in plan.reducer.nested
            fitted[key] = stored[: len(value)] if nested else stored
        self._load(model.stages, fitted)
        return model.eval()

    def _load(self, module: Any, tensors: dict[str, Tensor]) -> None:
        try:
            module.load_state_dict(tensors)
        except RuntimeError as error:
            detail = str(error).splitlines()[-1].strip()
            raise TokredError(f"The adapter {self.path} cannot be used here: {detail}") from error


def read(path: Path) -> Adapter:
    """The adapter in a file.

    Raises:
        TokredError: the file has no card that says what it was fitted for.
    """
    card = _card(path)
    if card is None:
        raise TokredError(
            f"{path} is not an adapter: it needs a card, {path.with_suffix('.json').name}, beside it."
        )
    return Adapter(path, card)


def in_folder(folder: Path) -> list[Adapter]:
    """The adapters of a folder, which may hold other weight files too."""
    cards = ((path, _card(path)) for path in sorted(folder.glob("*.safetensors")))
    return [Adapter(path, card) for path, card in cards if card is not None]


def shipped() -> list[Adapter]:
    """The adapters that come with tokred."""
    return in_folder(SHIPPED)


def of_method(given: Iterable[Adapter], method: str) -> list[Adapter]:
    """The adapters of a method: those that were given, or else the shipped ones."""
    own = [adapter for adapter in given if adapter.card["method"] == method]
    return own or [adapter for adapter in shipped() if adapter.card["method"] == method]


def choose(given: Iterable[Adapter], plan: Plan, weights_hash: str) -> Adapter | None:
    """The adapter that serves a plan on a backbone: one that was given, or else a shipped one.

    Raises:
        TokredError: adapters of the method were given, and none of them serves.
    """
    given = [adapter for adapter in given if adapter.card["method"] == plan.reducer.name]
    for adapter in given or shipped():
        if not adapter.difference(plan, weights_hash):
            return adapter
    if given:
        raise TokredError(
            f"The adapter {given[0].path} cannot be used here: {given[0].difference(plan, weights_hash)}."
        )
    return None


def fitted_options(
    given: Iterable[Adapter], method: str, options: Mapping[str, Any], weights_hash: str
) -> dict[str, Any]:
    """Options for a method: those that are set, and for the rest those of its adapter for these weights.

    Args:
        given: Adapters that come before the shipped ones.
        method: Name of the method.
        options: Options that are set.
        weights_hash: Hash of the dense model's weights.
    """
    cls = registry.get(method)
    fits = [
        {**default_options(cls), **adapter.card["options"]}
        for adapter in of_method(given, method)
        if adapter.card["weights_hash"] in (None, weights_hash)
    ]
    known, wanted = default_options(cls).keys(), typed_options(cls, options).items()
    fits = [fit for fit in fits if fit.keys() == known and wanted <= fit.items()]
    return dict(options) if not fits or complete_options(cls, options) in fits else fits[0]


def unfitted(plan: Plan, weights_hash: str, command: str, setting: str = "--adapters") -> Unfitted:
    """The error for a learned method without an adapter, with why the shipped one does not serve.

    Args:
        plan: The plan to fit.
        weights_hash: Hash of the dense model's weights.
        command: The command that fits the plan.
        setting: The option or argument that takes the adapter.
    """
    known = of_method((), plan.reducer.name)
    near = next((adapter for adapter in known if adapter.card["weights_hash"] == weights_hash), None)
    why = "" if near is None else f" ({near.path.name} does not serve: {near.difference(plan, weights_hash)})"
    return Unfitted(f"not fitted: run `{command}`, then give its folder with {setting}{why}")


def fit_command(plan: Plan, model: str, **settings: str | None) -> str:
    """The command that fits a method for any budget, with further `settings` by name where not None."""
    set_options = options_arguments(plan.reducer, plan.options)
    words = ["tokred", "fit", plan.reducer.name, "--model", model, *set_options]
    for key, value in settings.items():
        words += [] if value is None else [f"--{key}", value]
    return shlex.join(words)


def write(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write parameters and their card; see `pack` for the form.

    Raises:
        TokredError: they cannot be written.
    """
    write_tensors(pack(tensors), path, {"kind": "adapter", **card})


def pack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters as a file has them: float16, but matrices of reducers int8 with a scale for each row."""
    packed = {}
    for name, value in tensors.items():
        if name.startswith("stages.") and value.ndim == 2:
            scale = (value.float().abs().amax(1, keepdim=True) / 127).clamp(min=_LEAST_SCALE).half()
            packed[name] = (value.float() / scale.float()).round().clamp(-127, 127).to(torch.int8)
            packed[name + _SCALE] = scale
        else:
            packed[name] = value.half()
    return packed


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The float32 parameters of a file; files of an older tokred have float16 matrices."""
    scales = {name: value for name, value in packed.items() if name.endswith(_SCALE)}
    return {
        name: value.float() * scales[name + _SCALE].float() if name + _SCALE in scales else value.float()
        for name, value in packed.items()
        if name not in scales
    }


def plan_card(plan: Plan, any_budget: bool) -> dict[str, Any]:
    """What a card says about the plan that was fitted."""
    return {
        "method": plan.reducer.name,
        "options": plan.options,
        "stages": list(plan.stages),
        "tokens": None if any_budget else list(plan.tokens),
    }


def file_name(model: str, plan: Plan) -> str:
    """A name that tells the options that are not the default."""
    changed = [f"{name}={value}" for name, value in changed_options(plan.reducer, plan.options).items()]
    return "-".join([plain_name(model), plan.reducer.name, *changed]) + ".safetensors"


def _card(path: Path) -> dict[str, Any] | None:
    card = read_card(path)
    return card if card.get("kind") == "adapter" and card.keys() >= _CARD else None
