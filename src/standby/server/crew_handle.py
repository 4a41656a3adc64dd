"""A service mover as one VM's session uses it, so that one VM's end is not the others'."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

from standby.errors import MoverLeft
from standby.server.service_mover import ServiceMover
from standby.server.waits import waits_end_when


class CrewHandle:
    """A service mover as one VM's session uses it: `cut` ends the calls of this `crew` only."""

    def __init__(self, mover: ServiceMover, crew: str, patience_s: float | None = None) -> None:
        """`patience_s`: how long a mover that is away is waited for (`ServiceMover.is_there`)."""
        self.name = mover.name
        self.patience_s = patience_s
        self.mover = mover
        self._crew = crew
        self._lock = threading.Lock()
        self._waiting: set[Future[Any]] = set()
        self._is_cut = False
        self._is_kept = True
        self._losses = mover.losses
        mover.keep_crew(crew)

    def start(self, verb: str, /, **arguments: Any) -> Future[Any]:
        """As `ServiceMover.start`; MoverLeft once this session was cut off."""
        ours: Future[Any] = Future()
        with self._lock:
            if self._is_cut:
                raise MoverLeft(self.name, "the session was cut off")
            self._waiting.add(ours)
        try:
            with waits_end_when(lambda: self._is_cut):
                if not self.mover.is_there(self.patience_s):
                    raise self.mover.why_away()
                theirs = self.mover.start(verb, crew=self._crew, **arguments)
        except BaseException:
            with self._lock:
                self._waiting.discard(ours)
            raise
        theirs.add_done_callback(lambda done: self._finish(ours, done))
        return ours

    def start_now(self, verb: str, /, **arguments: Any) -> Future[Any] | None:
        """As `ServiceMover.start_now`; None once this session was cut off, too."""
        if self._is_cut:
            return None
        return self.mover.start_now(verb, crew=self._crew, **arguments)

    def call(self, verb: str, /, **arguments: Any) -> Any:
        """Ask for `verb` and wait for its result."""
        return self.start(verb, **arguments).result()

    @property
    def is_connected(self) -> bool:
        """Whether the mover can be asked now."""
        return self.mover.is_connected

    @property
    def lost(self) -> str:
        """Why the mover's link was lost since this session has used it, '' when it was not."""
        return self.mover.last_loss if self.mover.losses > self._losses else ""

    def _finish(self, ours: Future[Any], theirs: Future[Any]) -> None:
        with self._lock:
            if ours not in self._waiting:
                return
            self._waiting.discard(ours)
        error = theirs.exception()
        if error is not None:
            ours.set_exception(error)
        else:
            ours.set_result(theirs.result())

    def cut(self) -> None:
        """End every call of this crew, now and from now on, whatever the mover hangs in; it is told
        to end the crew's tasks."""
        with self._lock:
            if self._is_cut:
                return
            self._is_cut = True
            waiting = list(self._waiting)
            self._waiting.clear()
        for future in waiting:
            future.set_exception(MoverLeft(self.name, "the session was cut off"))
        self.close()
        self.mover.end_crew(self._crew)

    def close(self) -> None:
        """The crew is not at work any more; the mover serves other ones."""
        with self._lock:
            is_kept, self._is_kept = self._is_kept, False
        if is_kept:
            self.mover.drop_crew(self._crew)
