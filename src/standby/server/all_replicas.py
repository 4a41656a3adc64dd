"""The replicas of an installation, on this machine's targets and at those of movers, as one.

Every verb goes to whoever has the replica: `Replicas` for folders of this machine, the mover beside
the target host for the others. A target that is away hides only its own replicas: `unreadable`
names it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import ConfigurationError, LinkError, MoverDied, StandbyError, UnknownName
from standby.host.folder import FolderHost
from standby.model.job import ReplicationJob
from standby.model.machine import PowerState
from standby.model.point import RestorePoint
from standby.model.replica import ReplicaRecord, ReplicaState
from standby.ports import Host, Progress
from standby.road.failing_over import FailoverResult
from standby.road.repairing import RepairReport
from standby.road.replica import ReplicaFolder
from standby.road.surveying import ReplicaStatus, asked_as
from standby.road.verb_plans import VerbPlan
from standby.road.verifying import PointVerdict
from standby.server.config import Config, HostConfig
from standby.server.fleet import Fleet, Station
from standby.server.long_calls import long_call
from standby.server.overdue import overdue_jobs
from standby.server.remote_host import RemoteHost
from standby.server.replica_hosts import machines_at
from standby.server.replicas import Replicas
from standby.server.service_mover import Reconnect, ServiceMover


class RemoteShelf:
    """The replicas of one target host with a mover."""

    def __init__(self, host: str, station: Station, fleet: Fleet) -> None:
        self.host = host
        self.path = station.path
        self._station = station
        self._fleet = fleet

    def _mover(self) -> ServiceMover:
        """The mover, if it answers: who wants to fail over does not wait for one to come back."""
        mover = self._fleet.mover(self._station.mover)
        if not mover.answers():
            raise mover.why_away()
        return mover

    def call(self, verb: str, **arguments: Any) -> Any:
        """Ask the mover for `replica_<verb>` below the host's folder."""
        mover = self._mover()
        return mover.call(f"replica_{verb}", root=self._fleet.place(self._station), **arguments)

    def listed(self) -> tuple[list[ReplicaStatus], dict[str, str]]:
        """(replicas, {folder: problem})."""
        found = self.call("list")
        replicas = msgspec.convert(found["replicas"], list[ReplicaStatus])
        return [replace(item, target=self.host) for item in replicas], found["unreadable"]

    def shown(self, name: str) -> ReplicaStatus:
        """Everything about one replica."""
        told = msgspec.convert(self.call("show", name=name), ReplicaStatus)
        return replace(told, target=self.host)

    def long_call(self, verb: str, progress: Progress | None, **arguments: Any) -> Any:
        """A verb that reads for long, as a task that outlives a dropped connection."""
        mover = self._mover()
        root = self._fleet.place(self._station)
        return long_call(mover, f"replica_{verb}", progress, root=root, **arguments)


class AllReplicas:
    """Every replica of the configuration. The verbs are those of `Replicas`. A name that several
    target hosts have is told apart as HOST:NAME."""

    def __init__(
        self,
        config: Config,
        local: Replicas,
        fleet: Fleet,
        source_is_running: Callable[[ReplicaStatus], bool],
    ) -> None:
        self._config = config
        self._local = local
        self._source_is_running = source_is_running
        targets = sorted({job.target for job in config.jobs.values()} & set(config.hosts))
        hosts = [config.hosts[name] for name in targets]
        self._shelves = [
            RemoteShelf(host.name, Station(host.mover, str(host.path)), fleet)
            for host in hosts
            if host.mover
        ]

    # --- looking -----------------------------------------------------------------------------

    def all(self) -> list[ReplicaStatus]:
        """The state of every replica, those that are permanent left out."""
        found = list(self._local.all())
        for shelf in self._shelves:
            with contextlib.suppress(StandbyError):
                found += shelf.listed()[0]
        return sorted(
            (self._judged(item) for item in found if item.state is not ReplicaState.PERMANENT),
            key=lambda item: (item.name, item.target),
        )

    def unreadable(self) -> dict[str, str]:
        """Folder and problem of all that `all` cannot show, targets that are away among them."""
        found = dict(self._local.unreadable())
        for shelf in self._shelves:
            try:
                found |= shelf.listed()[1]
            except StandbyError as exc:
                found[f"{shelf.host}: {shelf.path}"] = str(exc)
        return found

    def show(self, name: str) -> ReplicaStatus:
        """Everything about one replica."""
        shelf, there = self._shelf(name)
        if shelf is None:
            return self._judged(self._local.show(name))
        return self._judged(asked_as(name, shelf.shown(there)))

    def _judged(self, item: ReplicaStatus) -> ReplicaStatus:
        """The status, with what only the configuration knows: that it breaks its job's rpo."""
        if item.identity.installation != self._config.installation:
            return item
        late = overdue_jobs(self._config.jobs.values(), [item]).get(item.identity.job, [])
        return replace(item, findings=(*item.findings, *late)) if late else item

    def newest_age_s(self, job: ReplicationJob, machine_id: str) -> float | None:
        """Seconds since the checkpoint of the newest point of the VM's replica; None without."""
        shelf = next((item for item in self._shelves if item.host == job.target), None)
        if shelf is None:
            return self._local.newest_age_s(job, machine_id)
        with contextlib.suppress(StandbyError):
            for item in shelf.listed()[0]:
                if (item.identity.machine_id, item.identity.job) == (machine_id, job.name):
                    return item.newest_age_s
        return None

    def _shelf(self, name: str) -> tuple[RemoteShelf | None, str]:
        """Where the replica is, and its name there: a mover's shelf, or None for this machine.
        UnknownName, with the replicas there are and the targets that are away, when it is
        nowhere."""
        if not self._shelves:
            return None, name
        host, colon, rest = name.partition(":")
        named = [shelf for shelf in self._shelves if colon and shelf.host == host]
        if not named and colon and host in self._local.hosts():
            return None, name
        there = rest if named else name
        known = [] if named else [item.name for item in self._local.all()]
        found: list[RemoteShelf | None] = []
        places = []
        if not named:
            with contextlib.suppress(UnknownName):
                folder = self._local.folder(name)
                found.append(None)
                places.append(f"{self._local.host_of(folder)}:{folder.name}")
        away = []
        unsure: list[RemoteShelf] = []
        for shelf in named or self._shelves:
            try:
                told = shelf.shown(there)  # also of one that is in no list any more
                found.append(shelf)
                places.append(f"{shelf.host}:{told.name}")
            except UnknownName as exc:
                known += exc.known
            except (LinkError, MoverDied) as exc:
                away.append(str(exc))
            except StandbyError:  # it is there and damaged, or what may be it cannot be looked at
                unsure.append(shelf)
        if len(found) > 1:
            hint = f"Write {' or '.join(places)}"
            raise ConfigurationError(name, "is the name of replicas at several targets", hint)
        if found or unsure:
            return (found[0] if found else unsure[0]), there
        if away:
            raise ConfigurationError(name, f"is not found; not every target answers: {away[0]}", "")
        raise UnknownName("replica", name, tuple(sorted(known)))

    # --- acting ------------------------------------------------------------------------------

    def plan(self, action: str, name: str, **options: Any) -> VerbPlan:
        """What `action` (failover, undo-failover, permanent-failover) would do."""
        shelf, there = self._shelf(name)
        if shelf is None:
            return self._local.plan(action, name, **options)
        told = shelf.call(
            "plan",
            name=there,
            action=action,
            source_running=action == "failover" and self._source_is_running(self.show(name)),
            options=options,
        )
        return msgspec.convert(told, VerbPlan)

    def failover(
        self,
        name: str,
        *,
        point: str | None = None,
        adopt: bool = False,
        source_may_run: bool = False,
        power_on: bool = False,
    ) -> FailoverResult:
        """Work from the replica from now on."""
        shelf, there = self._shelf(name)
        if shelf is None:
            return self._local.failover(
                name, point=point, adopt=adopt, source_may_run=source_may_run, power_on=power_on
            )
        told = shelf.call(
            "failover",
            name=there,
            point=point,
            adopt=adopt,
            source_running=self._source_is_running(self.show(name)),
            source_may_run=source_may_run,
            power_on=power_on,
        )
        return msgspec.convert(told, FailoverResult)

    def undo_failover(self, name: str, *, drop_writes: bool = False) -> ReplicaRecord:
        """Drop what the replica wrote since its failover."""
        shelf, there = self._shelf(name)
        if shelf is None:
            return self._local.undo_failover(name, drop_writes=drop_writes)
        told = shelf.call("undo_failover", name=there, drop_writes=drop_writes, host=shelf.host)
        return msgspec.convert(told, ReplicaRecord)

    def permanent_failover(self, name: str) -> ReplicaRecord:
        """Make the failed-over replica a VM of its own."""
        shelf, there = self._shelf(name)
        if shelf is None:
            return self._local.permanent_failover(name)
        return msgspec.convert(shelf.call("permanent_failover", name=there), ReplicaRecord)

    def power(self, name: str, *, on: bool, force: bool = False) -> PowerState:
        """Start or stop the replica's VM."""
        shelf, there = self._shelf(name)
        if shelf is None:
            return self._local.power(name, on=on, force=force)
        return PowerState(shelf.call("power", name=there, on=on, force=force))

    def verify(
        self,
        name: str,
        *,
        point: str | None = None,
        threads: int = 2,
        progress: Progress | None = None,
    ) -> list[PointVerdict]:
        """Read points back from their files and compare them with their digests."""
        shelf, there = self._shelf(name)
        if shelf is None:
            return self._local.verify(name, point=point, threads=threads, progress=progress)
        told = shelf.long_call("verify", progress, name=there, point=point, threads=threads)
        return msgspec.convert(told, list[PointVerdict])

    def repair(self, name: str, verdicts: list[PointVerdict]) -> list[RepairReport]:
        """Write damaged pieces anew where they can be had."""
        shelf, there = self._shelf(name)
        if shelf is None:
            return self._local.repair(name, verdicts)
        told = shelf.long_call("repair", None, name=there, verdicts=msgspec.to_builtins(verdicts))
        return msgspec.convert(told, list[RepairReport])

    # --- files of this machine ---------------------------------------------------------------

    def folder(self, name: str) -> ReplicaFolder:
        """The folder of a replica on this machine."""
        return self._local.folder(name)

    def folders(self) -> list[ReplicaFolder]:
        """The folders of this machine's replicas."""
        return self._local.folders()

    def chosen(self, name: str, point: str | None) -> RestorePoint:
        """The point that `point` means, of a replica on this machine."""
        return self._local.chosen(name, point)

    def point_chain(self, name: str, point: str | None, disk_id: str) -> tuple[Path, ...]:
        """The files of one disk at a point, of a replica on this machine, newest layer first."""
        return self._local.point_chain(name, point, disk_id)


# --- without a backup server -------------------------------------------------------------------


class PlainHosts:
    """The configuration's hosts with no backup server and no state database around them. Close it.
    Who is away is tried once and not waited for."""

    def __init__(self, config: Config, clock: Clock = SYSTEM_CLOCK) -> None:
        self._config = config
        self._clock = clock
        self._made: dict[str, Host] = {}
        self._doors = contextlib.ExitStack()
        self.fleet = Fleet(config, clock, reconnect=Reconnect(every_s=1, for_s=0))

    def close(self) -> None:
        """End the connections to movers and hosts."""
        self.fleet.close()
        self._doors.close()

    def host(self, name: str) -> Host:
        """The host of that name."""
        if name not in self._made:
            found = self._config.hosts[name]
            self._made[name] = self._host(found)
        return self._made[name]

    def _host(self, found: HostConfig) -> Host:
        if found.hyperv is not None:
            from standby.server.hyperv_hosts import hyperv_source  # heavy

            source = hyperv_source(self._config, found, self._clock)
            self._doors.callback(source.close)
            return source
        if found.mover:
            return RemoteHost(found.name, self.fleet, Station(found.mover, str(found.path)))
        state = self._config.state_database.parent
        return FolderHost(found.name, found.path, state, self._clock)


@contextlib.contextmanager
def replicas_alone(config: Config, clock: Clock = SYSTEM_CLOCK) -> Iterator[AllReplicas]:
    """The replicas of the configuration, for when its state database cannot be used: no verb of
    theirs needs it."""
    with contextlib.closing(PlainHosts(config, clock)) as hosts:
        local = Replicas(
            config,
            None,
            hosts.host,
            clock,
            machines=lambda name: machines_at(config, name, hosts.host, clock),
        )
        yield AllReplicas(
            config, local, hosts.fleet, lambda status: local.is_source_running(status.identity)
        )
