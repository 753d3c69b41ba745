"""What a whole number is, and the largest values of some settings."""

from __future__ import annotations

import operator
from typing import Any

# Far above what anybody needs: a larger value is a slip of the keyboard, and would take all memory.
MOST_IMAGES_TOGETHER = 65_536
MOST_ROUNDS = 100_000
MOST_WORKERS = 512


def whole(value: Any) -> int:
    """The value as an int.

    >>> import numpy as np
    >>> whole(np.int64(3))
    3

    Raises:
        TypeError: it is no whole number; True and False, which Python takes for 1 and 0, are none.
    """
    if isinstance(value, bool):
        raise TypeError(f"{value} is no number")
    return operator.index(value)
