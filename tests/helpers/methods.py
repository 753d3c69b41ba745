"""Groups of the registered methods that tests run over."""

import pytest

from tokred.core import registry

FIXED = [name for name in registry.names() if not registry.get(name).adaptive()]  # as many for every image

#: The same, all but a few marked slow: for tests whose outcome rarely depends on the method.
FEW_QUICK = [
    name if name in ("lotm", "patchmerger", "topk") else pytest.param(name, marks=pytest.mark.slow)
    for name in FIXED
]
