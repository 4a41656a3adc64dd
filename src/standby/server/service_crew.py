"""A VM's session on movers of other machines: which, how they know the places, their tickets.

The replica's one writer is chosen when the session of the VM begins, among the target's proxies
the least busy one that answers; who reads a disk is chosen per disk, when its turn has come
(`resources`), so that a proxy that dies costs a disk another one, not the VM its session.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from standby.clock import SYSTEM_CLOCK, Clock, new_token
from standby.errors import DiskError, MoverLeft, NoProxy, RepositoryError, StandbyError
from standby.model.job import ReplicationJob
from standby.model.machine import CheckpointDisk, Machine
from standby.road.connections import (
    TO_REPOSITORY,
    TO_TARGET,
)
from standby.server.config import Config
from standby.server.crew import (
    DiskLink,
    DiskTask,
    Handle,
    RepositoryView,
    SourceFiles,
    expected_disk,
    replica_name,
)
from standby.server.crew_handle import CrewHandle
from standby.server.fleet import Fleet, Station
from standby.server.hanging import AskableNow, TaskWatch
from standby.server.remote_repository import RemoteRepository
from standby.server.resources import Resources, TaskRequest
from standby.server.waits import waits_end_when
from standby.server.wan_link import WanLink, WanPair
from standby.server.ways import Ways


class ServiceCrew:
    """The movers of one VM's session, on whatever machines (`crew.Crew`)."""

    can_retry = True

    def __init__(
        self,
        config: Config,
        fleet: Fleet,
        resources: Resources,
        job: ReplicationJob,
        session: str,
        machine: str,
        *,
        avoid: Collection[str] = (),
        joins: tuple[str, str] | None = None,
        patience_s: float | None = None,
        node: Callable[[], str] = str,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Choose the writer; NoProxy where none of the target's proxies answers. `joins` is the
        (name, target proxy) of a crew whose tasks this one goes on with; `patience_s` how long any
        mover that is away is waited for (`ServiceMover.is_there`); `node` where the VM is, on a
        cluster."""
        self.is_broken = False
        self.left_out: dict[str, str] = {}
        self.reconnect = fleet.reconnect
        self._config = config
        self._fleet = fleet
        self._resources = resources
        self._job = job
        self._session = session
        self._machine = machine
        self._node = node
        self.name = joins[0] if joins else f"{session}/{machine}/{new_token(4)}"
        self._clock = clock
        self._handles: dict[str, CrewHandle] = {}
        self._is_cut = False
        targets = fleet.stations(job, "target")
        self.target_proxy = fleet.least_busy(targets, avoid)
        if joins and joins[1] in targets:
            self.target_proxy = joins[1]
        self._sources = fleet.stations(job, "source")
        wan = config.wans.get(job.wan)
        if wan is not None and wan.mode == "direct":
            wan = None
        self._ways = Ways(config, fleet, wan, self._handle, clock)
        relays = [] if wan is None else [wan.source, wan.target]
        # `disk_link` asks who answers: known by then
        for mover in (*(station.mover for station in self._sources.values()), *relays):
            fleet.mover(mover).wait_connected(0)
        self._targets = targets
        self._patience_s = patience_s
        # Where there are others, one that is away is not waited for longer than one attempt.
        self._patience_of = {
            station.mover: fleet.reconnect.every_s
            for side in (targets, self._sources)
            for station in side.values()
            if len(side) > 1
        }
        if wan is not None and wan.if_away == "direct":
            needed = {
                station.mover for side in (targets, self._sources) for station in side.values()
            }
            needed |= {config.hosts[name].mover for name in (job.source, job.target)}
            needed.add(self._keeper().mover)
            self._patience_of |= dict.fromkeys({*relays} - needed, fleet.reconnect.every_s)
        station = targets[self.target_proxy]
        self.target_root = self._place(station)  # may fail: no handle is to be closed by then
        self.target: Handle = self._handle(station.mover)
        self._asked = ""
        self._blind: set[str] = set()

    def _patience(self, mover: str) -> float | None:
        known = (self._patience_s, self._patience_of.get(mover))
        return min((found for found in known if found is not None), default=None)

    def _place(self, station: Station) -> str:
        """Where the station is; see `_there`."""
        self._there(station.mover)
        return self._fleet.place(station)

    def _there(self, name: str) -> str:
        """The mover of that name, which answers; MoverDied for one that is away and not waited for,
        as no mover is once the session was cut off."""
        mover = self._fleet.mover(name)
        with waits_end_when(lambda: self._is_cut):
            if not mover.is_there(self._patience(name)):
                raise mover.why_away()
        return name

    def _handle(self, mover: str) -> CrewHandle:
        """The mover as this session uses it."""
        handle = self._handles.get(mover)
        if handle is None:
            handle = CrewHandle(self._fleet.mover(mover), self.name, self._patience(mover))
            self._handles[mover] = handle
            if self._is_cut:
                handle.cut()
        return handle

    @property
    def source(self) -> Handle:
        """See Crew."""
        return self._handle(self._sources[self._fleet.least_busy(self._sources)].mover)

    def ask_source(self, verb: str, disk: CheckpointDisk) -> Any:
        """See Crew. The same one is asked while it answers and has the disks."""
        readers = self._readers(disk.files, disk.place)
        tried: set[str] = set()
        while True:
            name = self._asked
            if name not in readers or name in tried or self._problem(name):
                left = {other: self._sources[other] for other in readers if other not in tried}
                name = self._asked = self._fleet.least_busy(left, self._blind)
            try:
                there = self._source_disk(name, readers[name])
                expected = expected_disk(there, self._machine, disk)
                source = self._handle(self._sources[name].mover)
                return source.call(verb, disk=there, expected=expected)
            except DiskError:
                tried.add(name)
                self._blind.add(name)
                if tried.issuperset(readers):
                    raise

    def _problem(self, proxy: str) -> str:
        return self._fleet.mover(self._sources[proxy].mover).problem

    def _readers(self, disk: Sequence[str], place: str) -> dict[str, tuple[str, ...]]:
        """The proxies that see the disk, and how; NoProxy when none does."""
        found = self._fleet.readers(self._job, disk, self._node())
        readers = {name: paths for name, paths in found.items() if name in self._sources}
        if not readers:
            refused = self._fleet.refused(self._job, disk, node=self._node())
            reasons = tuple(f"{name}: {why}" for side, name, why in refused if side == "source")
            raise NoProxy(self._machine, place, "source", reasons)
        return readers

    def _source_disk(self, proxy: str, files: Sequence[str]) -> SourceFiles:
        """The disk of these files, which lie on the machine of the proxy's mover."""
        mover = self._there(self._sources[proxy].mover)
        return {"root": "", "files": self._fleet.places(mover, files)}

    def _keeper(self) -> Station:
        store = self._config.stores[self._job.repository]
        return Station(store.mover, str(store.path))

    def open_repository(self, create: bool = True) -> RepositoryView:
        """See Crew."""
        keeper = self._keeper()
        return RemoteRepository(self._handle(keeper.mover), self._place(keeper), create)

    def heal_repository(self, key: str, error: RepositoryError) -> str:
        """See Crew."""
        keeper = self._keeper()
        return str(
            self._handle(keeper.mover).call(
                "repository_heal",
                repository=self._place(keeper),
                replica=key,
                problem=error.problem,
            )
        )

    def _request(self, task: DiskTask, proxies: Collection[str]) -> TaskRequest:
        job = self._job
        return TaskRequest(
            job.name,
            self._session,
            task.machine,
            task.place,
            job.source,
            job.target,
            job.repository,
            tuple(sorted(proxies)),
            (self.target_proxy,),
            self._fleet.refused(job, task.files, task.avoid, self._node()),
            priority=job.priority,
            weight=job.weight,
            job_max_tasks=job.max_tasks,
            size_bytes=task.size_bytes,
        )

    @contextlib.contextmanager
    def disk_link(self, task: DiskTask) -> Iterator[DiskLink]:
        """See Crew; both ends get one ticket, and so do source and repository. With accelerators
        there is one for each of the three ways that lie one behind the other."""
        if len(self._sources) > 1:  # who is away is passed over, once that is known
            for name, found in self._sources.items():
                mover = self._fleet.mover(found.mover)
                if not mover.answers():
                    self.left_out[name] = f"source proxy {name} was left out: {mover.why_away()}"
                elif self._fleet.lacks_role(found):
                    self.left_out[name] = (
                        f"source proxy {name} was left out: mover {found.mover} is no source"
                    )
        readers = self._readers(task.files, task.place)
        able = {name for name in readers if not self._fleet.lacks_role(self._sources[name])}
        proxies = able - task.avoid or able or set(readers)
        with (
            self._resources.taken(self._request(task, proxies)) as grant,
            contextlib.ExitStack() as stack,
        ):
            station = self._sources[grant.source_proxy]
            keeper = self._keeper()
            request = self._request(task, ())
            pair, left_wan = self._ways.pair_for(request, task, lambda: self._is_cut)
            stack.callback(self._ways.leave, task, pair)
            if pair is None:
                ends = self._ways.tickets(task, station.mover, self.target.name, TO_TARGET)
                at_target, at_source = ends
                wan = None
            else:
                at_target, at_source, wan = self._ways.over_wan(
                    task, station.mover, self.target.name, pair
                )
            source = self._handle(station.mover)
            disk = self._source_disk(grant.source_proxy, readers[grant.source_proxy])
            kept_at = self._place(keeper)
            link = DiskLink(
                source,
                disk,
                kept_at,
                at_source,
                at_target,
                grant.source_proxy,
                wan=wan,
                left_wan=left_wan,
            )
            if keeper.mover != station.mover:
                at_keeper, to_keeper = self._ways.tickets(
                    task, station.mover, keeper.mover, TO_REPOSITORY
                )
                link = replace(
                    link,
                    repository=to_keeper,
                    keeper=self._handle(keeper.mover),
                    at_keeper=at_keeper,
                    kept_at=kept_at,
                )
            self._note_traffic(station.mover, self.target.name)
            yield link

    def _note_traffic(self, *movers: str) -> None:
        """Have the report say which limits the movers keep to that are none of ours."""
        for name in movers:
            for rule in self._fleet.traffic.others_at(name):
                self.left_out[f"{name} {rule}"] = (
                    f"mover {name} keeps to the traffic rule {rule} of another server too, which "
                    "is not in this one's standby.toml; have both read the same"
                )

    @contextlib.contextmanager
    def joined_link(self, task: DiskTask, proxy: str, wan: str = "") -> Iterator[DiskLink]:
        """See Crew; it takes the slots that it had."""
        if proxy not in self._sources:
            raise MoverLeft(proxy, "it is no longer among the source's proxies")
        with self._resources.taken(self._request(task, (proxy,))):
            station = self._sources[proxy]
            known, between = self._config.wans.get(wan), None
            if known is not None:
                ends = self._handle(known.source), self._handle(known.target)
                between = WanLink(WanPair(wan, *ends, known.if_away == "direct"))
            yield DiskLink(self._handle(station.mover), None, "", None, None, proxy, wan=between)

    def hurry(self) -> float:
        """See Crew."""
        self._patience_s = 2 * self.reconnect.every_s
        for name, handle in list(self._handles.items()):
            handle.patience_s = self._patience(name)
        return self._patience_s

    def watch(self, task: str, source: Handle, wan: WanLink | None = None) -> TaskWatch | None:
        """See Crew."""
        is_optional = wan is not None and wan.pair.is_optional
        between = [] if wan is None else [wan.pair.source, wan.pair.target]

        def has_stand_in(end: AskableNow) -> bool:
            if end is not source and end is not self.target:
                return is_optional
            side = self._targets if end is self.target else self._sources
            others = {station.mover for station in side.values()} - {end.name}
            return any(self._fleet.mover(name).answers() for name in others)

        if max(len(self._sources), len(self._targets)) < 2 and not is_optional:
            return None
        silence_s = self.reconnect.silence_s
        ends = (task, source, self.target)
        return TaskWatch(*ends, has_stand_in, silence_s, self._clock, between)

    host_root = ""

    def check_replica_off(self, path: str) -> None:
        """See Crew: its targets are folder hosts."""

    def keep_replica_machine(self, path: str, machine: Machine, ready: dict[str, str]) -> list[str]:
        """See Crew; the target host's own mover does it."""
        host = self._config.hosts[self._job.target]
        if not ready or not host.mover:
            return []
        root = self._place(Station(host.mover, str(host.path)))
        self._handle(host.mover).call(
            "keep_replica_machine",
            path=f"{root}{'' if root.endswith(':') else '/'}{replica_name(path)}",
            machine=msgspec.to_builtins(machine),
            ready=ready,
        )
        return []

    def close(self) -> None:
        """The VM's session has ended: its movers need not wait for it."""
        for handle in list(self._handles.values()):
            handle.close()

    def end_left(self, crew: str) -> bool:
        """See Crew. The one that has it open need not be the one that was chosen this time."""
        for mover in {station.mover for station in self._targets.values()}:
            if self._fleet.mover(mover).answers():
                with contextlib.suppress(StandbyError):
                    self._handle(mover).call("end_session", session=crew)
        return True

    def cut(self) -> None:
        """See Crew."""
        self.is_broken = self._is_cut = True
        for handle in list(self._handles.values()):
            handle.cut()
        self._resources.cancel_session(self._session, self._machine)
