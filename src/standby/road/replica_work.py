"""The verbs of replicas, by their folders alone: list, show, failover, undo, verify, power …

No configuration, no database, no repository: `server.Replicas` adds what those know, a service
mover answers for the replicas below its roots (`replica_verbs`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import ConfigurationError, DiskIO, MachineRunning, StandbyError, UnknownName
from standby.errors.replicas import BEGIN_ANEW
from standby.files import is_folder, is_there, listed
from standby.host.folder import FolderHost, update_replica_machine
from standby.host.folder.inventory import SYSTEM_FOLDERS
from standby.model.machine import PowerState
from standby.model.point import RestorePoint
from standby.model.replica import (
    Action,
    ReplicaRecord,
    ReplicaState,
    legal_actions,
)
from standby.model.target_rules import TargetRules
from standby.ports import Progress
from standby.road.failing_over import (
    FailoverResult,
    check_startable,
    failover,
    mark_damaged,
    permanent_failover,
    undo_failover,
)
from standby.road.lease import WriterLease, check_legal
from standby.road.naming import READY, is_point_id
from standby.road.points import chosen_point, replicated_disks
from standby.road.ready import put_missing_state_files
from standby.road.record_copies import LostRecord, lost_records, with_copies
from standby.road.repair_sources import Disks, point_disks, repaired
from standby.road.repairing import RepairReport
from standby.road.replica import ReplicaFolder
from standby.road.replica_machines import ReplicaMachines
from standby.road.restoring import restored
from standby.road.surveying import ReplicaStatus, asked_as, status
from standby.road.target_rules import load_target_rules
from standby.road.verifying import PointVerdict, verify_point, verify_replica

Source = Callable[[], contextlib.AbstractContextManager[Disks]]
"""Opens the disks of one state of a VM, for a repair."""

GUEST_SHUTDOWN_S = 60
"""How long a guest that is asked to shut down gets for it."""


class ReplicaWork:
    """The replicas below some target folders, `roots` by the names of their hosts. `protect` are
    rules beside those of the folders themselves (RULES 17)."""

    def __init__(
        self,
        roots: dict[str, Path],
        clock: Clock = SYSTEM_CLOCK,
        protect: TargetRules = TargetRules(),  # noqa: B008
        machines: Callable[[str], ReplicaMachines | None] = lambda host: None,
    ) -> None:
        """`machines` gives the VMs of a host, by its name, None for a folder host."""
        self._roots = roots
        self._machines = machines
        self._clock = clock
        self._protect = protect

    # --- which ---------------------------------------------------------------------------------

    def hosts(self) -> tuple[str, ...]:
        """The target hosts."""
        return tuple(self._roots)

    def folders(self) -> list[ReplicaFolder]:
        """Every replica's folder, in order of name; what cannot be looked into is left out, and
        among `unreadable`."""
        return self._survey()[0]

    def _survey(self) -> tuple[list[ReplicaFolder], dict[Path, DiskIO]]:
        """The replicas' folders, and the folders that cannot be looked into."""
        found = []
        refused: dict[Path, DiskIO] = {}
        for root in self._roots.values():
            try:
                paths = listed(root)
            except DiskIO as exc:
                refused[root] = exc
                continue
            for path in paths:
                folder = ReplicaFolder(path, self._clock)
                try:
                    if folder.exists():
                        found.append(folder)
                except DiskIO as exc:
                    if path.name not in SYSTEM_FOLDERS:
                        refused[path] = exc
        return sorted(found, key=lambda folder: folder.name), refused

    def folder(self, name: str) -> ReplicaFolder:
        """The replica of that name (or folder), or of the VM of that name where that is
        unambiguous; HOST:NAME is the one at that target host. DiskIO, or ConfigurationError, where
        none is found and not everything can be looked into."""
        folders, refused = self._survey()
        host, colon, rest = name.partition(":")
        if colon and host in self._roots:
            folders = [folder for folder in folders if folder.path.parent == self._roots[host]]
            name = rest
        named = [folder for folder in folders if name in (folder.name, str(folder.path))]
        if not named:
            named = [folder for folder in folders if _machine_name(folder) == name]
        if len(named) == 1:
            return named[0]
        if len(named) > 1:
            places = ", ".join(str(folder.path) for folder in named)
            hint = "Give the name of one of these folders"
            if len({folder.name for folder in named}) < len(named):
                ways = [f"{self.host_of(folder)}:{folder.name}" for folder in named]
                hint = f"Write {' or '.join(ways)}"
            raise ConfigurationError(name, f"means several replicas: {places}", hint)
        for path, exc in refused.items():
            if path in self._roots.values() or name in (path.name, str(path)):
                raise exc
        known = tuple(folder.name for folder in folders)
        for exc in refused.values():
            seen = ", ".join(known) or "none"
            problem = f"is no replica that can be seen (these: {seen}), and not all can: {exc}"
            raise ConfigurationError(name, problem, "Give this user access, or correct the name")
        raise UnknownName("replica", name, known)

    def all(self) -> list[ReplicaStatus]:
        """The state of every replica, those that are permanent left out."""
        found = []
        for folder in self.folders():
            with contextlib.suppress(StandbyError):
                state = replace(status(folder), target=self.host_of(folder))
                if state.state is not ReplicaState.PERMANENT:
                    found.append((folder, state))
        return self._with_machines(found)

    def unreadable(self) -> dict[str, str]:
        """Folder and problem of all that `all` cannot show: replicas whose records are damaged,
        folders that are not there or cannot be looked into."""
        folders, refused = self._survey()
        found = {str(path): str(exc) for path, exc in refused.items()}
        missing = "no such folder: nothing was replicated to it yet, or it is not mounted"
        for root in self._roots.values():
            with contextlib.suppress(DiskIO):  # told already
                if not is_folder(root):
                    found[str(root)] = missing
        for folder in folders:
            try:
                status(folder)
            except StandbyError as exc:
                found[str(folder.path)] = str(exc)
        for root in self._roots.values():
            for path in listed(root) if root not in refused else ():
                if path not in refused and _has_lost_its_record(ReplicaFolder(path, self._clock)):
                    found[str(path)] = (
                        "restore points are here, but replica.json is gone. The disk files are "
                        "untouched: `ready.vhdx` of each disk starts by hand. For replication to "
                        f"go on put the file back from a backup, or {BEGIN_ANEW}"
                    )
        return found

    def show(self, name: str) -> ReplicaStatus:
        """Everything about one replica."""
        folder = self.folder(name)
        found = replace(status(folder), target=self.host_of(folder))
        (state,) = self._with_machines([(folder, found)])
        return asked_as(name, state)

    def _with_machines(
        self, found: Sequence[tuple[ReplicaFolder, ReplicaStatus]]
    ) -> list[ReplicaStatus]:
        """The same and, of replicas that have a VM at a host, what that one does: one question for
        all of a host. A host that does not answer is a finding."""
        states = {folder.path: state for folder, state in found}
        asked: dict[str, list[ReplicaFolder]] = {}
        for folder, state in found:
            if state.state is not ReplicaState.PERMANENT:
                asked.setdefault(self.host_of(folder), []).append(folder)
        for host, folders in asked.items():
            machines = self._machines(host)
            if machines is None:
                continue
            for folder, seen in zip(folders, _looked(machines, folders), strict=True):
                state = states[folder.path]
                power, said = seen
                said = () if state.state is ReplicaState.FAILOVER else said
                findings = (*state.findings, *said)
                states[folder.path] = replace(state, power=power or state.power, findings=findings)
        return list(states.values())

    # --- failover ------------------------------------------------------------------------------

    def failover(
        self,
        name: str,
        *,
        point: str | None = None,
        adopt: bool = False,
        source_may_run: bool = False,
        power_on: bool = False,
    ) -> FailoverResult:
        """Fail over to `point` (newest; an id; an ISO time), and start the VM if asked."""
        folder = self.folder(name)
        theirs = self._theirs(folder)
        is_on = theirs is not None and theirs.power_state(folder) is not PowerState.OFF
        if theirs is not None and not adopt:
            check_legal(folder.record(), folder.name, Action.FAILOVER)
            theirs.check_untouched(folder)
        result = failover(
            folder,
            point=point,
            adopt=adopt,
            source_running=self.source_is_running(folder.record()),
            source_may_run=source_may_run,
            is_running=self.is_running(folder),
        )
        if theirs is None:
            describe_machine(folder, result.point)
        else:
            if not is_on:  # one that runs, with the writes that are adopted, is left as it is
                theirs.describe(folder, result.point)
            theirs.restore(folder, result.point, is_permanent=False)
        if power_on and theirs is not None and not is_on:
            result = replace(result, warnings=(*result.warnings, *theirs.start(folder)))
        elif power_on and theirs is None:
            self.power(name, on=True)
        return result

    def undo_failover(self, name: str, *, drop_writes: bool = False) -> ReplicaRecord:
        """Drop what the replica VM wrote; the replica is ready again at its newest point."""
        folder = self.folder(name)
        record = undo_failover(folder, drop_writes, is_running=partial(self.check_off, folder))
        theirs = self._theirs(folder)
        if theirs is None:
            describe_machine(folder, folder.point(record.ready_point))
        else:
            theirs.describe(folder, folder.point(record.ready_point))
        return record

    def permanent_failover(self, name: str) -> ReplicaRecord:
        """The replica VM becomes a VM of its own, unless the target's own rules forbid it."""
        folder = self.folder(name)
        record = permanent_failover(folder, self.rules(folder))
        theirs = self._theirs(folder)
        if theirs is not None:
            theirs.restore(folder, folder.point(record.failover_point), is_permanent=True)
        return record

    def rules(self, folder: ReplicaFolder) -> TargetRules:
        """What the target itself keeps of the replica, whoever orders otherwise."""
        return load_target_rules(folder.path.parent, self._protect)

    def power(self, name: str, *, on: bool, force: bool = False) -> PowerState:
        """Start or stop the VM of a replica that failed over, for good or not; what it is then. One
        that is so already is left as it is."""
        folder = self.folder(name)
        theirs = self._theirs(folder)
        if theirs is not None:
            return self._their_power(theirs, folder, on, force)
        host = FolderHost(self.host_of(folder), folder.path.parent, None, self._clock)
        if on and folder.record().state is not ReplicaState.PERMANENT:
            point = folder.point(check_startable(folder).failover_point)
            describe_machine(folder, point)
            with WriterLease.acquire(folder, "power", action=Action.VERIFY) as lease:
                put_missing_state_files(folder, lease, point)
            machine = host.machine_in(folder.name)
            host.start(machine)
            pid, started = host.disk_server(machine)
            with WriterLease.acquire(folder, "power", action=Action.VERIFY) as lease:
                lease.update(serve_pid=pid, serve_started=started)
        elif on:  # a VM of its own: its vm.toml and its variables are not ours to put right
            machine = host.machine_in(folder.name)
            host.start(machine)
        else:
            machine = host.machine_in(folder.name)
            host.stop(machine, force=force, timeout_s=0 if force else GUEST_SHUTDOWN_S)
        return host.power_state(machine)

    def _theirs(self, folder: ReplicaFolder) -> ReplicaMachines | None:
        """The VMs of the replica's host, None where that is a folder host."""
        return self._machines(self.host_of(folder))

    def _their_power(
        self, theirs: ReplicaMachines, folder: ReplicaFolder, on: bool, force: bool
    ) -> PowerState:
        if not on:
            theirs.stop(folder, force=force, timeout_s=0 if force else GUEST_SHUTDOWN_S)
        elif theirs.power_state(folder) is PowerState.OFF:
            if folder.record().state is not ReplicaState.PERMANENT:
                point = folder.point(check_startable(folder).failover_point)
                theirs.describe(folder, point)
                theirs.restore(folder, point, is_permanent=False)
            theirs.start(folder)
        return theirs.power_state(folder)

    def is_running(self, folder: ReplicaFolder) -> Callable[[], bool]:
        """A function that says whether the replica's VM runs now."""
        theirs = self._theirs(folder)

        def is_running() -> bool:
            if theirs is not None:
                return theirs.power_state(folder) is not PowerState.OFF
            if not is_there(folder.path / "vm.toml"):
                return False
            host = FolderHost("target", folder.path.parent, None, self._clock)
            return host.power_state(host.machine_in(folder.name)) is not PowerState.OFF

        return is_running

    def check_off(self, folder: ReplicaFolder) -> bool:
        """False where the replica's VM is off, else MachineRunning with what is known of it and
        how to stop it."""
        theirs = self._theirs(folder)
        if theirs is not None:
            theirs.check_off(folder)
            return False
        if not is_there(folder.path / "vm.toml"):
            return False
        host = FolderHost(self.host_of(folder), folder.path.parent, None, self._clock)
        reason, is_ours = host.reason_to_be_running(host.machine_in(folder.name))
        if not reason:
            return False
        hint = f"`standby replica power off {folder.name}` stops it" if is_ours else ""
        raise MachineRunning(host.name, folder.name, reason, hint)

    def host_of(self, folder: ReplicaFolder) -> str:
        """The name of the target host that the replica is on."""
        return next(name for name, root in self._roots.items() if root == folder.path.parent)

    def source_is_running(self, record: ReplicaRecord) -> bool:
        """Whether the source VM is known to run: the folders say nothing of it."""
        return False

    # --- verify --------------------------------------------------------------------------------

    def verify(
        self,
        name: str,
        *,
        point: str | None = None,
        progress: Progress | None = None,
        threads: int = 2,
    ) -> list[PointVerdict]:
        """Read every byte of a point (None: of all, what they share once) against its digests. A
        damaged piece or commit record marks the replica damaged, damaged digests of an intact disk
        do not; a replica whose points are all intact is no longer damaged."""
        folder = self.folder(name)
        lost = {item.point_id: item for item in lost_records(folder)}
        seen = with_copies(folder, list(lost.values()))
        if point is None:
            verdicts = verify_replica(seen, device=True, threads=threads, progress=progress)
            read = {verdict.point_id for verdict in verdicts}
            verdicts += [PointVerdict(point_id) for point_id in lost if point_id not in read]
            verdicts.sort(key=lambda verdict: verdict.point_id)
        elif point in lost and lost[point].copy is None:
            verdicts = [PointVerdict(point)]
        else:
            chosen = chosen_point(folder.name, seen.points(), point)
            verdicts = [
                verify_point(seen, chosen.id, device=True, threads=threads, progress=progress)
            ]
        for verdict in verdicts:
            if verdict.point_id in lost:
                _add_lost(verdict, lost[verdict.point_id])
            else:
                _add_touched(verdict, folder, folder.point(verdict.point_id))
        self._record_verdicts(folder, verdicts, is_whole=point is None)
        return verdicts

    def _record_verdicts(
        self, folder: ReplicaFolder, verdicts: list[PointVerdict], *, is_whole: bool
    ) -> None:
        found = {item.point_id: item.is_intact for item in verdicts}
        record = folder.record()
        state = record.state
        if record.damage and not is_whole:  # what was known of the other points stays known
            found = (
                dict.fromkeys(record.damaged_points, False)
                | dict.fromkeys(record.intact_points, True)
                | found
            )
        bad = [point_id for point_id in sorted(found) if not found[point_id]]
        good = [point_id for point_id in sorted(found) if found[point_id]]
        if bad and Action.MARK_DAMAGED in legal_actions(state):
            with WriterLease.acquire(folder, "verify", action=Action.MARK_DAMAGED) as lease:
                mark_damaged(folder, lease, f"verify found damage in {', '.join(bad)}", bad, good)
        elif is_whole and not bad and (record.damage or state is ReplicaState.DAMAGED):
            with WriterLease.acquire(folder, "verify", action=Action.VERIFY) as lease:
                sound = ReplicaState.READY if state is ReplicaState.DAMAGED else state
                lease.update(state=sound, damage="", damaged_points=(), intact_points=())
        elif record.damage and Action.VERIFY in legal_actions(state):
            with WriterLease.acquire(folder, "verify", action=Action.VERIFY) as lease:
                lease.update(damaged_points=tuple(bad), intact_points=tuple(good))

    def repair(
        self, name: str, verdicts: list[PointVerdict], progress: Progress | None = None
    ) -> list[RepairReport]:
        """Write damaged pieces anew where the source, or another replica of the VM, still has
        exactly the recorded content, and a lost commit record from its copy where every disk of the
        point is read and is what that says; what could not be had is in the reports. `progress` is
        of what is read."""
        folder = self.folder(name)
        sources = self._repair_sources(folder)
        with WriterLease.acquire(folder, "repair", action=Action.REPAIR) as lease:
            lost = [verdict for verdict in verdicts if verdict.record_problem]
            return [
                *(restored(folder, lease, verdict, sources, progress) for verdict in lost),
                *(
                    repaired(folder, lease, verdict, sources)
                    for verdict in verdicts
                    if not verdict.is_ok and not verdict.record_problem
                ),
            ]

    def _repair_sources(self, folder: ReplicaFolder) -> list[Source]:
        """Every point of the VM's other replicas here, newest first."""
        identity = folder.record().identity
        found: list[Source] = []
        for other in self.folders():
            with contextlib.suppress(StandbyError):
                its = other.record().identity
                if other.path == folder.path or (its.source_host, its.machine_id) != (
                    identity.source_host,
                    identity.machine_id,
                ):
                    continue
                for point in reversed(other.points()):
                    found.append(partial(point_disks, folder, other, point.id))
        return found

    # --- points -----------------------------------------------------------------------

    def chosen(self, name: str, point: str | None) -> RestorePoint:
        """The point that `point` means: None the newest, an id, or a time."""
        folder = self.folder(name)
        return chosen_point(folder.name, folder.points(), point)

    def point_chain(self, name: str, point: str | None, disk_id: str) -> tuple[Path, ...]:
        """The files of one disk at a point, newest layer first."""
        return self.folder(name).chain_paths(self.chosen(name, point), disk_id)


def _has_lost_its_record(folder: ReplicaFolder) -> bool:
    """Whether points were committed here, and nothing says any more what they are of."""
    return not folder.exists() and any(
        path.suffix == ".json" and is_point_id(path.stem) for path in _points_in(folder)
    )


def _points_in(folder: ReplicaFolder) -> list[Path]:
    with contextlib.suppress(DiskIO):
        return listed(folder.points_path)
    return []


def _machine_name(folder: ReplicaFolder) -> str:
    with contextlib.suppress(StandbyError):
        newest = folder.newest()
        return newest.machine.name if newest is not None else ""
    return ""


def describe_machine(folder: ReplicaFolder, point: RestorePoint | None) -> None:
    """Make the replica VM's vm.toml that of `point`: its hardware as it was then, attached to the
    ready layers of exactly the disks the point has. Repeated whenever the VM is about to start,
    so a kill between a failover and this leaves nothing wrong."""
    if point is None:
        return
    ready = {disk.place: f"{disk.disk_id}/{READY}" for disk in replicated_disks(point)}
    if ready:
        update_replica_machine(folder.path, point.machine, ready)


def _add_lost(verdict: PointVerdict, lost: LostRecord) -> None:
    """What is wrong with the record of the point, and whether its copy stood in for it."""
    verdict.has_copy = lost.copy is not None
    stands_in = "its copy is sound" if verdict.has_copy else lost.without_copy
    verdict.record_problem = f"its commit record: {lost.problem}; {stands_in}"


def _add_touched(verdict: PointVerdict, folder: ReplicaFolder, point: RestorePoint) -> None:
    """Files that are not the ones that were committed, whatever their content: a failover would
    refuse them, so a verdict has to say it."""
    for layer, evidence in folder.touched_layers([point]):
        for disk in verdict.disks:
            if layer.file.startswith(f"{disk.disk_id}/") and not disk.problem:
                disk.problem = f"{layer.file}: {evidence}"


def _looked(
    machines: ReplicaMachines, folders: Sequence[ReplicaFolder]
) -> list[tuple[PowerState | None, tuple[str, ...]]]:
    """What the host says of the replicas' VMs; None and why where it does not answer."""
    try:
        return list(machines.look(folders))
    except StandbyError as exc:
        return [(None, (f"its host cannot tell: {exc}",))] * len(folders)
