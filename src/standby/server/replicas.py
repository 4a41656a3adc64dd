"""The verbs of replicas, as the backup server and the command line have them.

Everything works on the target folders alone (`road.replica_work`): `Replicas.of_folder` needs no
configuration, no database and no repository. With a configuration the source VM is looked at too
(a failover while it runs has to be meant), and a repair can take pieces from it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import ConfigurationError, StandbyError
from standby.files import is_folder
from standby.model.job import ReplicationJob
from standby.model.machine import PowerState
from standby.model.replica import ReplicaIdentity, ReplicaRecord
from standby.ports import Host, inventory_of
from standby.road.points import parsed_time
from standby.road.repair_sources import source_disks
from standby.road.replica import ReplicaFolder
from standby.road.replica_machines import ReplicaMachines
from standby.road.replica_work import ReplicaWork, Source

if TYPE_CHECKING:  # failing over with only the target alive must not wait for a database's import
    from standby.road.verb_plans import VerbPlan
    from standby.server.config import Config
    from standby.server.store import Store


class Replicas(ReplicaWork):
    """The replicas below some target folders."""

    def __init__(
        self,
        config: Config | None,
        store: Store | None,
        host: Callable[[str], Host] | None,
        clock: Clock = SYSTEM_CLOCK,
        roots: dict[str, Path] | None = None,
        machines: Callable[[str], ReplicaMachines | None] = lambda host: None,
    ) -> None:
        self._config = config
        self._store = store
        self._host = host
        if roots is None and config is not None:
            targets = sorted({job.target for job in config.jobs.values()} & set(config.hosts))
            hosts = [config.hosts[name] for name in targets]
            roots = {host.name: host.path for host in hosts if not host.mover}
        super().__init__(roots or {}, clock, machines=machines)

    @classmethod
    def of_folder(cls, target: Path, clock: Clock = SYSTEM_CLOCK) -> Replicas:
        """The replicas in a target folder, with nothing else left alive."""
        if not is_folder(target):
            raise ConfigurationError(str(target), "is not a folder", "Name the target's folder")
        return cls(None, None, None, clock, {"target": target})

    def newest_age_s(self, job: ReplicationJob, machine_id: str) -> float | None:
        """Seconds since the checkpoint of the newest point of the VM's replica; None without."""
        for folder in self.folders():
            with contextlib.suppress(StandbyError):
                identity = folder.record().identity
                if (identity.machine_id, identity.job) == (machine_id, job.name):
                    newest = folder.newest()
                    taken = parsed_time(newest.taken_at) if newest is not None else None
                    return (self._clock.now() - taken).total_seconds() if taken else None
        return None

    def plan(self, action: str, name: str, **options: Any) -> VerbPlan:
        """What `action` (failover, undo-failover, permanent-failover) would do."""
        from standby.road.verb_plans import plan_verb

        return plan_verb(self, action, name, **options)

    def source_is_running(self, record: ReplicaRecord) -> bool:
        """Whether the source VM is known to run; an unreachable source is why failovers exist."""
        return self.is_source_running(record.identity)

    def is_source_running(self, identity: ReplicaIdentity) -> bool:
        """As `source_is_running`, by the replica's identity."""
        if self._host is None:
            return False
        with contextlib.suppress(StandbyError, KeyError):
            host = self._host(identity.source_host)
            for machine in inventory_of(host).machines:
                if machine.id == identity.machine_id:
                    return host.power_state(machine) in (PowerState.RUNNING, PowerState.PAUSED)
        return False

    def _repair_sources(self, folder: ReplicaFolder) -> list[Source]:
        """The source VM, where it can be asked, then every point of its other replicas, newest
        first."""
        found: list[Source] = []
        if self._host is not None and self._config is not None:
            source = folder.record().identity.source_host
            with contextlib.suppress(StandbyError, KeyError):
                host = self._host(source)
                root = self._config.hosts[source].path
                found.append(partial(source_disks, folder, host, root))
        return [*found, *super()._repair_sources(folder)]
