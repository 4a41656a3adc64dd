"""The ready layers: what the replica VM is attached to, always (RULES 4).

Each is an empty child of one point's newest file. Renewing makes all new ones beside, writes down
what they are, renames each over the old one, takes away those of disks that the point has not, and
writes down that this is done. Until then either of the two is ours; anything else in that place was
written by the VM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PureWindowsPath

from standby import killpoints
from standby.disk import vhdx
from standby.errors import DiskIO, ReplicaStarted
from standby.files import ByteLock, is_there, remove_durably, sync_folder
from standby.model.point import RestorePoint
from standby.model.replica import LayerFile, ReplicaRecord
from standby.road import naming, state_files
from standby.road.lease import WriterLease
from standby.road.points import replicated_disks
from standby.road.records import inner_path, layer_evidence, layer_facts
from standby.road.replica import ReplicaFolder

REMOVE_BYTE = (1 << 29) + 2
"""The byte of `.lock` held while ready layers are removed. A removal cannot be fenced: whoever was
stopped in one holds the lock still, and until that ends nobody else makes a ready layer there."""

_HELD_OPEN = (5, 32)
"""ERROR_ACCESS_DENIED, ERROR_SHARING_VIOLATION: what Windows says of replacing an open file."""


def renew(
    folder: ReplicaFolder,
    lease: WriterLease,
    point: RestorePoint,
    *,
    drop_writes: bool = False,
    is_running: Callable[[], bool] | None = None,
    host_folder: str | None = None,
    sparse: bool = True,
    **changes: object,
) -> ReplicaRecord:
    """Put new ready layers above `point`, all disks; replica.json as it is then.

    Raises ReplicaStarted, having changed nothing, when the replica VM runs or an old ready layer
    is not as we left it; `drop_writes` throws away what was written to it. `host_folder` is the
    replica's folder as the host sees it, for absolute locators, and `sparse` False for hosts that
    refuse sparse files (RULES 13); replica.json says both, too. `changes` go into it with the last
    step. What a host that tracks changes kept beside a replaced layer is removed.
    The UEFI variables become those of the point, too.
    """
    record = folder.record()
    host_folder = host_folder or record.host_folder or None
    sparse = sparse and not record.host_folder
    if is_running is not None and is_running():
        raise ReplicaStarted(folder.name, str(folder.path), "the replica VM is running")
    if not drop_writes:
        for path, evidence in folder.touched_ready(record):
            raise ReplicaStarted(folder.name, str(path), evidence)
    lease.check()
    _remove_lock(folder).release()
    renewed = {
        disk.disk_id: _prepare(folder, lease, disk.chain[0].file, disk.disk_id, host_folder, sparse)
        for disk in replicated_disks(point)
    }
    killpoints.reach("ready layers prepared")
    found = _as_found(folder, record)
    lease.update(ready=found, ready_next=renewed)
    killpoints.reach("ready layers announced")
    for disk_id in renewed:
        disk_folder = folder.disk_path(disk_id)
        candidate = disk_folder / naming.ready_candidate(lease.generation)
        try:
            lease.rename(candidate, disk_folder / naming.READY)
        except DiskIO as exc:
            if getattr(exc.__cause__, "winerror", 0) in _HELD_OPEN:
                layer = str(disk_folder / naming.READY)
                raise ReplicaStarted(folder.name, layer, "another process has it open") from exc
            raise
        killpoints.reach("ready layer renamed")
        tracking = [f"{disk_id}/{naming.READY}{end}" for end in naming.TRACKING_SUFFIXES]
        _remove(folder, lease, [name for name in tracking if is_there(folder.path / name)])
    gone = [layer.file for disk_id, layer in found.items() if disk_id not in renewed]
    _remove(folder, lease, gone)
    put_state_files(folder, lease, point, drop_writes=drop_writes)
    done = lease.update(ready=renewed, ready_next=None, ready_point=point.id, **changes)
    killpoints.reach("ready layer renewed")
    return done


def put_state_files(
    folder: ReplicaFolder, lease: WriterLease, point: RestorePoint, *, drop_writes: bool = False
) -> None:
    """Make the UEFI variables of the replica VM, which is off, those of the point. Where it holds
    none, what is there goes as far as it is ours (`state_files.is_ours`), and the VM starts with
    empty ones."""
    if state_files.is_current(folder, point):
        return
    variables = state_files.variables_of(folder, point)
    if variables is not None:
        _remove_lock(folder).release()
        lease.write(folder.path / naming.NVRAM, variables)
    elif state_files.is_ours(folder, drop_writes=drop_writes):
        _remove(folder, lease, [naming.NVRAM])
    killpoints.reach("state files put")


def put_missing_state_files(folder: ReplicaFolder, lease: WriterLease, point: RestorePoint) -> None:
    """`put_state_files`, where the replica VM has no UEFI variables at all."""
    if not is_there(folder.path / naming.NVRAM):
        put_state_files(folder, lease, point)


def _remove_lock(folder: ReplicaFolder) -> ByteLock:
    return folder.waited_lock(
        REMOVE_BYTE, "a fenced process that has not ended removes a ready layer"
    )


def _remove(folder: ReplicaFolder, lease: WriterLease, names: Sequence[str]) -> None:
    """Remove these files of ours, where they are: still the record's, so a kill here and a repeat
    find nothing that is unknown."""
    if not names:
        return
    with _remove_lock(folder):
        for name in names:
            lease.check()
            remove_durably(inner_path(folder.path, name))


def is_current(folder: ReplicaFolder, record: ReplicaRecord, point: RestorePoint) -> bool:
    """Whether every ready layer is there, as we left it, above `point`, and none is under way."""
    layers = [(record.ready or {}).get(disk.disk_id) for disk in replicated_disks(point)]
    return (
        record.ready_next is None
        and record.ready_point == point.id
        and all(layer is not None and not layer_evidence(folder.path, layer) for layer in layers)
    )


def _prepare(
    folder: ReplicaFolder,
    lease: WriterLease,
    parent: str,
    disk_id: str,
    host_folder: str | None,
    sparse: bool,
) -> LayerFile:
    """A new empty child beside the ready layer, stable on disk; its facts under the final name."""
    path = folder.disk_path(disk_id) / naming.ready_candidate(lease.generation)
    remove_durably(path)
    on_host = str(PureWindowsPath(host_folder) / parent) if host_folder else None
    child = vhdx.create_child(
        path, inner_path(folder.path, parent), parent_path_on_host=on_host, sparse=sparse
    )
    child.close()
    sync_folder(path.parent)
    return layer_facts(folder.path, f"{disk_id}/{naming.READY}", path)


def _as_found(folder: ReplicaFolder, record: ReplicaRecord) -> dict[str, LayerFile]:
    """The ready layers that lie there now: after a kill in a renewal some are the old, some the
    new ones. One that was written (and is to be dropped) is recorded as it was left."""
    found: dict[str, LayerFile] = {}
    for layers in (record.ready or {}, record.ready_next or {}):
        for disk_id, layer in layers.items():
            if disk_id not in found or not layer_evidence(folder.path, layer):
                found[disk_id] = layer
    return found
