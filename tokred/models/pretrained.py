"""Pretrained weights from the Hugging Face hub, its local cache or a folder, loaded by timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from timm.models import get_pretrained_cfg

from tokred.errors import TokredError, UnknownName

SOURCES = ("hf-hub:", "hf_hub:", "local-dir:")
"""Prefixes of places: a repository of the hub, or a folder with config.json and weights."""

_PATIENCE = 5.0  # seconds for an answer of the hub; its client would try for minutes
_SAFE = {
    "pytorch_model.bin": "model.safetensors",
    "open_clip_pytorch_model.bin": "open_clip_model.safetensors",
}  # files that timm takes in place of others


class _NoAnswer(Exception):
    """The hub cannot be asked, and the cache does not have the file."""


def is_source(name: str) -> bool:
    """Whether a name is a place, not a model of timm's list."""
    return name.startswith(SOURCES)


def create(name: str, **options: Any) -> Any:
    """Create timm's model of a name, or of a place; with `pretrained=True` it has its weights.

    Raises:
        UnknownName: timm does not know the architecture that the place names.
        TokredError: the configuration or the weights cannot be loaded, for instance without a network.
    """
    pretrained = options.get("pretrained", False)
    if not (pretrained or is_source(name)):
        return timm.create_model(name, **options)
    try:
        if name.startswith("local-dir:"):
            return timm.create_model(name, **options)
        if is_source(name):
            repository = name.partition(":")[2]
            folder = _fetch(repository, "config.json").parent
            if pretrained:
                _fetch_weights(repository)
            return timm.create_model(f"local-dir:{folder}", **options)
        known = get_pretrained_cfg(name)
        if known is not None and known.hf_hub_id:
            file = _fetch_weights(known.hf_hub_id, known.hf_hub_filename)
            options["pretrained_cfg_overlay"] = {"file": str(file), "custom_load": False}
        return timm.create_model(name, **options)
    except Exception as error:  # timm, safetensors and the hub's client fail each in their own way
        raise _explained(name, error) from error


def _fetch_weights(repository: str, filename: str | None = None) -> Path:
    """The file of weights that timm would take from a repository of the hub."""
    filename = filename or "pytorch_model.bin"
    names = [_SAFE.get(filename, str(Path(filename).with_suffix(".safetensors"))), filename]
    names = [name for name in names if _cached(repository, name)] or names
    for name in names[:-1]:
        try:
            return _fetch(repository, name)
        except EntryNotFoundError:
            continue
    return _fetch(repository, names[-1])


def _fetch(repository: str, filename: str) -> Path:
    """A file of a repository, "owner/name@revision", of the hub, or of the cache where that does not answer.

    Raises:
        _NoAnswer: the hub does not answer, and the cache does not have the file.
        HfHubHTTPError: the hub has no such file, or does not give it to everybody.
    """
    name, _, revision = repository.partition("@")
    if not _cached(repository, filename):
        try:  # asked first, since downloads are tried again and again for minutes
            get_hf_file_metadata(hf_hub_url(name, filename, revision=revision or None), timeout=_PATIENCE)
        except HfHubHTTPError:
            raise
        except Exception as error:  # of whichever HTTP library the client uses
            raise _NoAnswer(str(error)) from error
    try:
        return Path(hf_hub_download(name, filename, revision=revision or None, etag_timeout=_PATIENCE))
    except LocalEntryNotFoundError as error:
        raise _NoAnswer(str(error)) from error


def _cached(repository: str, filename: str) -> bool:
    name, _, revision = repository.partition("@")
    return isinstance(try_to_load_from_cache(name, filename, revision=revision or None), str)


def published_name(name: str, model: Any) -> str:
    """timm's tagged name of the weights that `create` loaded, as "deit_small_patch16_224.fb_in1k"; or ""."""
    if is_source(name):
        owner, _, repository = name.partition(":")[2].partition("/")
        # A revision, behind an @, may be another state of the weights.
        official = owner == "timm" and "@" not in repository and not name.startswith("local-dir:")
        return repository if official else ""
    config = model.pretrained_cfg
    return f"{config['architecture']}.{config['tag']}" if config.get("tag") else ""


def _explained(name: str, error: Exception) -> TokredError:
    """What went wrong, and what to do about it."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if name.startswith("local-dir:"):
        return TokredError(
            f"No model can be loaded from {name} ({reason}); expected a folder with config.json and "
            "model.safetensors of timm."
        )
    if "Unknown model (" in str(error):
        return UnknownName(
            f"{name} holds an architecture that timm does not have ({reason}); tokred runs timm's ViT and "
            "DeiT models."
        )
    if "No pretrained weights exist" in str(error):
        return TokredError(
            f"timm has no weights of {name}; choose a tag that has some, or give a file with --weights."
        )
    what = f"The model {name}" if is_source(name) else f"timm's weights of {_tagged(name)}"
    if not isinstance(error, _NoAnswer):
        return TokredError(f"{what} cannot be loaded ({reason}); give a file with --weights.")
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
    return TokredError(
        f"{what} cannot be loaded (not in the local cache {constants.HF_HUB_CACHE}, and {why}): "
        f"{_advice(name)}"
    )


def _advice(name: str) -> str:
    """Where to fetch the weights elsewhere, and how to give them here."""
    cache = "or copy the cache of a machine that has them and set HF_HOME to it."
    if is_source(name):
        repository = name.partition(":")[2].partition("@")[0]
        files = f"config.json and model.safetensors from {constants.ENDPOINT}/{repository}"
        return f"download {files} into a folder and give it with --model local-dir:FOLDER, {cache}"
    config = get_pretrained_cfg(name)
    place = f"{config.url}"
    if config.hf_hub_id:
        place = f"model.safetensors from {constants.ENDPOINT}/{config.hf_hub_id}"
    return f"download {place} and give it with --model {_tagged(name)} --weights FILE, {cache}"


def _tagged(name: str) -> str:
    """A model of timm with the tag of its weights."""
    tag = get_pretrained_cfg(name).tag
    return f"{name.partition('.')[0]}.{tag}" if tag else name
