"""Waits for the connection of a mover that is away, ended by whoever stops what needs it.

Anything that a thread does may have to wait for a mover: the thread says once, around all of it,
when there is no use in that any more. Only waits end so; calls that a mover is at are `cut`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

LOOK_S = 0.5
"""How often a wait looks whether it is to end."""

_waits = threading.local()


@contextlib.contextmanager
def waits_end_when(is_over: Callable[[], bool]) -> Iterator[None]:
    """In this thread, within the block, nobody waits for the connection of a mover that is away
    once `is_over` says so: whoever asks for one gets MoverAway. Blocks may lie within another."""
    before = end_of_waits()
    _waits.is_over = lambda: before() or is_over()
    try:
        yield
    finally:
        _waits.is_over = before


def waits_are_over() -> bool:
    """Whether waits of this thread are to end."""
    return end_of_waits()()


def end_of_waits() -> Callable[[], bool]:
    """What says whether waits of this thread are to end."""
    found: Callable[[], bool] = getattr(_waits, "is_over", lambda: False)
    return found
