"""What the parts of one VM's session share: who works, on what, and the report that comes of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from standby.model.machine import Checkpoint, Machine
from standby.model.replica import (
    ReplicaIdentity,
    ReplicaState,
)
from standby.model.report import MachineReport
from standby.server import facts
from standby.server.context import SessionContext
from standby.server.crew import Crew


class MachineWork:
    """One VM's part in a session; `MachineDriver` is all of it."""

    def __init__(self, context: SessionContext, machine: Machine, crew: Crew) -> None:
        self.context = context
        self.machine = machine
        self.crew = crew
        self.report = MachineReport(machine.name, machine.id)
        self._identity = ReplicaIdentity(
            context.installation, context.source.name, machine.id, context.job.name
        )
        self.key = facts.repository_key(self._identity)
        self._path = ""
        self._intent = ""
        self._checkpoint: Checkpoint | None = None
        self._checkpoint_started = 0.0
        self._state_files: dict[str, str] | None = None
        self._is_released = False
        self._is_held = False
        """Whether the release has waited in vain for files to be closed."""
        self._is_mapped = False
        self._lost_points = 0
        self._sampled: dict[str, int] = {}
        """By controller place: bytes read to see whether the host's tracker lies."""

    def _alarm(self, kind: str, text: str) -> None:
        """For the report, and for the list of alarms that a person has to acknowledge."""
        self.report.alarms.append(text)
        self.context.store.raise_alarm(kind, self.context.job.name, self.machine.name, text)

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        started = self.context.clock.monotonic()
        try:
            yield
        finally:
            elapsed = self.context.clock.monotonic() - started
            steps = self.report.steps_s
            steps[name] = steps.get(name, 0.0) + elapsed

    def _remember(self, state: ReplicaState, points: list[str], count: int | None = None) -> None:
        newest = points[-1] if points else ""
        self.context.store.remember_replica(
            self._identity,
            self.report.replica,
            self._path,
            state.value,
            newest,
            len(points) if count is None else count,
        )
