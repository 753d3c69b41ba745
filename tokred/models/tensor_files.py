"""Weight files: reading them without running code, writing them in one step, hashing what is in them."""

from __future__ import annotations

import argparse
import hashlib
import json
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from timm.models import clean_state_dict
from torch import Tensor, nn

from tokred.errors import TokredError
from tokred.utils.atomic import replace_file
from tokred.utils.files import NOT_REGULAR, check_regular, is_stream, read_text

CHECKPOINTS = (".pth", ".pt", ".bin", ".tar", ".ckpt")
# Keys of state dicts within checkpoints; of several, averaged weights come first, as timm takes them.
_STATES = ("state_dict_ema", "model_ema", "teacher", "state_dict", "model_state_dict", "model", "student")
_WRAPPERS = frozenset((*_STATES, "module", "backbone", "encoder", "net", "network", "_orig_mod"))
_FIRST = "patch_embed.proj.weight"  # which every ViT of timm has


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a weight file, float32; a checkpoint may nest its state dict under the usual keys.

    Raises:
        TokredError: missing, corrupt, or no file of tensors.
    """
    if path.suffix == ".safetensors":
        _check_there(path)
        try:
            return _float32(safetensors.torch.load_file(path))
        except (safetensors.SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise _unreadable(path, error) from error
    return state_dict(read_checkpoint(path), path)


def read_checkpoint(path: Path) -> Any:
    """The content of a .pth file, read without running code.

    Beside tensors and plain Python values only `argparse.Namespace` is allowed, in which training scripts
    keep their settings.

    Raises:
        TokredError: missing, corrupt, or something else is in it.
    """
    _check_there(path)
    try:
        with _namespaces():
            # Mapped, the optimizer's state stays on disk.
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, RuntimeError, ValueError, AttributeError, EOFError) as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # pickle's UnpicklingError, with torch's advice to switch its safety off
        raise TokredError(
            f"The weight file {path} is not a plain file of tensors; convert it to .safetensors."
        ) from error


def state_dict(checkpoint: Any, path: Path, part: str | None = None) -> dict[str, Tensor]:
    """The tensors of what `read_checkpoint` gave, float32, under their plain names.

    Args:
        checkpoint: a state dict, or a dictionary that holds one.
        path: path of the file, for the message.
        part: under which key the state dict stands; by default where it usually does.

    Raises:
        TokredError: there is no state dict in it.
    """
    if part is not None and isinstance(checkpoint, Mapping):
        checkpoint = checkpoint.get(part)
    while isinstance(checkpoint, Mapping):
        key = next((key for key in _STATES if isinstance(checkpoint.get(key), Mapping)), None)
        if key is None:
            break
        checkpoint = checkpoint[key]
    if not isinstance(checkpoint, Mapping):
        raise TokredError(
            f"The weight file {path} holds no state dict; expected one, or a dictionary with one under "
            "'model'."
        )
    return _float32(clean_state_dict(dict(checkpoint)))


def unwrap(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a ViT under timm's names, without prefixes of training code such as "model.backbone.".

    Of several models in one file the averaged one or the teacher is taken; what lies beside it is left out.
    """
    prefixes = [key.removesuffix(_FIRST) for key in tensors if key.endswith(_FIRST)]
    prefixes = [prefix for prefix in prefixes if set(prefix.split(".")[:-1]) <= _WRAPPERS]
    if not prefixes or "" in prefixes:
        return dict(tensors)
    prefix = min(prefixes, key=lambda prefix: [_rank(word) for word in prefix.split(".")[:-1]])
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _rank(wrapper: str) -> int:
    return _STATES.index(wrapper) if wrapper in _STATES else len(_STATES)


def _float32(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    kept = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    return {key: value.float() if value.is_floating_point() else value for key, value in kept.items()}


def _check_there(path: Path) -> None:
    if is_stream(path):
        raise TokredError(f"{path} {NOT_REGULAR}.")
    if not path.is_file():
        raise TokredError(f"No weight file at {path}; give the path of a .safetensors or .pth file.")


def _unreadable(path: Path, error: Exception) -> TokredError:
    reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
    return TokredError(
        f"The weight file {path} cannot be read ({reason}); it may be cut off, fetch or write it again."
    )


def _namespaces() -> AbstractContextManager[Any]:
    """A context in which torch reads `argparse.Namespace`, which torch before 2.5 refuses."""
    allow = getattr(torch.serialization, "safe_globals", None)
    return nullcontext() if allow is None else allow([argparse.Namespace])


def read_card(path: Path) -> dict[str, Any]:
    """The card beside a weight file; a file of that name which is no card is somebody else's."""
    try:
        card = json.loads(read_text(path.with_suffix(".json")))
    except (OSError, ValueError, RecursionError):
        return {}
    return card if isinstance(card, dict) else {}


def write_tensors(tensors: Mapping[str, Tensor], path: Path, card: Mapping[str, Any]) -> None:
    """Write tensors, floating ones as float16, and their card beside them, each in one step.

    Raises:
        TokredError: they cannot be written.
    """
    halves = {
        key: value.detach().cpu().half().contiguous() if value.is_floating_point() else value
        for key, value in tensors.items()
    }
    advice = "make room or choose another folder"
    replace_file(path, safetensors.torch.save(halves), advice)  # save_file would let only the owner read it
    replace_file(path.with_suffix(".json"), (json.dumps(card, indent=2) + "\n").encode(), advice)


def hash_weights(model: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(
            value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            if value.ndim
            else str(value.item()).encode()
        )
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file of any size.

    Raises:
        TokredError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        check_regular(path)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise TokredError(f"The file {path} cannot be read ({error.strerror}).") from error
    return digest.hexdigest()
