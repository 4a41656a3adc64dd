"""The target host's station: the verbs of a target mover.

A replica is opened by one session at a time (`open_replica`: lease, recovery of what a killed
session left, the target's word on what it holds); then disks are begun, received, sealed and
committed together, ready layers renewed and old points retired, all under that lease.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from standby import killpoints
from standby.clock import SYSTEM_CLOCK, Clock
from standby.disk import open_disk
from standby.errors import (
    ConfigurationError,
    ProtocolError,
    ReplicaMissing,
    StandbyError,
    VerifyFailed,
)
from standby.files import free_bytes, make_folder_durably
from standby.model.machine import Machine
from standby.model.point import PointDisk, RestorePoint
from standby.model.replica import ReplicaDisk, ReplicaIdentity, ReplicaState
from standby.road import ready
from standby.road.adopting import make_found_point
from standby.road.committing import commit, recover
from standby.road.lease import WriterLease
from standby.road.merging import finish_merge, merge_oldest, pending_merge
from standby.road.naming import READY
from standby.road.partial import PartialDisk, PartialSpec, SealedDisk
from standby.road.points import disk_of, points_kept_by
from standby.road.replica import ReplicaFolder
from standby.road.seeding import (
    FoundReplica,
    found_replica,
    mapped_machine,
    seed_of,
    seeded,
)
from standby.road.surveying import target_state
from standby.road.target_proxy import TargetProxy
from standby.road.target_rules import load_target_rules
from standby.road.telling import HeldDisk, held_disk, tell
from standby.wire.link import Link
from standby.wire.shared_memory import SharedRing

POINT_FORMAT = 1


@dataclass(slots=True)
class _OpenReplica:
    """A replica this mover writes."""

    folder: ReplicaFolder
    lease: WriterLease
    partials: dict[str, PartialDisk] = field(default_factory=dict)
    sealed: dict[str, SealedDisk] = field(default_factory=dict)

    def close(self) -> None:
        """Close every partial disk, whatever becomes of another one, and give the lease back."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.lease.release)
            for partial in self.partials.values():
                stack.callback(partial.close)
            self.partials.clear()


class TargetVerbs:
    """Verbs of a target mover. Calls that concern one replica come one after another, but for
    `receive_disk`, which runs once per disk at the same time."""

    def __init__(
        self,
        data: Sequence[Link],
        rings: Sequence[SharedRing | None],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._data = data
        self._rings = rings
        self._clock = clock
        self._replicas: dict[str, _OpenReplica] = {}
        self._lock = threading.Lock()
        self._verbs: dict[str, Callable[..., Any]] = {
            "ping": lambda: "target",
            "find_replica": self.find_replica,
            "inspect_replica": self.inspect_replica,
            "mapped_disks": self.mapped_disks,
            "tell_disk": self.tell_disk,
            "map_machine": self.map_machine,
            "free_bytes": lambda path: free_bytes(_nearest_folder(Path(path))),
            "open_replica": self.open_replica,
            "register_disks": self.register_disks,
            "begin_disk": self.begin_disk,
            "receive_disk": self.receive_disk,
            "commit_point": self.commit_point,
            "renew_ready": self.renew_ready,
            "points": lambda path: [point.id for point in self._open(path).folder.points()],
            "older_trackers": self.older_trackers,
            "retire_points": self.retire_points,
            "close_replica": self.close_replica,
        }

    def call(self, verb: str, arguments: dict[str, Any]) -> Any:
        """Run `verb`; NotImplemented for one of another role."""
        function = self._verbs.get(verb)
        if function is None:
            return NotImplemented
        try:
            return msgspec.to_builtins(function(**arguments))
        except (TypeError, msgspec.ValidationError) as exc:
            if isinstance(exc, TypeError) and exc.__traceback__ and exc.__traceback__.tb_next:
                raise
            raise ProtocolError("backup server", f"{verb}: {exc}") from exc
        except StandbyError:
            replica = self._replicas.get(arguments.get("path", ""))
            if replica is not None:
                replica.lease.check()  # whoever took over may have cleared away what is missed
            raise

    def close(self) -> None:
        """Close every replica: partial disks keep what was acknowledged."""
        with self._lock:
            for replica in self._replicas.values():
                with contextlib.suppress(StandbyError):
                    replica.close()  # else it is as a kill would have left it: a resume handles it
            self._replicas.clear()

    def _open(self, path: str) -> _OpenReplica:
        try:
            return self._replicas[path]
        except KeyError:
            raise ProtocolError("backup server", f"replica {path} is not open") from None

    # --- prepare -----------------------------------------------------------------------------

    def find_replica(self, root: str, identity: dict[str, Any], wanted: str) -> dict[str, Any]:
        """The folder of the replica of that identity below `root`, or where it would be made."""
        found = self._found(root, identity, wanted)
        return {"path": str(found.path), "exists": found.exists}

    def _found(self, root: str, identity: dict[str, Any], wanted: str) -> FoundReplica:
        who = msgspec.convert(identity, ReplicaIdentity)
        return found_replica(Path(root), who, wanted, self._clock)

    def mapped_disks(self, root: str, folder: str) -> list[str]:
        """Controller places of the VM at the target that a job maps to (RULES 16)."""
        return [disk.place for disk in mapped_machine(Path(root), folder).disks]

    def inspect_replica(self, path: str) -> dict[str, Any] | None:
        """What the target holds, without becoming its writer; None where there is no replica."""
        folder = ReplicaFolder(Path(path), self._clock)
        if not folder.exists():
            return None
        return dict(msgspec.to_builtins(target_state(folder)))

    def open_replica(
        self,
        root: str,
        identity: dict[str, Any],
        wanted: str,
        session: str,
        take_over: bool,
        must_exist: bool,
        expected: str,
    ) -> dict[str, Any]:
        """Become the writer, finish what a dead session left, and say what is here (RULES 6)."""
        who = msgspec.convert(identity, ReplicaIdentity)
        found = self._found(root, identity, wanted)
        if must_exist and not found.exists:
            raise ReplicaMissing(Path(expected).name, expected, "the replica is not there")
        path = found.path
        make_folder_durably(path.parent)
        folder = ReplicaFolder(path, self._clock)
        folder.create(who, wanted)
        lease = WriterLease.acquire(folder, session, take_over=take_over)
        warnings: list[str] = []
        try:
            done = recover(folder, lease)
            warnings.extend(done.findings)
            if pending_merge(folder) is not None:
                finish_merge(folder, lease)
            folder.check_untouched(None)
            self._renew_if_behind(folder, lease)
            state = target_state(folder)
        except BaseException:
            lease.release()
            raise
        with self._lock:
            self._replicas[str(path)] = _OpenReplica(folder, lease)
        if state.newest:  # before that, what lies here was put here: a seed
            warnings.extend(f"unknown file {name} is left alone" for name in folder.unknown_files())
        return {"path": str(path), "state": state, "warnings": warnings}

    def _renew_if_behind(self, folder: ReplicaFolder, lease: WriterLease) -> None:
        newest = folder.newest()
        record = folder.record()
        if newest is None or record.state is not ReplicaState.READY:
            return
        if not ready.is_current(folder, record, newest):
            ready.renew(folder, lease, newest)

    def register_disks(self, path: str, disks: list[dict[str, Any]]) -> None:
        """Keep the disk ids of this session in replica.json (RULES 1)."""
        replica = self._open(path)
        replica.lease.update(disks=tuple(msgspec.convert(disks, list[ReplicaDisk])))

    def map_machine(self, path: str, folder: str) -> dict[str, Any]:
        """Make the disks of the VM in `folder`, below the target's root, the first point as they
        are (RULES 16): those at the places of the replica's disks."""
        replica = self._open(path)
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
        point = make_found_point(replica.folder, replica.lease, machine, files)
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
        connection: int,
        task: str,
        seed_name: str,
        mapped_from: str,
        place: str,
    ) -> dict[str, Any]:
        """Tell the source what is here of a disk, over a data connection, changing nothing."""
        link = self._data[connection]
        held: HeldDisk | None = None
        try:
            folder = ReplicaFolder(Path(path), self._clock)
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
                held = held_disk(folder, disk_id, virtual_size)
            tell(held, task, link)
            return {}
        except BaseException:
            link.shutdown()  # else the source would wait for ever
            raise
        finally:
            if held is not None:
                held.close()

    # --- transfer ----------------------------------------------------------------------------

    def begin_disk(
        self,
        path: str,
        disk_id: str,
        point: str,
        checkpoint: str,
        virtual_size: int,
        logical_sector_size: int,
        physical_sector_size: int,
        page83: str,
        has_parent: bool,
        copy: bool,
        seed: bool,
        seed_name: str,
    ) -> dict[str, Any]:
        """Make or resume the partial disk of a point; what it holds already. `copy`: a new base
        from what the newest point holds; `seed`: from the file the user put here, which may be
        called `seed_name`."""
        replica = self._open(path)
        folder = replica.folder
        newest = folder.newest()
        held = disk_of(newest, disk_id) if newest is not None else None
        chain: tuple[Path, ...] = ()
        digests: tuple[Path, ...] = ()
        copy_from: tuple[Path, ...] = ()
        root = b""
        if held is not None and newest is not None and (has_parent or copy):
            layers = folder.chain_paths(newest, disk_id)
            if copy:
                copy_from = layers
            else:
                chain = layers
                digests = tuple(folder.digest_paths(newest.id, disk_id))
                root = bytes.fromhex(held.root)
        elif seed and newest is None:
            shape = (virtual_size, logical_sector_size)
            copy_from = seeded(folder, replica.lease, disk_id, seed_name, point, checkpoint, shape)
        disk_folder = folder.disk_path(disk_id)
        make_folder_durably(disk_folder)
        replica.lease.check()
        partial = PartialDisk.open(
            disk_folder,
            PartialSpec(
                disk_id,
                point,
                replica.lease.generation,
                checkpoint,
                virtual_size,
                logical_sector_size,
                physical_sector_size,
                page83,
                chain,
                digests,
                copy_from,
                root,
            ),
            clock=self._clock,
        )
        replica.partials[disk_id] = partial
        replica.sealed.pop(disk_id, None)
        return {"point": partial.point_id, "acknowledged": partial.acknowledged_bytes}

    def receive_disk(
        self, path: str, disk_id: str, task: str, connection: int, verify_writes: str
    ) -> dict[str, Any]:
        """Receive one disk over a data connection; seal it when all of it reads back right."""
        link = self._data[connection]
        try:
            replica = self._open(path)
            partial = replica.partials[disk_id]
            proxy = TargetProxy(
                task,
                replica.folder.name,
                partial,
                partial.spec.virtual_size,
                link,
                self._rings[connection],
                verify_writes=verify_writes,
                check_lease=replica.lease.check,
            )
            counters = proxy.run()
            killpoints.reach("verified")
            sealed = partial.seal()
            replica.sealed[disk_id] = sealed
            return {
                "root": sealed.root.hex(),
                "written": counters.written,
                "zeroed": counters.zeroed,
                "resent_blocks": counters.resent_blocks,
                "busy_s": counters.busy_s,
            }
        except BaseException:
            link.shutdown()  # else the source would wait for ever
            raise

    # --- commit ------------------------------------------------------------------------------

    def commit_point(
        self,
        path: str,
        point: str,
        taken_at: str,
        consistency: str,
        session: str,
        machine: dict[str, Any],
        disks: list[dict[str, Any]],
        state_files: dict[str, str],
        changed_bytes: int,
    ) -> None:
        """Make the restore point of the sealed disks, whose roots must be the source's."""
        replica = self._open(path)
        sealed = {}
        recorded = []
        for item in disks:
            disk_id = item["disk_id"]
            if item["excluded"]:
                recorded.append(PointDisk(disk_id, item["place"], 0, 0, 0, "", (), excluded=True))
                continue
            spec = replica.partials[disk_id].spec
            done = replica.sealed[disk_id]
            if done.root.hex() != item["root"]:
                raise VerifyFailed(replica.folder.name, disk_id, 0)
            sealed[disk_id] = done
            recorded.append(
                PointDisk(
                    disk_id,
                    item["place"],
                    spec.virtual_size,
                    spec.logical_sector_size,
                    spec.physical_sector_size,
                    done.root.hex(),
                    (),
                    item["tracker_id"],
                    item["identity"],
                )
            )
        newest = replica.folder.newest()
        vm = msgspec.convert(machine, Machine)
        note = "" if state_files or vm.generation == 1 else "firmware state missing"
        commit(
            replica.folder,
            replica.lease,
            RestorePoint(
                POINT_FORMAT,
                point,
                newest.id if newest is not None else "",
                replica.lease.generation,
                taken_at,
                self._clock.now().isoformat(),
                consistency,
                session,
                vm,
                tuple(recorded),
                state_files,
                note,
                changed_bytes,
            ),
            sealed,
        )
        replica.partials.clear()
        replica.sealed.clear()

    def older_trackers(self, path: str) -> list[str]:
        """Tracker ids in every point but the newest: of no use any more, also those that a killed
        session did not come to give up."""
        points = self._open(path).folder.points()
        found = [{disk.tracker_id for disk in point.disks if disk.tracker_id} for point in points]
        return sorted(set().union(*found[:-1]) - found[-1]) if found else []

    def renew_ready(self, path: str) -> dict[str, str]:
        """A new ready layer above the newest point; {place: file, relative to the replica}."""
        replica = self._open(path)
        newest = replica.folder.newest()
        if newest is None:
            return {}
        ready.renew(replica.folder, replica.lease, newest)
        return {disk.place: f"{disk.disk_id}/{READY}" for disk in newest.disks if not disk.excluded}

    # --- retention ---------------------------------------------------------------------------

    def retire_points(self, path: str, keep: int) -> dict[str, Any]:
        """Merge oldest points away until `keep` are left, never against the target's own rules
        (RULES 17); what is left, and why it may be more."""
        replica = self._open(path)
        folder = replica.folder
        rules = load_target_rules(folder.path.parent)
        warnings: list[str] = []
        while True:
            points = folder.points()
            if len(points) <= max(keep, 1):
                break
            protected = {item.id for item in points_kept_by(rules, points, self._clock.now())}
            if points[0].id in protected:
                warnings.append(
                    f"{len(points)} points are kept where the job asks for {keep}: the target's "
                    "own rules keep them"
                )
                break
            merge_oldest(folder, replica.lease)
        return {"points": [point.id for point in folder.points()], "warnings": warnings}

    def close_replica(self, path: str) -> None:
        """Give the replica back; partial disks keep what was acknowledged."""
        with self._lock:
            replica = self._replicas.pop(path, None)
        if replica is not None:
            replica.close()


def _nearest_folder(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path
