"""`once`: a property that is computed when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class once(Generic[T]):  # noqa: N801, a decorator
    """Make a method a property whose value is computed when first asked for, then kept in the object.

    `functools.cached_property` takes a lock, which `torch.compile` cannot trace and, before Python 3.12, all
    objects share.

    >>> class Circle:
    ...     @once
    ...     def area(self):
    ...         print("computed")
    ...         return 3.14
    >>> circle = Circle()
    >>> circle.area, circle.area
    computed
    (3.14, 3.14)
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute, self.name, self.__doc__ = compute, compute.__name__, compute.__doc__

    def __get__(self, instance: Any, owner: type) -> T:
        if instance is None:
            return self  # type: ignore[return-value]  # on the class, as properties do
        value = instance.__dict__[self.name] = self.compute(instance)
        return value
