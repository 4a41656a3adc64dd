"""For whom a mover's verb runs: the control connection that asked.

A child mover has one, which ends with it. A service mover outlives its control connections: what
was opened for one that is gone waits for its server to come back, and gives way to whoever asks
for the same thing anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar


class Owner:
    """One control connection: the server's name, its generation, and whether it is gone."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.generation = 0
        self.is_gone = False


PARENT = Owner("backup server")
"""The one server of a child mover."""

_current: ContextVar[Owner] = ContextVar("owner", default=PARENT)


def current_owner() -> Owner:
    """For whom this thread works."""
    return _current.get()


@contextlib.contextmanager
def working_for(owner: Owner) -> Iterator[None]:
    """This thread works for `owner` until the block ends."""
    token = _current.set(owner)
    try:
        yield
    finally:
        _current.reset(token)
