"""Verbs that take long: begun with one call, looked after with others."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from standby.clock import Clock, new_token
from standby.errors import MoverFault, PeerBusy, StandbyError, UnknownName
from standby.server.api.answers import error_body
from standby.server.logs import Log

Progress = Callable[[str, int, int], None]
"""Called as progress(label, done, total) from any thread."""

AT_ONCE = 4
WAITING_MAX = 64
KEPT = 200
"""How many are remembered after their end."""


class Operation:
    """One operation. Thread-safe."""

    def __init__(self, kind: str, name: str, by: str, started_at: str) -> None:
        self.id = f"op-{new_token(8)}"
        self.kind = kind
        self.name = name
        self.by = by
        self.started_at = started_at
        self.ended_at = ""
        self.future: Future[Any] = Future()
        """Its result, or its error."""
        self._progress: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def note(self, label: str, done: int, total: int) -> None:
        """How far it is."""
        with self._lock:
            self._progress[label] = (done, total)

    def told(self) -> dict[str, Any]:
        """As models.Operation."""
        with self._lock:
            steps = [
                {"label": label, "done": done, "total": total}
                for label, (done, total) in self._progress.items()
            ]
        told: dict[str, Any] = {
            "id": self.id,
            "kind": self.kind,
            "name": self.name,
            "state": "running",
            "started_by": self.by,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "progress": steps,
        }
        if self.future.done():
            error = self.future.exception()
            if error is None:
                told |= {"state": "done", "result": self.future.result()}
            else:
                assert isinstance(error, StandbyError)
                told |= {"state": "failed", "error": error_body(error)}
        return told


class Operations:
    """The operations of this process. Thread-safe."""

    def __init__(self, clock: Clock, log: Log) -> None:
        self._clock = clock
        self._log = log
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="operation")
        self._known: OrderedDict[str, Operation] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, kind: str, name: str, by: str, work: Callable[[Progress], Any]) -> Operation:
        """Have `work` done by a thread; PeerBusy where too many wait already."""
        operation = Operation(kind, name, by, self._clock.now().isoformat())
        with self._lock:
            going = [item for item in self._known.values() if not item.future.done()]
            if len(going) >= AT_ONCE + WAITING_MAX:
                raise PeerBusy("backup server", f"{len(going)} operations are under way already")
            ended = [key for key, item in self._known.items() if item.future.done()]
            for key in ended[: max(0, len(self._known) - KEPT)]:
                del self._known[key]
            self._known[operation.id] = operation
        self._pool.submit(self._work, operation, work)
        return operation

    def _work(self, operation: Operation, work: Callable[[Progress], Any]) -> None:
        try:
            result = work(operation.note)
        except Exception as exc:  # the caller asks for it later; nobody else would see it
            if not isinstance(exc, StandbyError):
                self._log.error(f"{operation.kind} of {operation.name}: {exc}", error=exc)
                exc = _unexpected(exc)
            operation.ended_at = self._clock.now().isoformat()
            operation.future.set_exception(exc)
        else:
            operation.ended_at = self._clock.now().isoformat()
            operation.future.set_result(result)

    def get(self, operation: str) -> Operation:
        """The operation of that id, or UnknownName."""
        with self._lock:
            found = self._known.get(operation)
        if found is None:
            raise UnknownName("operation", operation, tuple(item.id for item in self.all()[:5]))
        return found

    def result(self, operation: str, kind: str, name: str) -> Any:
        """What that operation found; UnknownName unless it is one of that kind and name that is
        done."""
        found = self.get(operation)
        future = found.future
        if (found.kind, found.name) != (kind, name) or not future.done() or future.exception():
            raise UnknownName(f"{kind} of {name} that is done", operation)
        return future.result()

    def all(self) -> list[Operation]:
        """Newest first."""
        with self._lock:
            return list(self._known.values())[::-1]

    def close(self) -> None:
        """Begin none any more; those under way end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _unexpected(exc: Exception) -> StandbyError:
    return MoverFault("backup server", f"unexpected {type(exc).__name__}: {exc}")
