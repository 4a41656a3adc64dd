"""The target host's station: the verbs of a target mover.

A replica is opened by one session at a time (`open_replica`: lease, recovery of what a killed
session left, the target's word on what it holds); then disks are begun, received, sealed and
committed together, ready layers renewed and old points retired, all under that lease.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import msgspec

from standby import killpoints
from standby.clock import SYSTEM_CLOCK, Clock
from standby.disk import open_disk
from standby.errors import (
    ConfigurationError,
    DiskFull,
    ReplicaBusy,
    ReplicaConflict,
    ReplicaMissing,
    StandbyError,
)
from standby.files import free_bytes, is_folder, make_folder_durably
from standby.host.folder import FolderHost
from standby.model.replica import ReplicaDisk, ReplicaIdentity, ReplicaState
from standby.model.target_rules import TargetRules
from standby.road import ready
from standby.road.adopting import make_found_point
from standby.road.beginning import BeginDisk, begin_partial, check_names, check_point_id
from standby.road.committing import commit, recover
from standby.road.connections import FROM_WAN, TO_TARGET, Connections, Errand, Spec
from standby.road.lease import WriterLease
from standby.road.mending import mended_after_use, mended_before_use
from standby.road.merging import finish_merge, merge_oldest, pending_merge
from standby.road.naming import READY, is_seed
from standby.road.open_replicas import OpenReplicas
from standby.road.places import LOCAL_PLACES, Places
from standby.road.point_facts import PointFacts, sealed_point
from standby.road.points import TargetState, points_to_retire
from standby.road.record_copies import renew_copies
from standby.road.replica import ReplicaFolder
from standby.road.seed_check import missing_seed
from standby.road.seeding import (
    FoundReplica,
    found_replica,
    mapped_machine,
    seed_of,
)
from standby.road.surveying import lasting_points, seen_state, target_state
from standby.road.target_proxy import TargetProxy
from standby.road.target_rules import load_target_rules
from standby.road.telling import HeldDisk, held_disk, tell
from standby.road.verbs import answered
from standby.wire.link import Link


class TargetVerbs:
    """Verbs of a target mover. Calls that concern one replica come one after another, but for
    `receive_disk`, which runs once per disk at the same time."""

    def __init__(
        self,
        connections: Connections,
        clock: Clock = SYSTEM_CLOCK,
        *,
        places: Places = LOCAL_PLACES,
        protect: TargetRules = TargetRules(),  # noqa: B008
    ) -> None:
        """`protect` are the mover's own rules, beside those of the target's folder."""
        self._connections = connections
        self._clock = clock
        self._places = places
        self._protect = protect
        self.replicas = OpenReplicas(connections)
        self._receiving: dict[str, Link] = {}
        self._verbs: dict[str, Callable[..., Any]] = {
            "ping": lambda: "target",
            "find_replica": self.find_replica,
            "inspect_replica": self.inspect_replica,
            "mapped_disks": self.mapped_disks,
            "missing_seed": self.missing_seed,
            "tell_disk": self.tell_disk,
            "map_machine": self.map_machine,
            "free_bytes": lambda path: free_bytes(_nearest_folder(self._places.path(path))),
            "open_replica": self.open_replica,
            "register_disks": self.register_disks,
            "begin_disk": lambda **given: self.begin_disk(msgspec.convert(given, BeginDisk)),
            "receive_disk": self.receive_disk,
            "received": lambda: {
                task: link.received_bytes for task, link in list(self._receiving.items())
            },
            "commit_point": lambda **given: self.commit_point(msgspec.convert(given, PointFacts)),
            "renew_ready": self.renew_ready,
            "points": lambda path: target_state(self.replicas.get(path).folder).points,
            "older_trackers": self.older_trackers,
            "retire_points": self.retire_points,
            "close_replica": self.replicas.close,
        }

    def call(self, verb: str, arguments: dict[str, Any]) -> Any:
        """Run `verb`; NotImplemented for one of another role."""
        try:
            return answered(self._verbs, verb, arguments)
        except StandbyError:
            replica = self.replicas.held(str(arguments.get("path", "")))
            if replica is not None:
                replica.lease.check()  # whoever took over may have cleared away what is missed
            raise

    def close(self) -> None:
        """Close every replica: partial disks keep what was acknowledged."""
        self.replicas.close_where(lambda owner, session: True)

    # --- prepare -----------------------------------------------------------------------------

    def find_replica(self, root: str, identity: dict[str, Any], wanted: str) -> dict[str, Any]:
        """The folder of the replica of that identity below `root`, or where it would be made."""
        found = self._found(root, identity, wanted)
        return {"path": self._places.text(found.path), "exists": found.exists}

    def _found(self, root: str, identity: dict[str, Any], wanted: str) -> FoundReplica:
        who = msgspec.convert(identity, ReplicaIdentity)
        return found_replica(self._places.path(root), who, wanted, self._clock)

    def mapped_disks(self, root: str, folder: str) -> list[str]:
        """Controller places of the VM at the target that a job maps to (RULES 16)."""
        return [disk.place for disk in mapped_machine(self._places.path(root), folder).disks]

    def missing_seed(self, path: str, seeds: dict[str, str]) -> str:
        """See `seed_check.missing_seed`; `path` need not be there."""
        return missing_seed(ReplicaFolder(self._places.path(path), self._clock), seeds)

    def inspect_replica(self, path: str) -> dict[str, Any] | None:
        """What the target holds, without becoming its writer; None where there is no replica."""
        folder = ReplicaFolder(self._places.path(path), self._clock)
        if not folder.exists():
            return None
        return dict(msgspec.to_builtins(seen_state(folder)))

    def open_replica(
        self,
        root: str,
        identity: dict[str, Any],
        wanted: str,
        session: str,
        take_over: bool,
        must_exist: bool,
        expected: str,
        host_root: str = "",
    ) -> dict[str, Any]:
        """Become the writer, finish what a dead session left, and say what is here (RULES 6).
        `host_root` is `root` as a host sees it that is no folder host."""
        who = msgspec.convert(identity, ReplicaIdentity)
        found = self._found(root, identity, wanted)
        if must_exist and not found.exists:
            name = re.split(r"[/\\:]", expected)[-1]  # as whatever mover called it then
            raise ReplicaMissing(name, expected, "the replica is not there")
        path = found.path
        text = self._places.text(path)
        make_folder_durably(path.parent)
        folder = ReplicaFolder(path, self._clock)
        folder.create(who, wanted)
        with self.replicas.opening(text, folder, session, take_over) as lease:
            self._know_host(folder, lease, host_root)
            state, warnings = self._converged(folder, lease)
            self.replicas.add(text, folder, lease)
        if state.newest:  # before that, what lies here was put here: a seed
            unknown = [name for name in folder.unknown_files() if not is_seed(name)]
            warnings.extend(f"unknown file {name} is left alone" for name in unknown)
        return {"path": text, "state": state, "warnings": warnings}

    def _know_host(self, folder: ReplicaFolder, lease: WriterLease, host_root: str) -> None:
        """Keep in replica.json how the host sees the folder, before anything is written there."""
        seen = str(PureWindowsPath(host_root) / folder.name) if host_root else ""
        try:
            if folder.record().host_folder != seen:
                lease.update(host_folder=seen)
        except BaseException:
            lease.release()
            raise

    def _converged(
        self, folder: ReplicaFolder, lease: WriterLease
    ) -> tuple[TargetState, list[str]]:
        """Finish what a dead session left: what is here then, and what there is to say of it. What
        fails gives the lease back."""
        warnings: list[str] = []
        try:
            done = recover(folder, lease)
            warnings.extend(done.findings)
            if pending_merge(folder) is not None:
                try:
                    finish_merge(folder, lease)
                except DiskFull as exc:  # every point reads right all the same
                    warnings.append(f"a merge that was cut off is not ended yet: {exc}")
            folder.check_untouched(None)
            warnings.extend(renew_copies(folder, lease, lasting_points(folder)))
            warnings.extend(mended_before_use(folder, lease.check))
            self._renew_if_behind(folder, lease)
            return target_state(folder), warnings
        except BaseException:
            lease.release()
            raise

    def _renew_if_behind(self, folder: ReplicaFolder, lease: WriterLease) -> None:
        newest = folder.newest()
        record = folder.record()
        if newest is None or record.state is not ReplicaState.READY:
            return
        if not ready.is_current(folder, record, newest):
            ready.renew(folder, lease, newest)

    def register_disks(self, path: str, disks: list[dict[str, Any]]) -> None:
        """Keep the disk ids of this session in replica.json (RULES 1)."""
        replica = self.replicas.get(path)
        replica.lease.update(disks=tuple(msgspec.convert(disks, list[ReplicaDisk])))

    def map_machine(self, path: str, folder: str) -> dict[str, Any]:
        """Make the disks of the VM in `folder`, below the target's root, the first point as they
        are (RULES 16): those at the places of the replica's disks."""
        replica = self.replicas.get(path)
        root = replica.folder.path.parent
        machine = mapped_machine(root, folder)
        home = root / machine.folder
        at_place = {disk.place: disk for disk in replica.folder.record().disks}
        files = {
            at_place[disk.place].id: home / disk.file
            for disk in machine.disks
            if disk.place in at_place
        }
        if not files:
            raise ConfigurationError(
                str(home),
                "the VM that the job maps to has no disk at a controller place of the source's",
                "See `map` of the job",
            )
        state_files = FolderHost("target", root).state_files(machine)
        point = make_found_point(
            replica.folder, replica.lease, machine, files, state_files=state_files
        )
        warnings = [f"the disks of {home} became the restore point {point.id}"]
        warnings += [
            f"{home / disk.file}, at {disk.place}, is left alone: the source has no disk there"
            for disk in machine.disks
            if disk.place not in at_place
        ]
        return {"state": target_state(replica.folder), "warnings": warnings}

    def tell_disk(
        self,
        path: str,
        disk_id: str,
        virtual_size: int,
        connection: Spec,
        task: str,
        seed_name: str,
        mapped_from: str,
        place: str,
        copy_of: str = "",
    ) -> dict[str, Any]:
        """Tell the source what is here of a disk (`copy_of`: of the one it replaces), over a data
        connection, changing nothing."""
        try:
            folder = ReplicaFolder(self._places.path(path), self._clock)
            check_names(disk_id, seed_name)
            check_names(copy_of or disk_id, "")
            errand = Errand(task, TO_TARGET, disk_id, self._key_of(folder))
        except BaseException:
            self._connections.abandon(connection)
            raise
        with self._connections.take(connection, errand) as (link, _), contextlib.ExitStack() as end:
            file: Path | None = None
            if mapped_from:
                machine = mapped_machine(folder.path.parent, mapped_from)
                found = [disk.file for disk in machine.disks if disk.place == place]
                file = folder.path.parent / machine.folder / found[0]
            elif seed_name:
                file = seed_of(folder, disk_id, seed_name)
            if file is not None:
                held = HeldDisk(open_disk(file), virtual_size)
            else:
                held = held_disk(folder, copy_of or disk_id, virtual_size)
            end.callback(held.close)
            tell(held, task, link)
            return {}

    def _key_of(self, folder: ReplicaFolder) -> str:
        """What tickets call the replica, '' where there is none yet."""
        if not folder.exists():
            return ""
        who = folder.record().identity
        return "/".join((who.installation, who.source_host, who.machine_id, who.job))

    # --- transfer ----------------------------------------------------------------------------

    def begin_disk(self, wanted: BeginDisk) -> dict[str, Any]:
        """Make or resume the partial disk of a point; what it holds already."""
        replica = self.replicas.get(wanted.path)
        disk_id = wanted.disk_id
        if disk_id in replica.partials:  # a task that is begun again after its link dropped
            replica.partials.pop(disk_id).close()
        partial = begin_partial(replica.folder, replica.lease, wanted, self._clock)
        replica.partials[disk_id] = partial
        replica.sealed.pop(disk_id, None)
        return {
            "point": partial.point_id,
            "acknowledged": partial.acknowledged_bytes,
            "data": partial.log.logged_data_bytes,
            "mark": partial.log.mark if partial.log.checkpoint_id == wanted.checkpoint else 0,
        }

    def receive_disk(
        self, path: str, disk_id: str, task: str, connection: Spec, verify_writes: str
    ) -> dict[str, Any]:
        """Receive one disk over a data connection; seal it when all of it reads back right."""
        try:
            replica = self.replicas.get(path)
            key, generation = self._key_of(replica.folder), replica.lease.generation
        except BaseException:
            self._connections.abandon(connection)
            raise
        errand = Errand(task, TO_TARGET, disk_id, key, generation, or_wan=FROM_WAN)
        with (
            self.replicas.receiving(path, task),
            self._connections.take(connection, errand) as (link, ring),
        ):
            partial = replica.partials[disk_id]
            self._receiving[task] = link
            proxy = TargetProxy(
                task,
                replica.folder.name,
                partial,
                partial.spec.virtual_size,
                link,
                ring,
                verify_writes=verify_writes,
                check_lease=replica.lease.check,
            )
            try:
                counters = proxy.run()
            finally:
                del self._receiving[task]
            killpoints.reach("verified")
            sealed = partial.seal()
            replica.sealed[disk_id] = sealed
            warnings: list[str] = []
            if partial.baseline.lost_pages:
                warnings = mended_after_use(replica.folder, disk_id, replica.lease.check)
            return {
                "root": sealed.root.hex(),
                "changed": sealed.changed,
                "warnings": warnings,
                "written": counters.written,
                "zeroed": counters.zeroed,
                "resent_blocks": counters.resent_blocks,
                "busy_s": counters.busy_s,
            }

    # --- commit ------------------------------------------------------------------------------

    def commit_point(self, facts: PointFacts) -> None:
        """Make the restore point of the sealed disks, whose roots must be the source's."""
        replica = self.replicas.get(facts.path)
        check_point_id(facts.point)
        point, sealed = sealed_point(replica, facts, self._clock.now())
        commit(replica.folder, replica.lease, point, sealed)
        replica.partials.clear()
        replica.sealed.clear()

    def older_trackers(self, path: str) -> list[str]:
        """Tracker ids in every point but the newest: of no use any more, also those that a killed
        session did not come to give up."""
        points = self.replicas.get(path).folder.points()
        found = [{disk.tracker_id for disk in point.disks if disk.tracker_id} for point in points]
        return sorted(set().union(*found[:-1]) - found[-1]) if found else []

    def renew_ready(self, path: str) -> dict[str, str]:
        """A new ready layer above the newest point; {place: file, relative to the replica}."""
        replica = self.replicas.get(path)
        newest = replica.folder.newest()
        if newest is None:
            return {}
        ready.renew(replica.folder, replica.lease, newest)
        return {disk.place: f"{disk.disk_id}/{READY}" for disk in newest.disks if not disk.excluded}

    # --- retention ---------------------------------------------------------------------------

    def retire_points(self, path: str, keep: int) -> dict[str, Any]:
        """Merge oldest points away until `keep` are left, never against the target's own rules
        (RULES 17); what is left, and why it may be more."""
        replica = self.replicas.get(path)
        folder = replica.folder
        rules = load_target_rules(folder.path.parent, self._protect)
        warnings: list[str] = []
        while True:
            points = folder.points()
            if not points_to_retire(points, keep, rules, self._clock.now()):
                if len(points) > max(keep, 1):
                    warnings.append(
                        f"{len(points)} points are kept where the job asks for {keep}: the "
                        "target's own rules keep them"
                    )
                break
            try:
                merge_oldest(folder, replica.lease)
            except (DiskFull, ReplicaBusy, ReplicaConflict) as exc:
                replica.lease.check()
                warnings.append(
                    f"{len(points)} points are kept where the job asks for {keep} until a later "
                    f"session can merge: {exc}"
                )
                break
        return {"points": target_state(folder).points, "warnings": warnings}


def _nearest_folder(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    while not is_folder(path) and path != path.parent:
        path = path.parent
    return path
