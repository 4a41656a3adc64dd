"""The tasks of a service mover: work that outlives the connection that asked for it (RULES 18).

A call that names a `task` is kept by (verb, task) until it has ended and a server that came back
had time to ask for its result. Whoever asks for the same task again, or rejoins it, gets the one
answer; nothing is begun twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from standby.clock import Clock
from standby.errors import LinkError, ProtocolError
from standby.road.owners import Owner

TASKS_MAX = 1024
"""Running and ended ones together; the oldest ended ones go first."""

Answer = Callable[[Any, BaseException | None], None]
"""Called once with the result or the error."""


@dataclass(slots=True, eq=False)
class Task:
    """One piece of work. `session` is what the server calls the session it belongs to."""

    verb: str
    name: str
    session: str
    owner: Owner
    ended_at: float | None = None
    result: Any = None
    error: BaseException | None = None
    answers: list[Answer] = field(default_factory=list)

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.ended_at is None


class Tasks:
    """Every task that runs, and those that ended a while ago. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tasks: dict[tuple[str, str], Task] = {}

    def begin(
        self, verb: str, name: str, session: str, owner: Owner, answer: Answer
    ) -> Task | None:
        """A new task, to be ended with `end`; None where that very task is known: `answer` gets
        its result then."""
        with self._lock:
            known = self._tasks.get((verb, name))
            if known is None:
                self._make_room(owner)
                task = Task(verb, name, session, owner)
                task.answers.append(answer)
                self._tasks[(verb, name)] = task
                return task
        self._join(known, owner, answer)
        return None

    def _make_room(self, owner: Owner) -> None:
        if len(self._tasks) < TASKS_MAX:
            return
        ended = [(task.ended_at or 0.0, key) for key, task in self._tasks.items() if task.ended_at]
        if not ended:
            raise LinkError(owner.name, f"{TASKS_MAX} tasks run here already")
        del self._tasks[min(ended)[1]]

    def end(self, task: Task, result: Any, error: BaseException | None) -> None:
        """Keep the result, and give it to all who asked."""
        with self._lock:
            task.result, task.error = result, error
            task.ended_at = self._clock.monotonic()
            answers, task.answers = task.answers, []
        for answer in answers:
            answer(result, error)

    def rejoin(self, name: str, verb: str, owner: Owner, answer: Answer) -> None:
        """Have `answer` get the result of a task, now or when it ends. Raises LinkError for one
        that is not known: it never began, or its result was not fetched in time."""
        with self._lock:
            found = [
                task
                for task in self._tasks.values()
                if task.name == name and verb in ("", task.verb)
            ]
        if not found:
            raise LinkError(owner.name, f"task {name!r} is not known here")
        if len(found) > 1:
            verbs = ", ".join(task.verb for task in found)
            raise ProtocolError(
                owner.name, f"task {name!r} means several here ({verbs}): say which"
            )
        self._join(found[0], owner, answer)

    def _join(self, task: Task, owner: Owner, answer: Answer) -> None:
        with self._lock:
            task.owner = owner
            if task.is_running:
                task.answers.append(answer)
                return
        answer(task.result, task.error)

    def forget(self, name: str) -> None:
        """Drop the results of that id."""
        with self._lock:
            for key in [key for key, task in self._tasks.items() if task.name == name]:
                if not self._tasks[key].is_running:
                    del self._tasks[key]

    def __iter__(self) -> Iterator[Task]:
        with self._lock:
            return iter(list(self._tasks.values()))

    def expire(self, before: float) -> None:
        """Drop results of tasks that ended before that monotonic time."""
        with self._lock:
            for key, task in list(self._tasks.items()):
                if task.ended_at is not None and task.ended_at < before:
                    del self._tasks[key]
