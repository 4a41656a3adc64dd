"""What the backup server remembers: sessions, checkpoint intents, alarms, replicas it has seen.

State only; the configuration is standby.toml, and the truth about a replica stands at the target.
SQLAlchemy Core with portable types: SQLite by default, PostgreSQL by URL with the same code.
Times are ISO 8601 texts in UTC. This package is the only place that knows SQLAlchemy.

`Store` is the door: its own methods are about reports (in `reports`), checkpoints and transfers
under way (`checkpoints`), replicas (`replicas`) and alarms (`alarms`); `store.queue` about sessions
that are to run, `store.dispatch(lease)` is what the active server does to them, `store.tokens` the
API's tokens, `store.job_lock` one session per job.
"""

from __future__ import annotations

from copy import copy
from pathlib import Path

from standby.clock import SYSTEM_CLOCK, Clock
from standby.server.store.alarms import CHANGED_SHARE, TRACKER, Alarms
from standby.server.store.checkpoints import Checkpoints
from standby.server.store.database import Database
from standby.server.store.dispatch import Dispatch, TaskMove
from standby.server.store.lease import LEASE_S, LeaseHolder, LeaseKeeper, ServerLease
from standby.server.store.locks import JobLock, job_lock
from standby.server.store.operations import OperationBook
from standby.server.store.queue import SessionQueue
from standby.server.store.replicas import KnownReplicas
from standby.server.store.reports import Reports
from standby.server.store.tables import Alarm, ApiToken, CheckpointIntent, KnownReplica
from standby.server.store.tokens import Tokens
from standby.server.store.wakeups import Wakeups

__all__ = [
    "CHANGED_SHARE",
    "TRACKER",
    "Alarm",
    "ApiToken",
    "CheckpointIntent",
    "Dispatch",
    "JobLock",
    "KnownReplica",
    "LeaseHolder",
    "LeaseKeeper",
    "ServerLease",
    "SessionQueue",
    "Store",
    "TaskMove",
    "Tokens",
    "Wakeups",
]


class Store(Reports, Checkpoints, KnownReplicas, Alarms):
    """The state database. Thread-safe; several processes may use one SQLite file.

    Every method is one transaction, durable when it returns (but for `save_figures`), and raises
    StateDatabaseError where the database refuses.
    """

    def __init__(self, database: Path | str, clock: Clock = SYSTEM_CLOCK) -> None:
        """Open a SQLite file (made where missing) or a database URL; an older schema is upgraded,
        a SQLite file copied beside itself before that."""
        super().__init__(Database(database), clock)
        self.queue = SessionQueue(self._database, clock)
        self.tokens = Tokens(self._database, clock)
        self.operations = OperationBook(self._database, clock)

    @property
    def name(self) -> str:
        """What messages call the database; no part of it is secret."""
        return self._database.name

    def close(self) -> None:
        """Close all connections; a second call does nothing."""
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- several servers -----------------------------------------------------------------------

    def lease(
        self,
        server: str,
        *,
        address: str = "",
        duration_s: float = LEASE_S,
        least_generation: int = 0,
    ) -> ServerLease:
        """This process's claim to be the active server, not acquired. `server` names this very
        process: another start needs another id."""
        return ServerLease(
            self._database,
            server,
            address=address,
            duration_s=duration_s,
            least_generation=least_generation,
            clock=self._clock,
        )

    def dispatch(self, lease: ServerLease) -> Dispatch:
        """What the active server does to sessions and tasks."""
        return Dispatch(self._database, lease, self._clock)

    def guarded(self, lease: ServerLease) -> Store:
        """The same store (close only one of them), whose every write raises ServerFenced and
        changes nothing unless `lease` is the active server's."""
        store = copy(self)
        store._lease = lease
        store._join_journeys()
        return store

    def wakeups(self) -> Wakeups:
        """Something to wait on until something is queued, asked or ended, by whatever process.
        Close it."""
        return Wakeups(self._database)

    def job_lock(self, job: str) -> JobLock:
        """The lock that a session of the job holds while its process lives; not taken."""
        return job_lock(self._database, job)
