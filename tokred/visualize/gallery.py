"""What methods make of some images: where tokens go, what is predicted, and the picture of that."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from tokred.errors import TokredError
from tokred.tables.row import Row
from tokred.utils.atomic import replace_file
from tokred.utils.text import spaced, visible
from tokred.visualize.captions import page
from tokred.visualize.layout import sheet
from tokred.visualize.trace import Traced

if TYPE_CHECKING:
    import pandas as pd


KINDS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
_SAVED: dict[str, dict[str, Any]] = {
    "PNG": {"optimize": True},
    "WEBP": {"quality": 85, "method": 6},
    "JPEG": {"quality": 92},
}


@dataclass(frozen=True)
class Verdict:
    """What a model says of an image.

    Attributes:
        name: of the class.
        share: its probability.
        before: the class that the unreduced model says.
        share_before: that one's probability there.
        right: whether it is the image's label; None where that is unknown.
    """

    name: str
    share: float
    before: str
    share_before: float
    changed: bool
    right: bool | None

    @property
    def mark(self) -> str:
        """Behind the name, where the label is known."""
        return "" if self.right is None else " ✓" if self.right else " ✗"


@dataclass
class Gallery:
    """Some images as some models see them.

    Attributes:
        traced: the images and where their tokens go.
        rows: of all methods, as a leaderboard has them.
        gflops: of the unreduced model.
        names: of the classes, where they are known.
        captions: of the images.
        title: what was shown to what.
        subtitle: which weights.
        layers: after which to draw; none for only the end.
        size: of the longer side of a picture in pixels; None for what suits the images.
    """

    traced: Traced
    rows: dict[str, Row]
    gflops: float
    names: tuple[str, ...] | None
    captions: list[str]
    title: str
    subtitle: str
    layers: tuple[int, ...] = ()
    size: int | None = None

    @property
    def refused(self) -> dict[str, str]:
        """Why some methods are not shown, by name."""
        return {name: row.error for name, row in self.rows.items() if name not in self.traced.maps}

    @property
    def failed(self) -> bool:
        """Whether a method is not shown that should be: unfitted ones are expected, and of several budgets some that cannot be met."""
        several = len({row.budget for row in self.rows.values()}) > 1
        return any(
            self.rows[name].status not in (("unfitted", "unreachable") if several else ("unfitted",))
            for name in self.refused
        )

    def verdict(self, name: str | None, image: int) -> Verdict | None:
        """What a model, None for the unreduced one, says of an image; None if it has no classifier."""
        before = self.traced.dense.probabilities[image]
        after = before if name is None else self.traced.maps[name].probabilities[image]
        if not (len(before) and len(after)):
            return None
        said, was, truth = int(after.argmax()), int(before.argmax()), int(self.traced.truth[image])
        right = None if truth < 0 else said == truth
        return Verdict(
            self.class_name(said),
            float(after[said]),
            self.class_name(was),
            float(before[was]),
            said != was,
            right,
        )

    def class_name(self, index: int) -> str:
        """Of a class; its number where names are unknown."""
        return visible(self.names[index]) if self.names else str(index)

    @cached_property
    def picture(self) -> Image.Image:
        """The page that shows it all."""
        drawn, side = page(self)
        return sheet(drawn, side)

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each image and model: image, method, tokens, before, share_before, after, share, changed, right."""
        import pandas as pd

        found = []
        for image, caption in enumerate(self.captions):
            for name, traced in self.traced.maps.items():
                row: dict[str, Any] = {"image": caption, "method": name, "tokens": spaced(traced.tokens)}
                verdict = self.verdict(name, image)
                if verdict:
                    row |= {
                        "before": verdict.before,
                        "share_before": verdict.share_before,
                        "after": verdict.name,
                        "share": verdict.share,
                    }
                    row |= {"changed": verdict.changed, "right": verdict.right}
                found.append(row)
        return pd.DataFrame(found)

    def save(self, path: str | Path) -> None:
        """Write the picture to a .png, .webp or .jpg file.

        Raises:
            TokredError: a file of another kind, or it cannot be written.
        """
        target = Path(path)
        check_kind(target)
        replace_file(target, self._file(KINDS[target.suffix.lower()]), "choose another file with --out")

    def _file(self, kind: str) -> bytes:
        buffer = io.BytesIO()
        self.picture.convert("RGB").save(buffer, kind, **_SAVED[kind])
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        """As notebooks display it."""
        return self._file("PNG")


def check_kind(path: Path) -> None:
    """Whether a picture can be written to a file of that name.

    Raises:
        TokredError: not by its suffix.
    """
    if path.suffix.lower() not in KINDS:
        raise TokredError(f"--out {path} is no picture; give a file that ends in {', '.join(KINDS)}.")
