"""Deliver a KeyboardInterrupt that Python has swallowed, as it does in destructors and callbacks."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """A context that remembers an interrupt, so that `check` can raise it again.

    Only the main thread receives signals; in another thread this does nothing.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.came:
            return  # results are being written; the current batch takes seconds at most
        self.came = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise a KeyboardInterrupt that was swallowed."""
        if self.came:
            raise KeyboardInterrupt
