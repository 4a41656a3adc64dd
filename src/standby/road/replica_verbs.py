"""Replicas below a root, from afar: the verbs of a target mover beside those of a transfer.

What `replica_work` does with folders of this machine. Only the source VM's state is the server's
to know: it says with `source_running` whether it runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import SessionStopped
from standby.model.machine import Machine
from standby.model.replica import ReplicaRecord
from standby.model.target_rules import TargetRules
from standby.ports import Progress
from standby.road.host_verbs import keep_replica_machine
from standby.road.places import LOCAL_PLACES, Places
from standby.road.replica_work import ReplicaWork
from standby.road.surveying import ReplicaStatus
from standby.road.verb_plans import VerbPlan, plan_verb
from standby.road.verbs import answered
from standby.road.verifying import PointVerdict


class _Shelf(ReplicaWork):
    """The replicas below one root, with what the server says of the source VM."""

    source_running = False

    def source_is_running(self, record: ReplicaRecord) -> bool:
        """See ReplicaWork."""
        return self.source_running


class ReplicaVerbs:
    """Verbs of a target mover about replicas. `root` is the target host's folder, `name` a
    replica's or its VM's."""

    def __init__(
        self,
        *,
        places: Places = LOCAL_PLACES,
        protect: TargetRules = TargetRules(),  # noqa: B008
        clock: Clock = SYSTEM_CLOCK,
        give_way: Callable[[str], None] = lambda path: None,
    ) -> None:
        """`give_way` is called with a replica's place before anything becomes its writer."""
        self._give_way = give_way
        self._places = places
        self._protect = protect
        self._clock = clock
        self._lock = threading.Lock()
        self._progress: dict[str, tuple[int, int]] = {}
        self._cancelled: set[str] = set()
        self._verbs: dict[str, Callable[..., Any]] = {
            "replica_list": self.list,
            "replica_show": self.show,
            "replica_plan": self.plan,
            "replica_failover": self.failover,
            "replica_undo_failover": self.undo_failover,
            "replica_permanent_failover": lambda root, name: self._writing(
                root, name
            ).permanent_failover(name),
            "replica_power": lambda root, name, on, force=False: self._writing(root, name).power(
                name, on=on, force=force
            ),
            "replica_verify": self.verify,
            "replica_repair": self.repair,
            "keep_replica_machine": lambda path, machine, ready: keep_replica_machine(
                self._places.path(path), msgspec.convert(machine, Machine), ready
            ),
        }

    def call(self, verb: str, arguments: dict[str, Any]) -> Any:
        """Run `verb`; NotImplemented for one of another role."""
        if verb == "progress":
            with self._lock:
                return {task: list(done) for task, done in self._progress.items()}
        return answered(self._verbs, verb, arguments)

    def close(self) -> None:
        """End what still reads."""
        with self._lock:
            self._cancelled.update(self._progress)

    def cancel(self, task: str) -> None:
        """End the verification or repair of that id at its next look."""
        with self._lock:
            if task in self._progress:
                self._cancelled.add(task)

    def _shelf(self, root: str, source_running: bool = False, host: str = "target") -> _Shelf:
        shelf = _Shelf({host: self._places.path(root)}, self._clock, self._protect)
        shelf.source_running = source_running
        return shelf

    def _writing(
        self, root: str, name: str, source_running: bool = False, host: str = "target"
    ) -> _Shelf:
        """The shelf, with the replica free of sessions that lost their server."""
        shelf = self._shelf(root, source_running, host)
        self._give_way(self._places.text(shelf.folder(name).path))
        return shelf

    # --- looking -----------------------------------------------------------------------------

    def list(self, root: str) -> dict[str, Any]:
        """{"replicas": [ReplicaStatus], "unreadable": {folder: problem}}."""
        shelf = self._shelf(root)
        return {
            "replicas": [self._told(status) for status in shelf.all()],
            "unreadable": shelf.unreadable(),
        }

    def show(self, root: str, name: str) -> dict[str, Any]:
        """One ReplicaStatus."""
        return self._told(self._shelf(root).show(name))

    def _told(self, status: ReplicaStatus) -> dict[str, Any]:
        """With the folder as verbs call it."""
        told: dict[str, Any] = msgspec.to_builtins(status)
        return told | {"folder": self._places.text(Path(status.folder))}

    def plan(
        self,
        root: str,
        name: str,
        action: str,
        source_running: bool = False,
        options: dict[str, Any] | None = None,
    ) -> VerbPlan:
        """What `action` (failover, undo-failover, permanent-failover) would do; `options` are
        those of the verb."""
        return plan_verb(self._shelf(root, source_running), action, name, **(options or {}))

    # --- doing -------------------------------------------------------------------------------

    def failover(
        self,
        root: str,
        name: str,
        point: str | None = None,
        adopt: bool = False,
        source_running: bool = False,
        source_may_run: bool = False,
        power_on: bool = False,
    ) -> Any:
        """A FailoverResult."""
        return self._writing(root, name, source_running).failover(
            name, point=point, adopt=adopt, source_may_run=source_may_run, power_on=power_on
        )

    def undo_failover(
        self, root: str, name: str, drop_writes: bool = False, host: str = "target"
    ) -> ReplicaRecord:
        """The ReplicaRecord after it."""
        return self._writing(root, name, host=host).undo_failover(name, drop_writes=drop_writes)

    # --- long reads --------------------------------------------------------------------------

    def verify(
        self, task: str, root: str, name: str, point: str | None = None, threads: int = 2
    ) -> Any:
        """[PointVerdict] of one point, or of all; `progress` tells of it by `task`."""
        progress = self._followed(task, name)
        try:
            return self._writing(root, name).verify(
                name, point=point, threads=max(1, min(threads, 16)), progress=progress
            )
        finally:
            self._forget(task)

    def repair(self, task: str, root: str, name: str, verdicts: Any) -> Any:
        """[RepairReport], from the VM's other replicas below the root; `progress` tells of what is
        read for a lost commit record."""
        progress = self._followed(task, name)
        try:
            found = msgspec.convert(verdicts, type=_VERDICTS)
            return self._writing(root, name).repair(name, found, progress)
        finally:
            self._forget(task)

    def _followed(self, task: str, name: str) -> Progress:
        with self._lock:
            self._progress[task] = (0, 0)
            self._cancelled.discard(task)

        def progress(done: int, total: int) -> None:
            with self._lock:
                self._progress[task] = (done, total)
                is_cancelled = task in self._cancelled
            if is_cancelled:
                raise SessionStopped("verify", name)

        return progress

    def _forget(self, task: str) -> None:
        with self._lock:
            self._progress.pop(task, None)
            self._cancelled.discard(task)


_VERDICTS: Any = list[PointVerdict]
