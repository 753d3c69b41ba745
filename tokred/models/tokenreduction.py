"""Checkpoints of the TokenReduction benchmark (Haurum et al., ICCVW 2023), in tokred's names.

A file holds a whole DeiT under timm's names, reducers under `cluster_layers.N.` or `score_predictor.N.`,
averages of both, and the settings of the training script, in which blocks count from 0. The reducers'
LayerNorms have an epsilon of 1e-5, the backbone's 1e-6, as here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tokred.core import registry
from tokred.core.options import complete_options
from tokred.errors import TokredError
from tokred.models.tensor_files import read_checkpoint, state_dict
from tokred.tables.row import PUBLISHED
from tokred.utils.text import spaced

_METHODS = (
    *("patchmerger", "sinkhorn", "sit", "topk", "evit", "tome", "kmedoids", "dpcknn", "dynamicvit", "ats"),
)
_NAMES = {name: name for name in (*_METHODS, "heuristic")} | {"dyvit": "dynamicvit"}
"""Words in the benchmark's model names, and what tokred calls the method."""

_KEYS = {"queries": "patchmerger", "norm": "patchmerger", "v": "sinkhorn", "score": "dpcknn"}
_KEYS |= {"weight": "sit", "scale": "sit", "in_conv": "dynamicvit", "out_conv": "dynamicvit"}
"""The method by the first part of a reducer parameter's name."""

_RENAMED: dict[str, tuple[tuple[str, str], ...]] = {
    "patchmerger": (("queries", "queries"), ("norm.", "norm.")),
    "sinkhorn": (("v", "centers"),),
    "sit": (("scale", "scale"), ("weight.0.", "norm."), ("weight.1.", "hidden."), ("weight.3.", "score.")),
    "dpcknn": (("score.", "score."),),
    "dynamicvit": (("in_conv.", "embed."), ("out_conv.", "score.")),
}
"""Parameters of a stage, by the beginnings of their names there and here."""

_COUNTED = {"patchmerger": "queries", "sinkhorn": "v", "sit": "weight.3.weight"}  # one row for each token out
_SIZES = {192: "tiny", 384: "small", 768: "base"}
_TRAIN_IMAGES = {"imagenet": 1_281_167}
_STAGE = re.compile(r"^(?:cluster_layers|score_predictor)\.(\d+)\.(.+)$")


def describe(path: Path, method: str | None = None) -> dict[str, Any]:
    """The card of a checkpoint, as of an adapter, made from what the file says.

    Args:
        path: path of the file.
        method: in tokred's name; by default what parameters, settings or the file's name say.

    Raises:
        TokredError: it cannot be read, is no such checkpoint, its method cannot be told or is not supported.
    """
    raw = read_checkpoint(path)
    if not isinstance(raw, Mapping) or not {"model", "model_ema"} & set(raw):
        raise TokredError(
            f"{path} is no checkpoint of the TokenReduction benchmark: a dictionary with 'model' was "
            "expected; see --weights."
        )
    given = raw.get("args")
    settings = (
        dict(given) if isinstance(given, Mapping) else vars(given) if hasattr(given, "__dict__") else {}
    )
    try:
        return _card(path, method, raw, settings)
    except (TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise TokredError(
            f"{path} is no checkpoint of the TokenReduction benchmark, or its settings are damaged "
            f"({reason})."
        ) from error


def _card(
    path: Path, method: str | None, raw: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    # The benchmark's own evaluation takes what was better.
    averaged = raw.get("model") is None or bool(raw.get("ema_best", False))
    part = "model_ema" if averaged and raw.get("model_ema") is not None else "model"
    backbone, reducers = _parts(state_dict(raw, path, part))
    chosen = _method(path, method, reducers, settings)
    stages = _stages(path, settings, reducers)
    return {
        "kind": "adapter",
        "method": chosen,
        "options": _options(path, chosen, settings, reducers),
        "stages": list(stages),
        "tokens": _tokens(path, chosen, reducers, len(stages)),
        "budget": None if chosen in _COUNTED else "any",
        "training": PUBLISHED,
        "images_seen": _images_seen(raw, settings),
        "weights_hash": None,  # it brings its own backbone
        "rates": _rates(settings),
        "part": part,
        "epochs": _number(settings.get("epochs")),
        "data": str(settings.get("dataset", "")),
        "source": f"TokenReduction benchmark, {settings.get('model', 'which model the file does not say')}",
        **_facts(path, backbone),
    }


def tensors(path: Path, card: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the names of an adapter, "backbone.*" and "stages.*", float32.

    Raises:
        TokredError: it cannot be read.
    """
    backbone, reducers = _parts(state_dict(read_checkpoint(path), path, card["part"]))
    site, renamed = registry.get(card["method"]).site, _RENAMED.get(card["method"], ())
    found = {f"backbone.{key}": value for key, value in backbone.items()}
    for (stage, key), value in reducers.items():
        old, new = next(((old, new) for old, new in renamed if key.startswith(old)), ("", ""))
        name = f"stages.{site}{card['stages'][stage]}.reducer.{new}{key.removeprefix(old)}"
        found[name] = value.flatten() if key == "scale" else value  # SiT's temperature is (1, 1, 1) there
    return found


def _parts(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[tuple[int, str], Tensor]]:
    """The backbone's tensors, and the reducers' by stage and name within it."""
    found = {key: _STAGE.match(key) for key in tensors}
    reducers = {(int(place[1]), place[2]): tensors[key] for key, place in found.items() if place}
    return {key: value for key, value in tensors.items() if not found[key]}, reducers


def _facts(path: Path, backbone: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors say about the backbone."""
    try:
        width = int(backbone["cls_token"].shape[-1])
        patches = int(backbone["pos_embed"].shape[1]) - 1 - ("dist_token" in backbone)
        classes = len(backbone["head.weight"])
    except (KeyError, IndexError):
        raise TokredError(
            f"{path} is no checkpoint of the TokenReduction benchmark: it holds no DeiT (no cls_token or "
            "head)."
        ) from None
    depth = len({key.split(".")[1] for key in backbone if key.startswith("blocks.")})
    known = width in _SIZES and patches == 196
    model = f"deit_{_SIZES[width]}_patch16_224" if known else f"a DeiT of width {width}"
    return {"model": model, "width": width, "depth": depth, "patches": patches, "classes": classes}


def _method(
    path: Path, given: str | None, reducers: Mapping[tuple[int, str], Tensor], settings: Mapping[str, Any]
) -> str:
    """The method: by its parameters, its settings, the name that was given with it, or the file's."""
    by_keys = {_KEYS.get(key.partition(".")[0], "?") for _, key in reducers}
    words = [str(settings.get(name, "")) for name in ("model", "arch", "method", "model_name")]
    by_settings = next(filter(None, map(_named, words)), None)
    if len(by_keys) > 1 or "?" in by_keys:
        raise TokredError(
            f"{path} holds reducers of a method that tokred does not know "
            f"({sorted(key for _, key in reducers)[0]})."
        )
    told = [name for name in (*by_keys, by_settings, given) if name]
    if not told:
        told = list(filter(None, (_named(path.stem), _named(path.parent.name))))
    if not told:
        raise TokredError(
            f"Which method {path} was trained with cannot be told from what is in it; say it, such as "
            f"--adapters evit={path}."
        )
    if len(set(told)) > 1:
        raise TokredError(
            f"{path} holds {told[0]}, not {next(name for name in told if name != told[0])}; give it under "
            "its own name."
        )
    if told[0] not in registry.names():
        raise TokredError(
            f"{path} was trained with {told[0]}, which tokred does not have; leave it out of --adapters."
        )
    if told[0] in _RENAMED and not by_keys and told[0] != "dpcknn":
        raise TokredError(
            f"{path} lacks the parameters of {told[0]}; expected cluster_layers or score_predictor in its "
            "state dict."
        )
    return told[0]


def _named(text: str) -> str | None:
    """The method that a model or file is named after."""
    text = text.lower().replace("k-medoids", "kmedoids").replace("dpc-knn", "dpcknn")
    words = re.split(r"[^a-z0-9]+", text)
    return next((_NAMES[word] for word in words if word in _NAMES), None)


def _stages(
    path: Path, settings: Mapping[str, Any], reducers: Mapping[tuple[int, str], Tensor]
) -> tuple[int, ...]:
    """One-based layers. The benchmark counts blocks from 0, and always used 3, 6 and 9."""
    count = len({stage for stage, _ in reducers})
    found = settings.get("reduction_loc") or (3, 6, 9)
    layers = tuple(sorted(int(block) + 1 for block in found))
    if count and count != len(layers):
        raise TokredError(
            f"{path} has {count} reducers, and its settings name {len(layers)} layers for them "
            f"({spaced(layers)})."
        )
    return layers


def _tokens(
    path: Path, method: str, reducers: Mapping[tuple[int, str], Tensor], stages: int
) -> list[int] | None:
    """Token counts where the shapes of parameters fix them."""
    if method not in _COUNTED:
        return None
    try:
        return [len(reducers[stage, _COUNTED[method]]) for stage in range(stages)]
    except KeyError as error:
        raise TokredError(
            f"{path} lacks parameters of {method}: {error.args[0][1]} of stage {error.args[0][0]}."
        ) from None


def _options(
    path: Path, method: str, settings: Mapping[str, Any], reducers: Mapping[tuple[int, str], Tensor]
) -> dict[str, Any]:
    """All options with which the checkpoint was trained; where it says nothing, the published defaults."""
    if settings.get("equal_weight") and method == "kmedoids":
        raise TokredError(
            f"{path} was trained by K-Medoids without weights, from a random first centre, which tokred "
            "does not have."
        )
    said: dict[str, dict[str, Any]] = {
        "ats": {"variant": "benchmark"},
        "kmedoids": {"update": "published", "iterations": int(settings.get("cluster_iters", 3))},
        # Noise on densities breaks ties there; here the index does, since a result must not depend on a draw.
        "dpcknn": {
            "neighbors": int(settings.get("k_neighbors", 5)),
            "weights": "learned" if reducers else "equal",
        },
        "sinkhorn": {
            "epsilon": float(settings.get("sinkhorn_eps", 1.0)),
            "iterations": int(settings.get("cluster_iters", 3)),
        },
    }
    # All others run with tokred's defaults, which are the benchmark's forms: PatchMerger without scale on
    # normalised tokens, SiT with its learned temperature, DynamicViT's 1e-6 on the quotient, EViT's fused
    # token as a plain sum, ToMe on keys with proportional attention.
    return complete_options(registry.get(method), said.get(method, {}))


def _rates(settings: Mapping[str, Any]) -> list[float]:
    """Keep rates of its training: one, of which the stages take powers, or one for each stage."""
    found = settings.get("keep_rate") or ()
    return [float(rate) for rate in (found if isinstance(found, list | tuple) else [found])]


def _images_seen(raw: Mapping[str, Any], settings: Mapping[str, Any]) -> int | None:
    """Images of training until these weights were saved, where the file tells."""
    images, epoch = _TRAIN_IMAGES.get(str(settings.get("dataset", "")).lower()), _number(raw.get("epoch"))
    return None if images is None or epoch is None else (epoch + 1) * images


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
