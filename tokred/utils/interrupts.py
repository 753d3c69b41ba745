"""Ctrl-C that is not lost: Python swallows a KeyboardInterrupt that arrives in a destructor or a callback of a library."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """While this context lasts, an interrupt is remembered, and `check` raises it again if nobody has seen it.

    Only the main thread receives signals; elsewhere this does nothing.
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
            return  # what was found is being written; a batch in work takes seconds at most
        self.came = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise an interrupt that came and was swallowed.

        Raises:
            KeyboardInterrupt
        """
        if self.came:
            raise KeyboardInterrupt
