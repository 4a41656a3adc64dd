"""For whom a mover's verb runs: the control connection that asked.

A child mover has one, which ends with it. A service mover outlives its control connections: what
was opened for one that is gone waits for its server to come back, and gives way to whoever asks
for the same thing anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar


class Owner:
    """One control connection: the server's name, its generation, and when it went (None: it is
    there). `is_away` says that no other connection of that server is there either. `is_guest` is
    one that leads nothing, as the command line: it neither fences anybody nor is fenced."""

    def __init__(self, name: str, is_away: Callable[[], bool] = lambda: False) -> None:
        self.name = name
        self.generation = 0
        self.is_guest = False
        self.gone_at: float | None = None
        self._is_away = is_away

    @property
    def is_gone(self) -> bool:
        """Whether the connection has ended."""
        return self.gone_at is not None

    @property
    def is_away(self) -> bool:
        """Whether its server is not connected at all now."""
        return self.is_gone and self._is_away()


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
