"""Verbs that take long: begun with one call, looked after, or cancelled, with others.

The state database has them too (`store.operations`), so that how one ended, or that its server did,
is known to every server on it, and after a restart.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec

from standby.clock import Clock, new_token
from standby.errors import (
    IllegalOperation,
    MoverFault,
    OperationCancelled,
    OperationLost,
    PeerBusy,
    StandbyError,
    UnknownName,
)
from standby.server.api.answers import error_body
from standby.server.logs import Log
from standby.server.store.operations import KEPT, RUNNING, OperationBook, StoredOperation

AT_ONCE = 4
WAITING_MAX = 64
BEAT_S = 5.0
"""How often it is said of those under way that they are."""

OUTCOME_MAX = 16 << 20
"""A longer result is told while the server lives, and not kept."""


class Operation:
    """One operation of this process. Thread-safe. Called as operation(label, done, total) by what
    works for it: says how far it is, and raises OperationCancelled once it is to end."""

    def __init__(self, id: str, kind: str, name: str, by: str, started_at: str) -> None:
        self.id = id
        self.kind = kind
        self.name = name
        self.by = by
        self.started_at = started_at
        self.ended_at = ""
        self.future: Future[Any] = Future()
        """Its result, or its error."""
        self._progress: dict[str, tuple[int, int]] = {}
        self._is_cancelled = False
        self._can_stop = True
        self._lock = threading.Lock()

    def __call__(self, label: str, done: int, total: int) -> None:
        with self._lock:
            self._progress[label] = (done, total)
        self.check()

    def check(self) -> None:
        """Raise OperationCancelled once it is to end."""
        if self._is_cancelled:
            raise OperationCancelled(self.kind, self.name)

    def go_through(self) -> None:
        """From now on it cannot be cancelled: what it does is to be done whole."""
        self.check()
        with self._lock:
            self._can_stop = False

    def cancel(self) -> None:
        """Have it end; IllegalOperation for one that cannot stop any more."""
        with self._lock:
            if self.future.done():
                return
            if not self._can_stop:
                raise IllegalOperation(self.id, self.kind)
            self._is_cancelled = True

    def steps(self) -> list[tuple[str, int, int]]:
        """(label, done, total) of each step so far."""
        with self._lock:
            return [(label, *progress) for label, progress in self._progress.items()]

    def ending(self) -> tuple[str, Any]:
        """How it ended: the state, and its result or the body of its error."""
        error = self.future.exception()
        if error is None:
            return "done", self.future.result()
        assert isinstance(error, StandbyError)
        state = "cancelled" if isinstance(error, OperationCancelled) else "failed"
        return state, error_body(error)

    def told(self) -> dict[str, Any]:
        """As models.Operation."""
        state, outcome = self.ending() if self.future.done() else (RUNNING, None)
        return _told(self, self.by, self.steps(), state, outcome)


Progress = Operation
"""What an operation's work gets."""


class Operations:
    """The operations of this process, and those on record. Thread-safe."""

    def __init__(self, clock: Clock, log: Log, book: OperationBook) -> None:
        self._clock = clock
        self._log = log
        self._book = book
        self._owner = f"api {new_token(8)}"
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="operation")
        self._known: dict[str, Operation] = {}
        self._changed = threading.Condition()
        self._beater: threading.Thread | None = None
        self._is_closed = False

    def begin(self, kind: str, name: str, by: str, work: Callable[[Progress], Any]) -> Operation:
        """Have `work` done by a thread; PeerBusy where too many wait already."""
        with self._changed:
            if len(self._going()) >= AT_ONCE + WAITING_MAX or self._is_closed:
                raise PeerBusy("backup server", f"{len(self._going())} operations are under way")
        id = f"op-{new_token(8)}"
        operation = Operation(id, kind, name, by, self._book.begin(self._owner, id, kind, name, by))
        with self._changed:
            ended = [key for key, item in self._known.items() if item.future.done()]
            for key in ended[: max(0, len(self._known) - KEPT)]:
                del self._known[key]
            self._known[id] = operation
            if self._beater is None:
                self._beater = threading.Thread(target=self._beat, name="operations", daemon=True)
                self._beater.start()
        self._pool.submit(self._work, operation, work)
        return operation

    def _going(self) -> list[Operation]:
        return [item for item in self._known.values() if not item.future.done()]

    def _work(self, operation: Operation, work: Callable[[Progress], Any]) -> None:
        result: Any = None
        error: StandbyError | None = None
        try:
            operation.check()  # it may have waited for its turn
            result = work(operation)
        except Exception as exc:  # the caller asks for it later; nobody else would see it
            if isinstance(exc, StandbyError):
                error = exc
            else:
                self._log.error(f"{operation.kind} of {operation.name}: {exc}", error=exc)
                error = _unexpected(exc)
        self._record(operation, error, result)
        if error is None:
            operation.future.set_result(result)
        else:
            operation.future.set_exception(error)

    def _record(self, operation: Operation, error: StandbyError | None, result: Any) -> None:
        """Before the operation says that it has ended: whoever hears it may stop the server."""
        state, outcome = "done", result
        if error is not None:
            state = "cancelled" if isinstance(error, OperationCancelled) else "failed"
            outcome = error_body(error)
        operation.ended_at = self._clock.now().isoformat()
        try:
            text = _encoded(outcome)
            if len(text) > OUTCOME_MAX:
                lost = OperationLost(
                    operation.kind, operation.name, "its result was too long to be kept"
                )
                state, text = "failed", _encoded(error_body(lost))
            operation.ended_at = self._book.end(operation.id, state, text, operation.steps())
        except StandbyError as exc:  # it is known here all the same
            self._log.error(f"{operation.kind} of {operation.name} cannot be recorded: {exc}")

    def _beat(self) -> None:
        """Until none is under way: say of those that are, that they are, and hear who is to end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed, BEAT_S)
                going = self._going()
                if not going or self._is_closed:
                    self._beater = None
                    return
            try:
                asked = self._book.beat(self._owner, {item.id: item.steps() for item in going})
            except StandbyError as exc:
                self._log.error(f"operations cannot be recorded: {exc}")
                continue
            for item in going:
                if item.id in asked:
                    try:
                        item.cancel()
                    except IllegalOperation as exc:
                        self._log.warning(str(exc))

    # --- looking -----------------------------------------------------------------------------

    def here(self, operation: str) -> Operation | None:
        """The operation of that id, where this process runs it or did."""
        with self._changed:
            return self._known.get(operation)

    def told(self, operation: str) -> dict[str, Any]:
        """The operation of that id as models.Operation, or UnknownName."""
        found = self.here(operation)
        return found.told() if found is not None else _told_of_record(self._book.get(operation))

    def all(self, limit: int) -> list[dict[str, Any]]:
        """As models.Operation, newest first."""
        found = []
        for record in self._book.all(limit):
            known = self.here(record.id)
            found.append(known.told() if known is not None else _told_of_record(record))
        return found

    def cancel(self, operation: str) -> dict[str, Any]:
        """Have it end, whichever server runs it; as it stands now. UnknownName, or
        IllegalOperation for one that cannot stop."""
        found = self.here(operation)
        if found is not None:
            found.cancel()
        elif self._book.get(operation).state == RUNNING:
            self._book.ask_to_cancel(operation)
        return self.told(operation)

    def result(self, operation: str, kind: str, name: str) -> Any:
        """What that operation found, of builtin types; UnknownName unless it is one of that kind
        and name that is done."""
        told = self.told(operation)
        if (told["kind"], told["name"], told["state"]) != (kind, name, "done"):
            raise UnknownName(f"{kind} of {name} that is done", operation)
        return msgspec.to_builtins(told["result"])

    def close(self) -> None:
        """Begin none any more. Those under way end with the process, and are on record as that."""
        with self._changed:
            self._is_closed = True
            going = self._going()
            self._changed.notify_all()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for item in going:
            lost = OperationLost(item.kind, item.name, "its server ended meanwhile")
            try:
                self._book.end(item.id, "failed", _encoded(error_body(lost)), item.steps())
            except StandbyError as exc:
                self._log.error(f"{item.kind} of {item.name} cannot be recorded: {exc}")


def _told(
    item: Operation | StoredOperation,
    by: str,
    steps: list[tuple[str, int, int]],
    state: str,
    outcome: Any,
) -> dict[str, Any]:
    told: dict[str, Any] = {
        "id": item.id,
        "kind": item.kind,
        "name": item.name,
        "state": state,
        "started_by": by,
        "started_at": item.started_at,
        "ended_at": item.ended_at,
        "progress": [
            {"label": label, "done": done, "total": total} for label, done, total in steps
        ],
    }
    if state == "done":
        told["result"] = outcome
    elif state != RUNNING:
        told["error"] = outcome
    return told


def _told_of_record(record: StoredOperation) -> dict[str, Any]:
    state, outcome = record.state, None
    if record.is_silent:
        lost = OperationLost(record.kind, record.name, "its server ended meanwhile")
        state, outcome = "failed", error_body(lost)
    elif state != RUNNING:
        outcome = msgspec.json.decode(record.outcome)
    return _told(record, record.started_by, record.steps, state, outcome)


def _encoded(value: Any) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode()


def _unexpected(exc: Exception) -> StandbyError:
    return MoverFault("backup server", f"unexpected {type(exc).__name__}: {exc}")
