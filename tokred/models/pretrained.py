"""Pretrained weights from the Hugging Face hub, its local cache or a folder, by timm; and what to say where there are none."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import safetensors
import timm
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.models import get_pretrained_cfg

from tokred.errors import TokredError, UnknownName

SOURCES = ("hf-hub:", "hf_hub:", "local-dir:")
"""Prefixes of names that timm looks up elsewhere than in its own list: a repository of the hub, a folder with config.json and weights."""

_PATIENCE = 5.0  # seconds for the hub to take a connection
_FAILURES = (
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AssertionError,
    safetensors.SafetensorError,
)


def is_source(name: str) -> bool:
    """Whether a name is a place, not a model of timm's list."""
    return name.startswith(SOURCES)


def create(name: str, **options: Any) -> Any:
    """timm's model of a name, from places too. With `pretrained=True` it has its weights, else only what they need is looked up.

    Raises:
        UnknownName: timm does not know the architecture that the place names.
        TokredError: its configuration or weights cannot be had, for instance without a network.
    """
    wanted = is_source(name) or options.get("pretrained", False)
    if not wanted:
        return timm.create_model(name, **options)
    with _within_reach(local=name.startswith("local-dir:")) as unreachable:
        try:
            return timm.create_model(name, **options)
        except _FAILURES as error:
            raise _explained(name, error, unreachable) from error


def published_name(name: str, model: Any) -> str:
    """timm's tagged name of the weights that `create` loaded, such as "deit_small_patch16_224.fb_in1k"; empty for anybody else's."""
    if is_source(name):
        owner, _, repository = name.partition(":")[2].partition(
            "/"
        )  # a revision, behind an @, may be another state of them
        return (
            repository
            if owner == "timm" and "@" not in repository and not name.startswith("local-dir:")
            else ""
        )
    return (
        f"{model.pretrained_cfg['architecture']}.{model.pretrained_cfg['tag']}"
        if model.pretrained_cfg.get("tag")
        else ""
    )


def _explained(name: str, error: Exception, unreachable: str) -> TokredError:
    """What went wrong, and what to do about it."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if name.startswith("local-dir:"):
        return TokredError(
            f"No model can be loaded from {name} ({reason}); expected a folder with config.json and model.safetensors of timm."
        )
    if "Unknown model (" in str(error):
        return UnknownName(
            f"{name} holds an architecture that timm does not have ({reason}); tokred runs timm's ViT and DeiT models."
        )
    if "No pretrained weights exist" in str(error):
        return TokredError(
            f"timm has no weights of {name}; choose a tag that has some, or give a file with --weights."
        )
    if isinstance(error, LocalEntryNotFoundError) and not unreachable:
        unreachable = f"{constants.ENDPOINT} does not answer"
    what = f"The model {name}" if is_source(name) else f"timm's weights of {_tagged(name)}"
    if not unreachable:
        return TokredError(f"{what} cannot be loaded ({reason}); give a file with --weights.")
    return TokredError(
        f"{what} cannot be loaded (not in the local cache {constants.HF_HUB_CACHE}, and {unreachable}): {_advice(name)}"
    )


def _advice(name: str) -> str:
    """Where to fetch the weights elsewhere, and how to give them here."""
    cache = "or copy the cache of a machine that has them and set HF_HOME to it."
    if is_source(name):
        repository = name.partition(":")[2].partition("@")[0]
        files = f"config.json and model.safetensors from {constants.ENDPOINT}/{repository}"
        return f"download {files} into a folder and give it with --model local-dir:FOLDER, {cache}"
    config = get_pretrained_cfg(name)
    place = (
        f"model.safetensors from {constants.ENDPOINT}/{config.hf_hub_id}"
        if config.hf_hub_id
        else f"{config.url}"
    )
    return f"download {place} and give it with --model {_tagged(name)} --weights FILE, {cache}"


def _tagged(name: str) -> str:
    """A model of timm with the tag of its weights."""
    tag = get_pretrained_cfg(name).tag
    return f"{name.partition('.')[0]}.{tag}" if tag else name


@contextmanager
def _within_reach(local: bool = False) -> Iterator[str]:
    """Where the hub cannot be reached, let only the local cache answer: the hub's client would go on trying for a minute.

    Yields why it cannot, as the end of a sentence; nothing where it can. `local` asks nobody.
    """
    before, why = constants.HF_HUB_OFFLINE, ""
    if before:
        why = "HF_HUB_OFFLINE is set"
    elif not local:
        try:
            if not getproxies():
                place = urlsplit(constants.ENDPOINT)
                port = place.port or (80 if place.scheme == "http" else 443)
                socket.create_connection((place.hostname or "", port), timeout=_PATIENCE).close()
        except OSError:
            constants.HF_HUB_OFFLINE, why = True, f"{constants.ENDPOINT} cannot be reached"
    try:
        yield why
    finally:
        constants.HF_HUB_OFFLINE = before
