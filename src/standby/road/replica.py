"""One replica's folder at the target: its record, its points, its files (FORMAT.md).

Reading needs no lease and no other process; every answer comes fresh from the files. Writing goes
through `lease.WriterLease`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import (
    DiskIO,
    NoSuchPoint,
    PointDamaged,
    ReplicaBusy,
    ReplicaConflict,
    ReplicaMissing,
    ReplicaStarted,
    StandbyError,
)
from standby.errors.replicas import BEGIN_ANEW
from standby.files import ByteLock, is_folder, is_there, listed, make_folder_durably, write_durably
from standby.model.point import RestorePoint
from standby.model.replica import LayerFile, ReplicaIdentity, ReplicaRecord, ReplicaState
from standby.road import naming
from standby.road.naming import folder_name
from standby.road.points import POINT_FORMAT, counts, disk_of, files_claimed_by, replicated_disks
from standby.road.records import (
    RecordDamaged,
    encoded_record,
    inner_path,
    layer_evidence,
    read_record,
)

__all__ = ["PointScan", "ReplicaFolder", "folder_name"]

RECORD_FORMAT = 1
GUARD_BYTE = 1 << 30
"""This byte of `.lock` plus a generation is held shortly around that generation's updates: a hung
writer's guard is not the next generation's. Generations themselves, from 1 on, are bytes too.
(Windows' C library locks no byte behind 2 GiB.)"""
GENERATION_MAX = (1 << 29) - 1
GUARD_TIMEOUT_S = 10.0
"""An update takes milliseconds; ten seconds on it mean that its process is stopped or hangs."""
GUARD_POLL_S = 0.02
_ATTEMPTS = 5

_KNOWN_FILES = frozenset(
    {naming.RECORD, naming.LOCK, naming.HOLDER, "merge.json", "vm.toml"}
    # What a folder host leaves beside a VM that it started.
    | {"power.json", "serial.log", "disk-server.log", "nvram.fd"}
)

_HOST_FOLDERS = ("Virtual Machines", "Snapshots", "UndoLog Configuration")
"""Where a Hyper-V host keeps the configuration of the replica's VM."""


@dataclass(frozen=True, slots=True)
class PointScan:
    """What points/ holds: `valid` and `void` records (see `points.counts`), oldest first, and
    (id, problem) of those that cannot be read, or are gone while their copy is there."""

    valid: tuple[RestorePoint, ...]
    void: tuple[RestorePoint, ...]
    damaged: tuple[tuple[str, str], ...]


class ReplicaFolder:
    """A replica at the target, by its folder."""

    def __init__(self, path: Path, clock: Clock = SYSTEM_CLOCK) -> None:
        self.path = path
        self.clock = clock

    @property
    def name(self) -> str:
        """What errors and people call the replica: its folder's name."""
        return self.path.name

    @property
    def record_path(self) -> Path:
        """replica.json."""
        return self.path / naming.RECORD

    @property
    def lock_path(self) -> Path:
        """The lock file, which is never renamed."""
        return self.path / naming.LOCK

    @property
    def points_path(self) -> Path:
        """The folder of commit records and digests."""
        return self.path / naming.POINTS

    def point_path(self, point_id: str) -> Path:
        """The commit record of a point."""
        return self.points_path / f"{point_id}.json"

    def copy_path(self, point_id: str) -> Path:
        """The copy of a point's commit record (`record_copies`). It makes no point."""
        return self.points_path / f"{point_id}{naming.COPY_SUFFIX}"

    def digests_path(self, point_id: str, disk_id: str) -> Path:
        """The digests of one disk at a point."""
        return self.points_path / f"{point_id}.{disk_id}.digests"

    def disk_path(self, disk_id: str) -> Path:
        """The folder of one disk's files."""
        return self.path / disk_id

    # --- the record ------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether there is a replica here; a folder with other things in it is none. DiskIO where
        the folder cannot be looked into."""
        return is_there(self.record_path)

    def create(self, identity: ReplicaIdentity, name: str) -> ReplicaRecord:
        """Begin the replica of `identity` here, or find it; raises ReplicaConflict where another
        one lives in the folder, but for one that `is_bare`. What else lies in the folder (a seed)
        is left alone."""
        make_folder_durably(self.path)
        make_folder_durably(self.points_path)
        with self.guarded():
            if self.exists():
                record = self.record()
                if record.identity == identity:
                    return record
                # Whoever writes it holds this: it stays bare until it is another one's.
                lock = ByteLock(self.lock_path, record.generation)
                try:
                    if lock.acquire() and self.is_bare(record):
                        return self._begun(identity, name, record.generation + 1)
                finally:
                    lock.release()
                raise ReplicaConflict(
                    self.name,
                    f"{self.path} holds the replica of VM {record.identity.machine_id} from "
                    f"{record.identity.source_host} (job {record.identity.job})",
                    "Use another target folder or another suffix",
                )
            return self._begun(identity, name, 1)

    def _begun(self, identity: ReplicaIdentity, name: str, generation: int) -> ReplicaRecord:
        record = ReplicaRecord(RECORD_FORMAT, identity, name, ReplicaState.NEW, generation, ())
        write_durably(self.record_path, encode_replica(record))
        return record

    def is_bare(self, record: ReplicaRecord) -> bool:
        """Whether the replica of that record is one whose first session was refused before it wrote
        anything: no point, no disk, nothing of a user's. Such a one may become another's."""
        own = {naming.RECORD, naming.LOCK, naming.HOLDER, naming.POINTS}
        return (
            record.state is ReplicaState.NEW
            and not record.points
            and {path.name for path in listed(self.path)} <= own
            and not any(True for _ in listed(self.points_path))
        )

    def record(self) -> ReplicaRecord:
        """replica.json as it is now; ReplicaMissing without one, ReplicaConflict when damaged."""
        try:
            record = read_record(self.record_path, "replica", RECORD_FORMAT, ReplicaRecord)
            for layer in (*(record.ready or {}).values(), *(record.ready_next or {}).values()):
                inner_path(self.path, layer.file)
            for disk in record.disks:
                inner_path(self.path, disk.id)
        except RecordDamaged as exc:
            raise ReplicaConflict(
                self.name,
                f"{self.record_path}: {exc}",
                "The disk files are untouched: `ready.vhdx` of each disk starts by hand. For "
                f"replication to go on put the file back from a backup, or {BEGIN_ANEW}",
            ) from exc
        except DiskIO as exc:
            if self.exists():
                raise
            raise ReplicaMissing(self.name, str(self.record_path), "it is not there") from exc
        if not 1 <= record.generation <= GENERATION_MAX:
            raise ReplicaConflict(self.name, f"generation {record.generation} cannot be")
        return record

    def waited_lock(self, byte: int, holder: str) -> ByteLock:
        """A byte of the lock file, now ours; after five looks ReplicaBusy, saying `holder`."""
        lock = ByteLock(self.lock_path, byte)
        for _ in range(_ATTEMPTS):
            if lock.acquire():
                return lock
            self.clock.sleep(GUARD_POLL_S)
        raise ReplicaBusy(self.name, holder)

    @contextlib.contextmanager
    def guarded(self, generation: int = 0, *, force: bool = False) -> Iterator[None]:
        """Hold the short lock of a generation's updates: it keeps its threads apart, and whoever
        raises it from its writer. After ten seconds `force` goes on without it, for whoever fences
        a hung holder; else ReplicaBusy."""
        lock = ByteLock(self.lock_path, GUARD_BYTE + generation)
        started = self.clock.monotonic()
        while not lock.acquire():
            if self.clock.monotonic() - started >= GUARD_TIMEOUT_S:
                if force:
                    break
                raise ReplicaBusy(self.name, f"its record has been locked for {GUARD_TIMEOUT_S} s")
            self.clock.sleep(GUARD_POLL_S)
        try:
            yield
        finally:
            lock.release()

    # --- points ----------------------------------------------------------------------------

    def scan_points(self, record: ReplicaRecord | None = None) -> PointScan:
        """Every record in points/, judged by the void rule against `record` (default: now)."""
        judge = record or self.record()
        valid: list[RestorePoint] = []
        void: list[RestorePoint] = []
        damaged: list[tuple[str, str]] = []
        for path in listed(self.points_path):
            if not naming.is_point_id(path.stem):
                continue
            if path.suffix == naming.COPY_SUFFIX and self._has_lost_record(judge, path):
                damaged.append((path.stem, "it is gone, only its copy is there"))
            if path.suffix != ".json":
                continue
            try:
                point = self.read_point(path)
            except (RecordDamaged, StandbyError) as exc:
                damaged.append((path.stem, str(exc)))
                continue
            (valid if counts(judge, point) else void).append(point)
        return PointScan(tuple(valid), tuple(void), tuple(damaged))

    def _has_lost_record(self, judge: ReplicaRecord, copy: Path) -> bool:
        """Whether a point that counts has this sound copy and has lost its record. A copy comes
        after its record and goes before it: it is read after the look for the record, or a merge
        may have come between."""
        if is_there(copy.with_suffix(".json")):
            return False
        try:
            return counts(judge, self.read_point(copy))
        except (RecordDamaged, StandbyError):
            return False

    def read_point(self, path: Path) -> RestorePoint:
        """The record of a point, or its copy, at `path`. Raises RecordDamaged, or DiskIO."""
        point = read_record(path, "restore point", POINT_FORMAT, RestorePoint)
        if point.id != path.stem:
            raise RecordDamaged(f"the record is of point {point.id}")
        for disk in point.disks:
            inner_path(self.path, disk.disk_id)
            for layer in disk.chain:
                inner_path(self.path, layer.file)
        return point

    def points(self) -> tuple[RestorePoint, ...]:
        """The points that count, oldest first. Damaged records are not among them; `findings`
        and `check_untouched` tell of those."""
        return self.scan_points().valid

    def newest(self) -> RestorePoint | None:
        """The newest committed point."""
        points = self.points()
        return points[-1] if points else None

    def point(self, point_id: str) -> RestorePoint:
        """The point of exactly that id; raises NoSuchPoint, or PointDamaged for its record."""
        scan = self.scan_points()
        for point in scan.valid:
            if point.id == point_id:
                return point
        self._raise_damaged(scan, point_id)
        raise NoSuchPoint(self.name, point_id, tuple(point.id for point in scan.valid))

    def _raise_damaged(self, scan: PointScan, point_id: str | None) -> None:
        for damaged, problem in scan.damaged:
            if point_id is None or damaged == point_id:
                raise PointDamaged(self.name, damaged, str(self.point_path(damaged)), problem)

    def chain_paths(self, point: RestorePoint, disk_id: str) -> tuple[Path, ...]:
        """The disk's files at the point, newest layer first."""
        disk = disk_of(point, disk_id)
        if disk is None:
            raise NoSuchPoint(self.name, f"{point.id} with the disk {disk_id}")
        return tuple(inner_path(self.path, layer.file) for layer in disk.chain)

    def digest_paths(self, point_id: str, disk_id: str) -> list[Path]:
        """The disk's digests at the point for `digesting.DigestChain`: newest first, the last one
        complete. Each layer's digests carry the id of the point that layer came with."""
        point = self.point(point_id)
        disk = disk_of(point, disk_id)
        if disk is None:
            raise NoSuchPoint(self.name, f"{point_id} with the disk {disk_id}")
        owners = {
            other.chain[0].file: candidate.id
            for candidate in self.points()
            for other in replicated_disks(candidate)
            if other.disk_id == disk_id
        }
        paths = []
        for layer in disk.chain:
            if layer.file not in owners and self._allowed_guids()(layer.file):
                continue  # being merged: the digests next to it are complete by now
            digests = self._layer_digests(layer.file, disk_id, owners)
            if layer.file not in owners and not is_there(digests):
                raise PointDamaged(
                    self.name,
                    point_id,
                    layer.file,
                    "the digests of this layer are gone, or the record of its point is",
                )
            paths.append(digests)
        return paths

    def _layer_digests(self, file: str, disk_id: str, owners: dict[str, str]) -> Path:
        """Where the digests of a layer are: beside the record of the point it came with. Is that
        record gone the file still has the point's name; whoever opens the digests compares their
        root with the point's (RULES 6), so a wrong guess is refused."""
        return self.digests_path(owners.get(file, PurePosixPath(file).stem), disk_id)

    # --- tampering -------------------------------------------------------------------------

    def check_untouched(self, point_id: str | None = None) -> None:
        """Raise PointDamaged for the first file of the point (None: of any point) that is not as
        we left it, ReplicaStarted for such a ready layer while none may be written."""
        scan = self.scan_points()
        self._raise_damaged(scan, point_id)
        seen: set[LayerFile] = set()  # points share their older files: each is read once
        for point in [self.point(point_id)] if point_id else scan.valid:
            for layer, evidence in self.touched_layers([point], seen):
                raise PointDamaged(
                    self.name, point.id, str(inner_path(self.path, layer.file)), evidence
                )
        self.check_ready()

    def touched_layers(
        self, points: Sequence[RestorePoint], seen: set[LayerFile] | None = None
    ) -> Iterator[tuple[LayerFile, str]]:
        """Each file of the points that is not as we left it, with the evidence; of those that are
        not in `seen`, where they are put."""
        allowed = self._allowed_guids()
        seen = set() if seen is None else seen
        for point in points:
            for disk in replicated_disks(point):
                for layer in disk.chain:
                    if layer in seen:
                        continue
                    seen.add(layer)
                    if evidence := layer_evidence(self.path, layer, allowed(layer.file)):
                        yield layer, evidence

    def _allowed_guids(self) -> Callable[[str], frozenset[str]]:
        """What a file's data-write GUID may be besides the recorded one: of those that a merge
        under way touches."""
        from standby.road.merging import pending_merge

        try:
            merge = pending_merge(self)
        except ReplicaConflict:
            merge = None  # a damaged merge.json excuses nothing; untouched points stay usable
        return merge.guids_of if merge is not None else lambda file: frozenset()

    def check_ready(self) -> None:
        """Raise ReplicaStarted when a ready layer was written outside of a failover."""
        record = self.record()
        if record.state in (ReplicaState.NEW, ReplicaState.READY, ReplicaState.DAMAGED):
            for path, evidence in self.touched_ready(record):
                raise ReplicaStarted(self.name, str(path), evidence)

    def touched_ready(self, record: ReplicaRecord) -> Iterator[tuple[Path, str]]:
        """Each ready layer that is there and is neither of the two we may have left. One that is
        missing was not written: the next renewal makes it."""
        known = record.ready or {}
        upcoming = record.ready_next or {}
        allowed = self._allowed_guids()
        disks = {*known, *upcoming, *(disk.id for disk in record.disks)}
        for disk_id in sorted(disks):
            path = self.disk_path(disk_id) / naming.READY
            if not is_there(path):
                continue
            layers = [layers[disk_id] for layers in (known, upcoming) if disk_id in layers]
            evidence = [layer_evidence(self.path, layer, allowed(layer.file)) for layer in layers]
            if not layers:
                yield path, "it is not the file standby made"
            elif all(evidence):
                yield path, evidence[0]

    # --- what else lies here ---------------------------------------------------------------

    def unknown_files(self) -> list[str]:
        """Files that no record names, relative to the folder: reported, never deleted."""
        record = self.record()
        scan = self.scan_points(record)
        nvram = {point.machine.nvram for point in scan.valid if point.machine.nvram}
        known = files_claimed_by(scan.valid) | _KNOWN_FILES | nvram
        known |= {f"{naming.POINTS}/{point.id}.json" for point in (*scan.valid, *scan.void)}
        known |= {f"{naming.POINTS}/{point_id}.json" for point_id, _ in scan.damaged}
        ids = [point.id for point in scan.valid] + [point_id for point_id, _ in scan.damaged]
        known |= {f"{naming.POINTS}/{point_id}{naming.COPY_SUFFIX}" for point_id in ids}
        known |= {layer.file for layer in (record.ready or {}).values()}
        known |= {layer.file for layer in (record.ready_next or {}).values()}
        if record.host_folder:
            known |= {name + end for name in known for end in naming.TRACKING_SUFFIXES}
        found = []
        for path in sorted(self.path.rglob("*")):
            name = path.relative_to(self.path).as_posix()
            is_ours = (
                name in known
                or naming.partial_name(path.name) is not None
                or naming.ready_candidate_generation(path.name) is not None
                or path.name.startswith(".")
                or (record.host_folder and name.partition("/")[0] in _HOST_FOLDERS)
            )
            if not is_ours and not is_folder(path):
                found.append(name)
        return found


def encode_replica(record: ReplicaRecord) -> bytes:
    """The bytes of replica.json."""
    return encoded_record("replica", RECORD_FORMAT, record)


def encode_point(point: RestorePoint) -> bytes:
    """The bytes of points/<id>.json."""
    return encoded_record("restore point", POINT_FORMAT, point)
