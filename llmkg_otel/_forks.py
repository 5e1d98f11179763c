"""What a fork of the process must not use: the locks and the threads stayed behind, the numbers did not."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

from llmkg_otel.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["in_child", "refuse_in_forks"]


def in_child(function: Callable[[], None]) -> None:
    """Call this in every fork of the process, where there are forks, before anything else runs in it."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


_live: weakref.WeakSet[Any] = weakref.WeakSet()


def refuse_in_forks(owner: object) -> None:
    """Let every use of this object in a later fork raise ConfigurationError, before it can wait for a lock.

    A fork copies one thread: a lock that another one holds is never released in the child, and counts
    would be written twice under one name. Costs nothing where nobody forks. For objects of classes of ours.
    """
    _live.add(owner)


def _refuse_all() -> None:
    for owner in tuple(_live):
        owner.__class__ = _refusing(type(owner), os.getppid())


def _refusing(kind: type, made_in: int) -> type:
    def refuse(_self: object, name: str) -> Any:
        if name in ("__class__", "__dict__"):
            return object.__getattribute__(_self, name)
        raise ConfigurationError(
            f"this {kind.__name__} was made in process {made_in}, a fork of which this is: make one in here"
            " (gunicorn: in the app's lifespan, or without --preload; multiprocessing: use spawn)"
        )

    return type(kind.__name__, (kind,), {"__getattribute__": refuse})


in_child(_refuse_all)
