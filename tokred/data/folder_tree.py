"""The images below a folder. Symbolic links to folders are followed once, by their real path."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from timm.data.readers.img_extensions import get_img_extensions
from timm.utils.misc import natural_key

from tokred.errors import TokredError
from tokred.utils.text import some


@dataclass
class FolderTree:
    """Paths below a folder.

    Attributes:
        root: the folder.
        images: files that end as images do, in natural order.
        left_out: links to folders that were read already, or that hold this folder.
        dangling: links to nothing.
    """

    root: Path
    images: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)

    @property
    def note(self) -> str:
        """A sentence for each kind of link that was not followed; "" where there is none."""
        left_out, dangling = (self._count(links) for links in (self.left_out, self.dangling))
        notes = [
            left_out and f"Left out, since the folders behind them count already: {left_out}.",
            dangling and f"Without a target: {dangling}.",
        ]
        return " ".join(filter(None, notes))

    def _count(self, links: list[str]) -> str:
        names = some([os.path.relpath(link, self.root) for link in sorted(links)], 3)
        return f"{len(links)} symbolic link{'s' if len(links) > 1 else ''} ({names})" if links else ""

    def folder_of(self, path: str) -> str:
        """The name of the folder in which a file lies; "" for the root itself."""
        folder = os.path.dirname(path)
        return "" if folder == str(self.root) else os.path.basename(folder)


def walk(root: Path) -> FolderTree:
    """List the images below a folder.

    Raises:
        TokredError: a folder cannot be read.
    """
    tree, endings = FolderTree(root), get_img_extensions(as_set=True)
    above = {str(parent) for parent in Path(os.path.realpath(root)).parents}
    folders, links, seen = deque([str(root)]), deque[str](), set[str]()
    while folders or links:  # links last, so that what lies in the folder itself counts where it lies
        folder = folders.popleft() if folders else links.popleft()
        real = os.path.realpath(folder)
        if real in seen or real in above:
            tree.left_out.append(folder)
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise TokredError(f"The folder {folder} cannot be read ({error.strerror}).") from error
        for entry in entries:
            if os.path.isdir(entry.path):
                (links if entry.is_symlink() else folders).append(entry.path)
                continue
            if entry.is_symlink() and not os.path.exists(entry.path):
                tree.dangling.append(entry.path)
            if os.path.splitext(entry.name)[1].lower() in endings:
                tree.images.append(entry.path)  # a dangling link too: it is an image that cannot be read
    tree.images.sort(key=lambda path: (natural_key(path), path))
    return tree
