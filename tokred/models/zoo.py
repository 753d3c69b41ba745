"""Models by name, and which weights they carry and why."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg
from torch import nn

from tokred.core.backbone import check_supported
from tokred.core.schedule import Schedule
from tokred.errors import InvalidSetting, TokredError, UnknownName
from tokred.models import catalog, pretrained
from tokred.models.tensor_files import hash_file, hash_weights, read_card, read_weights, unwrap
from tokred.utils.text import some

ALIASES = {
    "deit_t": "deit_tiny_patch16_224",
    "deit_s": "deit_small_patch16_224",
    "deit_b": "deit_base_patch16_224",
    "deit_t_distilled": "deit_tiny_distilled_patch16_224",
    "deit_s_distilled": "deit_small_distilled_patch16_224",
    "deit_b_distilled": "deit_base_distilled_patch16_224",
}
_MAX_PIXELS = 4096
SHIPPED = Path(__file__).parents[1] / "weights"

DefaultWeights = Literal["shipped", "pretrained"]  # tokred's own, trained on PhotoDigits; or timm's


@dataclass(frozen=True)
class Loaded:
    """A model ready for evaluation and where its weights come from.

    Attributes:
        model: in eval mode, float32, on the CPU.
        name: as the user gave it.
        weights: one phrase about the weights, for tables.
        weights_hash: SHA-256 over all parameters and buffers.
        card: the card of the weights, where they have one.
        published: timm's tagged name of the weights, such as "deit_small_patch16_224.fb_in1k", where it is
            known.
        origin: where the weights of other models of the family are to be had; "" where that is unknown.
    """

    model: Any
    name: str
    weights: str
    weights_hash: str
    card: dict[str, Any] = field(default_factory=dict)
    published: str = ""
    origin: DefaultWeights | Literal[""] = ""


def timm_name(name: str) -> str:
    """timm's name of a model, with or without the tag of its weights, or a place such as "hf-hub:owner/name".

    Raises:
        UnknownName: the name or tag is unknown; the message suggests similar ones.
    """
    if pretrained.is_source(name):
        return name
    base, dot, tag = name.partition(".")
    architecture = ALIASES.get(base, base)
    if not timm.is_model(architecture):
        if "/" in name:
            raise UnknownName(
                f"Unknown model {name!r}. For one of the Hugging Face hub give hf-hub:{name}; for a folder "
                f"local-dir:{name}."
            )
        near = catalog.suggest(base, list(ALIASES))
        hint = f"Known: {', '.join(ALIASES)}, and the ViTs of timm that `tokred models` lists."
        if near:
            hint = f"Did you mean: {', '.join(near)}?"
        raise UnknownName(f"Unknown model {name!r}. {hint}")
    resolved = architecture + dot + tag
    tagged = [known.partition(".")[2] for known in get_arch_pretrained_cfgs(architecture)]
    if dot and tag not in tagged:
        raise UnknownName(
            f"{architecture} has no weights tagged {tag!r} in timm; it has: "
            f"{', '.join(filter(None, tagged)) or 'none'}."
        )
    return resolved


def check_img_size(size: int | None) -> None:
    """Raise `InvalidSetting` for a side of images that no model has; None stands for the model's own."""
    if size is None or 1 <= size <= _MAX_PIXELS:
        return
    raise InvalidSetting(
        "img_size",
        f"{{}} is the side of the model's input in pixels, from 1 to {_MAX_PIXELS}; got {size}.",
    )


def check_made_for(schedule: Schedule, name: str) -> None:
    """Raise a `TokredError` if a schedule was made for another architecture than a model's."""
    if schedule.model is None:
        return
    wanted, architecture = (timm_name(one).partition(".")[0] for one in (schedule.model, name))
    if wanted != architecture:
        raise TokredError(
            f"The schedule {schedule.name} is for {schedule.model}, not for {name}; for another model write "
            "a file with its layers and tokens and without its model."
        )


def build(name: str, num_classes: int | None = None, img_size: int | None = None, **options: Any) -> Any:
    """An untrained model by name; `num_classes` and `img_size` None keep timm's own.

    Raises:
        UnknownName: no such model.
        UnsupportedModel: tokred cannot reduce it.
        TokredError: a place, such as hf-hub:owner/name, cannot be looked up, or images of that size do not
            divide into patches.
    """
    check_img_size(img_size)
    given = {"num_classes": num_classes, "img_size": img_size}
    model = pretrained.create(
        timm_name(name), **options, **{key: value for key, value in given.items() if value is not None}
    )
    check_supported(model)
    patch, size = model.patch_embed.patch_size[0], model.patch_embed.img_size[0]
    if img_size is not None and (size % patch or size // patch < 2):
        fitting = max(2, size // patch) * patch
        raise TokredError(
            f"--img-size must be a multiple of the model's patches of {patch} pixels, such as {fitting}; got "
            f"{img_size}."
        )
    return model.eval()


def outline(name: str, img_size: int | None = None) -> Any:
    """A model as by `build`, made in no time with arbitrary weights: enough to count what it costs."""
    architecture = timm_name(name).partition(".")[0]
    options = catalog.outline_options(architecture) if architecture in catalog.family() else {}
    with torch.device("meta"):
        model = build(name, img_size=img_size, **options)
    return model.to_empty(device="cpu")


def load_for(
    name: str,
    weights: str | None,
    default: DefaultWeights = "pretrained",
    img_size: int | None = None,
    classifier: bool = True,
) -> Loaded:
    """Load a model with the weights that the user names, or with those that belong to the data.

    Args:
        name: the model's name; one that names a place brings its weights from there.
        weights: a file, or a place such as "hf-hub:owner/name".
        default: which weights to load where `weights` is None; see `Source.weights`.
        img_size: side of the input in pixels, for which position embeddings are resampled; by default the
            model's.
        classifier: whether the model must have a classifier. Else a projection, as CLIP's towers have one, is
            none, and `num_classes` becomes 0.

    Raises:
        TokredError: there are none, they are of another architecture, lack the classifier or have numbers
            that are not finite, or the model cannot have that size.
    """
    if weights is not None and not pretrained.is_source(weights):
        loaded = load_file(name, Path(weights), img_size=img_size)
    elif weights is not None:
        loaded = _load_place(name, weights, img_size)
    elif default == "shipped" and not pretrained.is_source(name):
        loaded = load_shipped(name, img_size)
    else:
        loaded = load_pretrained(name, img_size=img_size)
    state = loaded.model.state_dict()
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise TokredError(
            f"The weights ({loaded.weights}) hold numbers that are not finite, in {some(broken, 2)}; their "
            "training has diverged, or the file is damaged."
        )
    if not classifier and _projects(loaded.model):
        loaded.model.num_classes = 0  # the head stays: its output is the embedding
    if classifier and loaded.model.num_classes < 1:
        raise TokredError(
            f"The weights ({loaded.weights}) have no classifier, which is needed here; choose a tag with "
            "one. tokred compare needs none."
        )
    return loaded


def _projects(model: Any) -> bool:
    """Whether the head projects to CLIP's embedding, by timm's names; fine-tuned towers have a classifier."""
    config = model.pretrained_cfg
    return "clip" in config.get("architecture", "") and "_ft_" not in f"{config.get('tag')}_"


def _load_place(name: str, place: str, img_size: int | None) -> Loaded:
    """The weights of a place for a model that was named too."""
    loaded = load_pretrained(place, img_size=img_size)
    holds = loaded.model.pretrained_cfg.get("architecture", "")
    if name != place and holds != timm_name(name).partition(".")[0]:
        raise TokredError(
            f"{place} holds {holds}, not {name}; give it as the model, --model {place}, which needs no "
            "--weights."
        )
    return replace(loaded, name=name, origin="")


def load_shipped(name: str, img_size: int | None = None) -> Loaded:
    """A model with the weights that tokred ships for PhotoDigits.

    Raises:
        TokredError: none are shipped for this model.
    """
    alias = next((alias for alias, resolved in ALIASES.items() if name == resolved), name)
    path = SHIPPED / f"{alias}.safetensors"
    if not path.exists():
        build(name)  # what tokred cannot reduce needs no weights
        have = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.safetensors"))) or "none"
        raise TokredError(
            f"No PhotoDigits weights are shipped for {name} (there are: {have}). "
            f"Give images with --data, weights with --weights, or train some: tokred train --model {name}."
        )
    loaded = load_file(name, path, img_size=img_size)
    about = f"tokred's {path.stem}, trained on PhotoDigits"
    return replace(loaded, weights=about, published="", origin="shipped")


def load_file(name: str, path: Path, img_size: int | None = None) -> Loaded:
    """A model with weights from a .safetensors file, or from a .pth file read without executing code.

    Raises:
        TokredError: the file is missing, corrupt or of another architecture.
    """
    tensors = _renamed(unwrap(read_weights(path)))
    head = next((tensors[key] for key in ("head.weight", "fc.weight") if key in tensors), None)
    model = build(name, num_classes=None if head is None else len(head), img_size=img_size)
    if img_size is not None:
        _resample(model, tensors)
    else:
        _check_size(model, tensors, name, path)
    _load(model, tensors, name, path)
    return Loaded(
        model=model.eval(),
        name=name,
        weights=path.name,
        weights_hash=hash_weights(model),
        card=read_card(path),
        published=_published_file(name, path),
    )


def _resample(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Bring position embeddings, [1, n, C], to the model's grid, as timm does with its own weights."""
    if _side(model, tensors):
        grid, prefix = list(model.patch_embed.grid_size), _position_prefix(model)
        tensors["pos_embed"] = resample_abs_pos_embed(tensors["pos_embed"], grid, num_prefix_tokens=prefix)


def _check_size(model: Any, tensors: dict[str, torch.Tensor], name: str, path: Path) -> None:
    """Raise a `TokredError` if the weights are for images of another size."""
    side = _side(model, tensors)
    if side:
        size = side * model.patch_embed.patch_size[0]
        raise TokredError(
            f"The weights in {path} are for images of {size} pixels, but {name} takes "
            f"{model.patch_embed.img_size[0]}: give --img-size {size}, or another size to resample their "
            "position embedding."
        )


def _side(model: Any, tensors: dict[str, torch.Tensor]) -> int:
    """Patches along a side of the images that weights are for, where this is not the model's own; else 0."""
    embedding, own = tensors.get("pos_embed"), getattr(model, "pos_embed", None)
    if embedding is None or own is None or embedding.ndim != 3 or embedding.shape == own.shape:
        return 0
    patches = embedding.shape[1] - _position_prefix(model)
    side = math.isqrt(max(0, patches))
    # Otherwise they are another model's, of which loading them will tell.
    return side if side * side == patches and embedding.shape[2] == own.shape[2] else 0


def _position_prefix(model: Any) -> int:
    return 0 if model.no_embed_class else int(model.num_prefix_tokens)


def _renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's names for what the official DeiT III files call otherwise: their LayerScale."""
    return {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", key): value for key, value in tensors.items()}


def _published_file(name: str, path: Path) -> str:
    """timm's tagged name of the weights in a file, by the model's tag or an official file's hash."""
    resolved = timm_name(name)
    if pretrained.is_source(resolved):
        return ""
    if "." in resolved:
        return resolved
    for tagged in get_arch_pretrained_cfgs(resolved):
        prefix = re.search(r"-([a-f0-9]{8,})\.pth$", get_pretrained_cfg(tagged).url or "")
        if prefix and path.suffix == ".pth" and hash_file(path).startswith(prefix[1]):
            return str(tagged)
    return ""


def load_pretrained(name: str, img_size: int | None = None) -> Loaded:
    """A model with timm's pretrained weights, or those of a place, from the local cache or the hub.

    Raises:
        TokredError: they cannot be loaded, for instance without a network; the message says what to fetch.
    """
    model = build(name, img_size=img_size, pretrained=True)
    published = pretrained.published_name(timm_name(name), model)
    about = name if pretrained.is_source(name) else f"timm {published or timm_name(name)}"
    return Loaded(
        model=model.eval(),
        name=name,
        weights=about,
        weights_hash=hash_weights(model),
        published=published,
        origin="pretrained",
    )


def _load(model: nn.Module, tensors: dict[str, torch.Tensor], name: str, path: Path) -> None:
    """Load all tensors; a `TokredError` shows two names or shapes that are not the model's."""
    intro, advice = f"The weights in {path} are not for {name}", "choose the --model that they belong to"
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip().rstrip(".")
        raise TokredError(f"{intro}: {detail}; {advice}.") from error
    sentences = []
    if missing:
        sentences.append(f"the file lacks {some(missing, 2)}")
    if unexpected:
        sentences.append(f"it has {some(unexpected, 2)}, unknown to the model")
    if sentences:
        raise TokredError(f"{intro}: {', and '.join(sentences)}; {advice}.")
