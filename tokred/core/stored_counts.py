"""FLOPs of reducers that earlier calls have counted, shared by all cost tables and kept on disk."""

from __future__ import annotations

from functools import cache

import fvcore
import torch

from tokred.core.reducer import Reducer
from tokred.utils import cache as files
from tokred.utils.provenance import code_hash

_FILE = "costs.json"
_OWN = f"{__name__.partition('.')[0]}.methods."


def are_kept(cls: type[Reducer]) -> bool:
    """Whether counts of a method are kept: those of tokred's own, which only new software changes.

    A third party's method may change between two calls, and is counted anew in every cost table.
    """
    return cls.__module__.startswith(_OWN)


class StoredCounts:
    """Counts by geometry and stage, with those that the same software has left in the user's cache."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, int]] = {}
        self._saved = True
        self._software = f"{code_hash()} torch {torch.__version__} fvcore {fvcore.__version__}"
        self._read()

    def get(self, geometry: str, stage: str) -> int | None:
        """The count of a stage; None where it is not known.

        Args:
            geometry: everything in a backbone that the count depends on.
            stage: the method with its options, and its tokens in and out.
        """
        return self._known.get(geometry, {}).get(stage)

    def put(self, geometry: str, stage: str, count: int) -> None:
        """Remember a count; `save` keeps it for later processes."""
        self._known.setdefault(geometry, {})[stage] = count
        self._saved = False

    def save(self) -> None:
        """Write the counts to the cache, if there are new ones."""
        if not self._saved:
            self._read()  # other processes may have added to it
            counts = {geometry: dict(stages) for geometry, stages in list(self._known.items())}
            files.write(_FILE, {"software": self._software, "counts": counts})
            self._saved = True

    def _read(self) -> None:
        values = files.read(_FILE)
        counts = values.get("counts")
        if values.get("software") != self._software or not isinstance(counts, dict):
            return
        for geometry, stages in counts.items():
            if isinstance(stages, dict) and all(type(count) is int for count in stages.values()):
                self._known[geometry] = stages | self._known.get(geometry, {})


@cache
def shared() -> StoredCounts:
    """The counts of this process."""
    return StoredCounts()
