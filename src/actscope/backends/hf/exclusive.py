"""One pass at a time: hooks and flags of two passes on one model would mix.

Captures, answers and gradients of several threads wait for each other. A pass that somebody runs in
another thread by calling the Hugging Face model directly does not wait, and our hooks leave it
alone: each hook acts only in the thread that put it there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = ["OneThread", "alone", "innermost", "is_innermost", "on_entering"]

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_making = threading.Lock()
_local = threading.local()


@contextmanager
def alone(hf: nn.Module) -> Generator[None]:
    """Wait until no other thread runs a pass of ours on this model, and keep it inside."""
    with _making:
        lock = _locks.setdefault(hf, threading.RLock())
    with lock:
        yield


class OneThread:
    """Tells whether the thread that made it is the one that asks."""

    def __init__(self) -> None:
        self._ident = threading.get_ident()

    @property
    def here(self) -> bool:
        """Whether this is that thread."""
        return threading.get_ident() == self._ident


def on_entering(
    module: nn.Module, hook: Callable[..., Any], *, prepend: bool = False
) -> RemovableHandle:
    """Call a hook with ``(module, args, kwargs)`` before a module runs.

    While one thread runs a module, another may remove a hook of its own. torch then still calls the
    hook, but no longer knows that it takes ``kwargs``: such a call is nobody's, and is left out.
    """

    def called(module: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> Any:
        return None if kwargs is None else hook(module, args, kwargs)

    return module.register_forward_pre_hook(called, prepend=prepend, with_kwargs=True)


@contextmanager
def innermost(owner: object) -> Generator[None]:
    """Inside, passes of this thread are the owner's; a pass begun within one is another's."""
    owners: list[object] = _local.__dict__.setdefault("owners", [])
    owners.append(owner)
    try:
        yield
    finally:
        owners.pop()


def is_innermost(owner: object) -> bool:
    """Whether the pass that runs in this thread is the owner's."""
    owners: list[object] = _local.__dict__.get("owners", [])
    return bool(owners) and owners[-1] is owner
