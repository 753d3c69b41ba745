"""Groups of the registered methods that tests run over."""

from tokred.core import registry

FIXED = [name for name in registry.names() if not registry.get(name).adaptive()]  # as many for every image
