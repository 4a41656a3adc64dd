"""Committing a restore point: two phases, one rename (RULES 4, 12; DESIGN).

    points/<id>.<generation>.pending.json    durable: the whole record, and which file becomes which
    each partial file -> its final name      in any order, each durable, never over another file
    temporary -> points/<id>.json            this rename is the restore point, for all disks
    points/<id>.copy                         the same once more (`record_copies`)
    the pending record is removed

`recover` finishes what a dead writer of the current generation left when every file is there, and
takes back what a fenced one renamed. Both can be killed anywhere and repeated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from standby import killpoints
from standby.clock import new_token
from standby.disk import vhdx
from standby.errors import DiskIO, Fenced, PointDamaged, ReplicaConflict
from standby.files import ByteLock, remove_durably, rename_durably, rename_to_new
from standby.model.point import PointDisk, RestorePoint
from standby.model.replica import Action, LayerFile, ReplicaState, next_state
from standby.road import naming
from standby.road.lease import WriterLease, remove_own_temporaries
from standby.road.points import disk_of, files_claimed_by
from standby.road.record_copies import write_copy
from standby.road.records import (
    RecordDamaged,
    encoded_record,
    inner_path,
    layer_evidence,
    layer_facts,
    read_record,
)
from standby.road.replica import ReplicaFolder, encode_point

if TYPE_CHECKING:
    from standby.road.partial import SealedDisk

PENDING_FORMAT = 1
_PENDING_KIND = "pending point"

TAKE_BACK_BYTE = (1 << 29) + 1
"""The byte of `.lock` held while a commit is taken back."""


@dataclass(frozen=True, slots=True)
class Move:
    """One file of a point on its way to its final name; both relative to the replica's folder.
    `layer` is what a disk file must be, None for digests."""

    partial: str
    final: str
    layer: LayerFile | None = None


@dataclass(frozen=True, slots=True)
class PendingCommit:
    """points/<id>.<generation>.pending.json."""

    point: RestorePoint
    moves: tuple[Move, ...]


@dataclass(frozen=True, slots=True)
class Recovery:
    """What `recover` found and did."""

    committed: tuple[str, ...] = ()
    discarded: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()


def commit(
    folder: ReplicaFolder,
    lease: WriterLease,
    point: RestorePoint,
    sealed: Mapping[str, SealedDisk],
) -> RestorePoint:
    """Make `point` a restore point out of the sealed disks; the point as it was recorded.

    The driver fills in everything but the chains: those, the generation and the time come from
    here, a root may be left empty. Raises Fenced when someone took over: then the point does not
    exist and its files stay for the next writer. Raises PointDamaged when a sealed file is not
    what was sealed, ReplicaConflict when the point does not follow the newest one.
    """
    lease.check()
    _take_back_lock(folder).release()
    newest = folder.newest()
    if point.parent != (newest.id if newest else "") or (newest and point.id <= newest.id):
        raise ReplicaConflict(
            folder.name,
            f"the point {point.id} was made to follow {point.parent or 'none'}, but the newest is "
            f"{newest.id if newest else 'none'}",
            "Start the job again",
        )
    disks: list[PointDisk] = []
    moves: list[Move] = []
    for disk in point.disks:
        if disk.excluded:
            disks.append(replace(disk, chain=()))
            continue
        if disk.disk_id not in sealed:
            raise ReplicaConflict(
                folder.name, f"the disk {disk.disk_id} of {point.id} is not sealed"
            )
        whole, its_moves = _placed(folder, point, disk, sealed[disk.disk_id])
        disks.append(whole)
        moves.extend(its_moves)
    point = replace(
        point,
        generation=lease.generation,
        committed_at=f"{folder.clock.now():%Y-%m-%dT%H:%M:%SZ}",
        disks=tuple(disks),
    )
    pending = PendingCommit(point, tuple(moves))
    path = _pending_path(folder, pending)
    lease.write(path, encoded_record(_PENDING_KIND, PENDING_FORMAT, pending))
    killpoints.reach("pending written")
    _apply(folder, lease, pending, path)
    _finish(folder, lease)
    return point


def _placed(
    folder: ReplicaFolder, point: RestorePoint, disk: PointDisk, sealed: SealedDisk
) -> tuple[PointDisk, list[Move]]:
    """The disk with its chain, and the moves that bring its files there."""
    partial = sealed.partial_path.relative_to(folder.path).as_posix()
    found = layer_facts(folder.path, partial)
    if (found.size, found.data_write_guid) != (sealed.size, sealed.data_write_guid):
        raise PointDamaged(
            folder.name,
            point.id,
            str(sealed.partial_path),
            f"changed after it was sealed: {found.size} bytes, data-write GUID "
            f"{found.data_write_guid}, where {sealed.size} and {sealed.data_write_guid} were left",
        )
    root = sealed.root.hex()
    if disk.root and disk.root != root:
        raise PointDamaged(
            folder.name,
            point.id,
            str(sealed.partial_path),
            f"digest root {root} where the source has {disk.root}",
        )
    below = _chain_below(folder, disk.disk_id, sealed.partial_path)
    base = f"{disk.disk_id}/{naming.BASE}"
    taken = files_claimed_by(folder.points()) | _files_to_go(folder)
    is_first = not below and base not in taken
    final = base if is_first else f"{disk.disk_id}/{point.id}.vhdx"
    layer = replace(found, file=final)
    digests = folder.digests_path(point.id, disk.disk_id).relative_to(folder.path).as_posix()
    return replace(disk, root=root, chain=(layer, *below)), [
        Move(partial, final, layer),
        Move(sealed.digests_path.relative_to(folder.path).as_posix(), digests),
    ]


def _files_to_go(folder: ReplicaFolder) -> set[str]:
    """What a merge under way removes when it ends: no name for a file of a new point."""
    from standby.road.merge_plan import pending_merge

    merge = pending_merge(folder)
    return set() if merge is None else {*merge.removed, *(disk.child for disk in merge.disks)}


def _chain_below(folder: ReplicaFolder, disk_id: str, partial: Path) -> tuple[LayerFile, ...]:
    """The recorded chain whose newest layer the partial disk is a child of; empty for a base."""
    info = vhdx.read_info(partial)
    if not info.has_parent:
        return ()
    linkage = info.locator.get("parent_linkage", "").strip("{}").lower()
    for point in reversed(folder.points()):
        disk = disk_of(point, disk_id)
        if disk is not None:
            if disk.chain[0].data_write_guid == linkage:
                return disk.chain
            break
    raise ReplicaConflict(
        folder.name,
        f"{partial} is a child of a disk with data-write GUID {linkage}, which is not the newest "
        f"layer of {disk_id}",
        "Start the job again; the transfer is planned anew",
    )


def _pending_path(folder: ReplicaFolder, pending: PendingCommit) -> Path:
    name = f"{pending.point.id}.{pending.point.generation}.pending.json"
    return folder.points_path / name


# --- the second half, also of recovery -------------------------------------------------------


def _apply(folder: ReplicaFolder, lease: WriterLease, pending: PendingCommit, path: Path) -> None:
    """Bring every file to its final name, then the record."""
    for move in pending.moves:
        lease.check()
        killpoints.reach("lease checked")
        try:
            _move(folder, move)
        except DiskIO:
            lease.check()
            raise
        killpoints.reach("file renamed")
    killpoints.reach("all files renamed")
    with folder.guarded(lease.generation):
        lease.write(folder.point_path(pending.point.id), encode_point(pending.point))
    killpoints.reach("point renamed")
    write_copy(folder, lease, pending.point)
    lease.check()
    remove_durably(path)


def _move(folder: ReplicaFolder, move: Move) -> None:
    """Rename, never over another file. One in the way that no point needs came from a writer that
    was fenced between its look and its rename: it is put aside under a name of its own."""
    partial, final = inner_path(folder.path, move.partial), inner_path(folder.path, move.final)
    while not (final.exists() and not partial.exists() and _is_as_sealed(folder, move)):
        if rename_to_new(partial, final):
            return
        if move.final in files_claimed_by(folder.points()):
            raise ReplicaConflict(
                folder.name, f"{final} belongs to a restore point and would be replaced"
            )
        stem, _, suffix = final.name.rpartition(".")
        aside = final.with_name(f"{stem}.{new_token(4)}.unclaimed.{suffix}")
        with contextlib.suppress(DiskIO):
            rename_durably(final, aside)


def _is_as_sealed(folder: ReplicaFolder, move: Move) -> bool:
    return move.layer is None or not layer_evidence(folder.path, move.layer)


def _finish(folder: ReplicaFolder, lease: WriterLease) -> None:
    """What follows a committed point: the state, and what only its making needed."""
    record = folder.record()
    if record.state is ReplicaState.NEW:
        lease.update(state=next_state(record.state, Action.SESSION))
    lease.check()
    discard_partials(folder, lease)


def discard_partials(folder: ReplicaFolder, lease: WriterLease) -> list[str]:
    """Remove every partial disk, extent log and partial digest file of this or an older generation
    (RULES 4): after a commit they are of no use. What was removed, relative to the folder."""
    removed = []
    lease.check()
    for path in sorted(folder.path.glob("*/*")):
        name = naming.partial_name(path.name)
        if name is None or name.generation > lease.generation or path.parent == folder.points_path:
            continue
        remove_durably(path)
        removed.append(path.relative_to(folder.path).as_posix())
    return removed


def _discard_orphans(folder: ReplicaFolder, lease: WriterLease) -> None:
    """Remove logs and digests of transfers whose disk file is gone: it became a point's."""
    for path in sorted(folder.path.glob("*/*.extents")) + sorted(folder.path.glob("*/*.digests")):
        name = naming.partial_name(path.name)
        if name is None or name.generation > lease.generation:
            continue
        if not path.with_name(f"{name.point}.{name.generation}.partial.vhdx").exists():
            remove_durably(path)


# --- recovery --------------------------------------------------------------------------------


def recover(folder: ReplicaFolder, lease: WriterLease) -> Recovery:
    """Finish or take back every commit that a dead or fenced writer left under way.

    A pending record of the lease's generation is rolled forward when all its files are there and
    right; any other one is taken back: its files get their partial names again, for a resume.
    Idempotent; every writer calls it first.
    """
    lease.check()
    remove_own_temporaries(lease)
    committed: list[str] = []
    discarded: list[str] = []
    findings: list[str] = []
    for path, name in _pending_records(folder):
        if name.generation > lease.generation:
            raise Fenced(folder.name, lease.generation, name.generation)
        try:
            pending = read_record(path, _PENDING_KIND, PENDING_FORMAT, PendingCommit)
            if any(point.id == pending.point.id for point in folder.points()):
                committed.append(pending.point.id)
                remove_durably(path)
                continue
            problem = _incomplete(folder, lease, pending, name)
        except RecordDamaged as exc:
            # It was never a point, and what its files are to be called is not known any more.
            findings.append(f"{path.relative_to(folder.path).as_posix()}: {exc}")
            continue
        if not problem:
            _apply(folder, lease, pending, path)
            committed.append(pending.point.id)
        else:
            _take_back(folder, lease, pending, path)
            discarded.append(pending.point.id)
            findings.append(f"point {pending.point.id} was not committed: {problem}")
    record = folder.record()
    if committed or (record.state is ReplicaState.NEW and folder.points()):
        _finish(folder, lease)
    _discard_orphans(folder, lease)
    return Recovery(tuple(committed), tuple(discarded), tuple(findings))


def _pending_records(folder: ReplicaFolder) -> Iterator[tuple[Path, naming.PartialName]]:
    for path in sorted(folder.points_path.glob("*.json")):
        name = naming.partial_name(path.name)
        if name is not None:
            yield path, name


def _incomplete(
    folder: ReplicaFolder, lease: WriterLease, pending: PendingCommit, name: naming.PartialName
) -> str:
    """Why the pending commit cannot be finished, '' when it can."""
    if pending.point.generation != lease.generation:
        return f"its writer, of generation {name.generation}, was fenced"
    newest = folder.newest()
    if pending.point.parent != (newest.id if newest else ""):
        return f"it follows {pending.point.parent or 'none'}, which is not the newest point"
    for move in pending.moves:
        partial, final = inner_path(folder.path, move.partial), inner_path(folder.path, move.final)
        if not partial.exists() and not final.exists():
            return f"{move.partial} is missing"
        if move.layer is not None:
            now = move.partial if partial.exists() else move.final
            if evidence := layer_evidence(folder.path, replace(move.layer, file=now)):
                return f"{now}: {evidence}"
    return ""


def _take_back(
    folder: ReplicaFolder, lease: WriterLease, pending: PendingCommit, path: Path
) -> None:
    """Give the files their partial names again, where they are this commit's and no point's.

    The one step that takes a file away from a final name. Whoever is stopped in it and fenced
    holds its lock still, and until that ends no newer commit puts a file there.
    """
    with _take_back_lock(folder):
        _take_files_back(folder, lease, pending)
        lease.check()
        remove_durably(path)


def _take_back_lock(folder: ReplicaFolder) -> ByteLock:
    return folder.waited_lock(
        TAKE_BACK_BYTE, "a fenced process that has not ended takes a commit back"
    )


def _take_files_back(folder: ReplicaFolder, lease: WriterLease, pending: PendingCommit) -> None:
    claimed = files_claimed_by(folder.points())
    for move in pending.moves:
        partial, final = inner_path(folder.path, move.partial), inner_path(folder.path, move.final)
        is_ours = move.final not in claimed and final.exists() and _is_as_sealed(folder, move)
        if is_ours and not partial.exists():
            lease.check()
            killpoints.reach("lease checked")
            rename_to_new(final, partial)
        killpoints.reach("file taken back")
