"""The result of `tokred.show`: a sheet to display or to save, and its content as a data frame."""

from __future__ import annotations

import io
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from tokred.errors import TokredError
from tokred.utils.atomic import replace_file
from tokred.utils.text import spaced
from tokred.visualize.panels import Panels
from tokred.visualize.sheet import render

if TYPE_CHECKING:
    import pandas as pd

_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {"optimize": True}),
    ".webp": ("WEBP", {"quality": 85, "method": 6}),
    ".jpg": ("JPEG", {"quality": 92}),
    ".jpeg": ("JPEG", {"quality": 92}),
}


class Gallery(Panels):
    """The tokens and predictions of some models on images, as a picture and as a table."""

    @property
    def failed(self) -> bool:
        """Whether a method is missing unexpectedly.

        Methods that are not fitted are expected to be missing, and so is a method at one of several budgets
        that it cannot reach.
        """
        several = len({row.budget for row in self.rows.values()}) > 1
        expected = ("unfitted", "unreachable") if several else ("unfitted",)
        return any(self.rows[name].status not in expected for name in self.refused)

    @cached_property
    def picture(self) -> Image.Image:
        """The sheet."""
        return render(self)

    @property
    def frame(self) -> pd.DataFrame:
        """One row per image and method: tokens, prediction and confidence before and after, what changed."""
        import pandas as pd

        records = []
        for image, caption in enumerate(self.captions):
            for name, traced in self.traced.maps.items():
                record: dict[str, Any] = {"image": caption, "method": name, "tokens": spaced(traced.tokens)}
                if verdict := self.verdict(name, image):
                    record |= vars(verdict)
                    record["after"] = record.pop("name")
                records.append(record)
        order = ("image", "method", "tokens", "before", "share_before", "after", "share", "changed", "right")
        frame = pd.DataFrame(records)
        return frame[[name for name in order if name in frame]]

    def save(self, path: str | Path) -> None:
        """Write the sheet to a .png, .webp or .jpg file.

        Raises:
            TokredError: the file's name has another suffix, or it cannot be written.
        """
        target = Path(path)
        check_suffix(target)
        replace_file(target, self._encoded(target.suffix.lower()), "choose another file with --out")

    def _encoded(self, suffix: str) -> bytes:
        buffer, (form, options) = io.BytesIO(), _FORMATS[suffix]
        self.picture.save(buffer, form, **options)
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        """The sheet as notebooks display it."""
        return self._encoded(".png")


def check_suffix(path: Path) -> None:
    """Raise a `TokredError` if the suffix of a file is not that of a picture."""
    if path.suffix.lower() not in _FORMATS:
        raise TokredError(f"--out takes the name of a picture, {', '.join(_FORMATS)}; got {path}.")
