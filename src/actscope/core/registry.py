"""A folder is a registry: one file per plugin, the file's stem is its name.

Outside packages add to a registry with an entry point of the group ``actscope.<room>``. Nothing is
imported until it is asked for by name.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from actscope.core.errors import ActscopeError, UnknownNameError

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """The plugins of one room.

    Args:
        room: The package that holds the files, such as ``actscope.strategies``.
        attribute: The name each file gives its plugin, such as ``STRATEGY``.
        kind: What to call a plugin in an error message.
        beside: Files of the room that are no plugins, besides those with a leading underscore.
    """

    def __init__(
        self, room: str, attribute: str, kind: str, *, beside: Collection[str] = ()
    ) -> None:
        self.room = room
        self.attribute = attribute
        self.kind = kind
        self.beside = frozenset(beside)

    def names(self) -> list[str]:
        """Every plugin's name; files with a leading underscore are not plugins."""
        return sorted({*self._stems(), *_external(self.group)})

    def _stems(self) -> frozenset[str]:
        return _stems(self.room) - self.beside

    @property
    def group(self) -> str:
        """The entry point group for outside packages, such as ``actscope.strategies``."""
        return "actscope." + self.room.rpartition(".")[2]

    def get(self, name: str) -> T:
        """The plugin of that name.

        Raises:
            UnknownNameError: there is none.
            ActscopeError: the file does not define the attribute.
        """
        name = name.replace("-", "_")
        if name in self._stems():
            module = importlib.import_module(f"{self.room}.{name}")
            plugin: Any = getattr(module, self.attribute, None)
        elif name in _external(self.group):
            plugin = _external(self.group)[name].load()
        else:
            raise UnknownNameError(self.kind, name, self.names())
        if plugin is None:
            raise ActscopeError(f"{self.room}.{name} defines no {self.attribute}")
        return plugin


@cache
def _stems(room: str) -> frozenset[str]:
    package = importlib.import_module(room)
    return frozenset(m.name for m in pkgutil.iter_modules(package.__path__) if m.name[0] != "_")


@cache
def _external(group: str) -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=group)}
