"""An exported model against the model itself: predictions, differences, and speed beside the dense one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tokred.core.vit import ReducedViT
from tokred.errors import TokredError
from tokred.evaluation.timing import Interval, interleave, median_interval
from tokred.models.export import Form, export
from tokred.tables.render import Table

Runner = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Check:
    """How an exported model compares.

    Attributes:
        images: number of images.
        same: images on which file and model predict the same class.
        difference: the largest absolute difference of a logit.
        speedups: by batch size, the speed-up of the file over that of the dense model.
        milliseconds: by batch size, the time of the dense file and of this one, medians.
    """

    images: int
    same: int
    difference: float
    speedups: dict[int, Interval]
    milliseconds: dict[int, tuple[float, float]]

    def table(self, title: str) -> Table:
        """The speeds as a table, with the agreement below it."""
        rows = [
            [str(size), f"{dense:.1f}", f"{own:.1f}", f"{s.median:.3f}", f"{s.low:.3f} to {s.high:.3f}"]
            for (size, s), (dense, own) in zip(self.speedups.items(), self.milliseconds.values(), strict=True)
        ]
        note = (
            f"The file predicts the class that the model predicts on {self.same} of {self.images} images; "
            f"logits differ by at most {self.difference:.1e}."
        )
        headers = ("Batch", "Dense (ms)", "Reduced (ms)", "Speed-up", "95 % interval")
        return Table(title=title, headers=headers, rows=rows, words=frozenset(), notes=(note,))


def check(
    path: Path, form: Form, model: ReducedViT, images: Tensor, *, dynamic: bool, rounds: int = 15
) -> Check:
    """Run an exported file, and the dense model exported alike, on prepared images [n, channels, H, W].

    Raises:
        TokredError: onnxruntime is missing, or there is no image.
    """
    if not len(images):
        raise TokredError("There is no image to check the exported model on.")
    run = load(path, form)
    batches = images.split(16 if dynamic else 1)
    with torch.inference_mode():
        want = torch.cat([model(batch) for batch in images.split(16)])
        got = torch.cat([run(batch) for batch in batches])
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"dense.{form}"
            dense = load(export(ReducedViT(model.backbone), file, form, dynamic_batch=dynamic), form)
        speedups, times = {}, {}
        for size in (1, 16) if dynamic else (1,):
            batch = images[torch.arange(size) % len(images)]
            runs = {"dense": lambda batch=batch: dense(batch), "own": lambda batch=batch: run(batch)}
            for call in runs.values():
                call()
            seconds = interleave(runs, rounds, torch.device("cpu"))
            speedups[size] = median_interval(seconds["dense"] / seconds["own"])
            medians = {name: 1000 * median_interval(values).median for name, values in seconds.items()}
            times[size] = medians["dense"], medians["own"]
    same = int((want.argmax(1) == got.argmax(1)).sum())
    return Check(len(images), same, float((want - got).abs().max()), speedups, times)


def load(path: Path, form: Form) -> Runner:
    """An exported model as a function of images, on the CPU with as many threads as torch has.

    Raises:
        TokredError: onnxruntime is missing.
    """
    if form == "pt2":
        module: Runner = torch.export.load(path).module()
        return module
    try:
        import onnxruntime
    except ImportError:
        raise TokredError("--check runs the file with onnxruntime: pip install 'tokred[export]'.") from None
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path.read_bytes(), settings, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
