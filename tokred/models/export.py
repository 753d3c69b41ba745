"""Reduced models as files that run without tokred: ONNX, or a program of `torch.export`."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from tokred.core.backbone import blank_image
from tokred.core.vit import ReducedViT
from tokred.errors import TokredError, UnsupportedModel
from tokred.utils.atomic import check_writable_file, replace_file
from tokred.utils.devices import evaluating

Form = Literal["onnx", "pt2"]
OPSET = 18  # the lowest that torch's exporter writes


def export(
    model: ReducedViT, path: str | Path, form: Form | None = None, *, dynamic_batch: bool = False
) -> Path:
    """Write a reduced model to a file that takes images "images" and gives "logits".

    Args:
        model: what `tokred.reduce` returned; it is exported in evaluation mode.
        path: the file.
        form: "onnx", or "pt2" for `torch.export`; by default the path's suffix.
        dynamic_batch: whether the file takes any number of images; else it takes one.

    Raises:
        TokredError: another form, a package that is missing, or a file that cannot be written.
        UnsupportedModel: the method has an operator that cannot be exported.
    """
    if not isinstance(model, ReducedViT):
        raise TokredError(f"tokred.export takes what tokred.reduce returns; got {type(model).__name__}.")
    if not isinstance(path, str | Path) or not str(path) or "\0" in str(path):
        raise TokredError(f"The file to write is given by its path, such as 'model.onnx'; got {path!r}.")
    path = Path(path)
    form = check_form(path.suffix.removeprefix(".") if form is None else form)
    check_writable_file(path)
    if model.adaptive:
        raise UnsupportedModel(
            f"{_name(model)} cannot be exported: how many tokens it keeps depends on the image, and the "
            "shapes in a file do not; choose another method."
        )
    if form == "onnx":
        _check_onnx(model)
    try:
        with evaluating(model), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # exporters warn of their own code
            content = _WRITERS[form](model, *_example(model, dynamic_batch))
    except TokredError:
        raise
    except (Exception, SystemExit) as error:  # code of a method can raise anything
        raise UnsupportedModel(f"{_name(model)} cannot be exported to {form}: {_cause(error)}") from error
    replace_file(path, content, "choose another file")
    return path


def check_form(name: object) -> Form:
    """The name itself; a `TokredError` if it is not that of a form."""
    if not isinstance(name, str) or name not in get_args(Form):
        raise TokredError(f"A model is exported as {' or '.join(get_args(Form))}, not as {name!r}.")
    return cast("Form", name)


def _example(model: ReducedViT, dynamic_batch: bool) -> tuple[Tensor, Any]:
    """Images to trace the model with, and which of their dimensions may change."""
    image = blank_image(model.backbone)
    if not dynamic_batch:
        return image, None
    return image.repeat(2, 1, 1, 1), ({0: torch.export.Dim("batch", min=1)},)  # one image would be a constant


def _program(model: ReducedViT, images: Tensor, shapes: Any) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(model, (images,), dynamic_shapes=shapes, strict=False), buffer)
    return buffer.getvalue()


def _onnx(model: ReducedViT, images: Tensor, shapes: Any) -> bytes:
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=["images"],
            output_names=["logits"],
            external_data=False,
            custom_translation_table={torch.ops.aten.sort.stable: _sorted},
            verbose=False,
        )
    assert program is not None
    return program.model_proto.SerializeToString()


_WRITERS = {"onnx": _onnx, "pt2": _program}


def _sorted(x: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """A stable sort in ONNX: of equal values, its TopK takes the one with the lower index first."""
    from onnxscript import opset18 as op

    count = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
    return op.TopK(x, count, axis=dim, largest=int(descending), sorted=1)


def _check_onnx(model: ReducedViT) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise TokredError(
            "Exporting to ONNX needs the packages onnx and onnxscript: pip install 'tokred[export]'."
        ) from None
    if getattr(model.plan.reducer if model.plan.method else None, "host", False):
        raise UnsupportedModel(
            f"{_name(model)} computes on the host, for which ONNX has no operator; export it as pt2, "
            "or choose another method."
        )


def _name(model: ReducedViT) -> str:
    return model.plan.reducer.name if model.plan.method else "the dense model"


def _cause(error: BaseException) -> str:
    """The first line of what lies behind an exporter's error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".") + "."
