"""Where a replica begins: its folder (RULES 1), and what the user put at the target for its first
point, seed files and VMs to map (RULES 16)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from standby import killpoints
from standby.clock import Clock
from standby.disk import detected_format, vhdx
from standby.errors import (
    ConfigurationError,
    DiskCorrupt,
    DiskUnsupported,
    MachineRunning,
    ParentRefused,
    ReplicaConflict,
    StandbyError,
)
from standby.files import (
    is_file,
    is_folder,
    is_there,
    listed,
    remove_durably,
    rename_durably,
)
from standby.host.folder import FolderHost
from standby.model.machine import Machine, PowerState
from standby.model.replica import ReplicaIdentity
from standby.road import resuming
from standby.road.adopting import adopt_disk
from standby.road.extent_log import ExtentLog, LogHeader
from standby.road.lease import WriterLease, is_processing
from standby.road.naming import POINTS, RECORD, SEEDS, folder_name
from standby.road.replica import ReplicaFolder
from standby.road.surveying import partials


@dataclass(frozen=True, slots=True)
class FoundReplica:
    """The folder of a replica, or where it would be made."""

    path: Path
    exists: bool


def found_replica(root: Path, identity: ReplicaIdentity, wanted: str, clock: Clock) -> FoundReplica:
    """The replica of that identity below `root`, whatever it is called; else the folder that one
    called `wanted` would get, never one that belongs to something else. Raises what is wrong with
    a replica.json in a folder of that name that cannot be read, DiskIO for a `root` that cannot,
    ReplicaConflict where several folders say that they are it: one is a copy."""
    existing = []
    ours: list[Path] = []
    plain = folder_name(wanted, (), identity.machine_id[:8])
    unreadable: StandbyError | None = None
    for path in listed(root):
        if not is_folder(path):
            continue
        existing.append(path.name)
        folder = ReplicaFolder(path, clock)
        try:
            if folder.exists() and folder.record().identity == identity:
                ours.append(path)
        except StandbyError as exc:
            if path.name.lower() == plain.lower():
                unreadable = exc
    if len(ours) > 1:
        raise ReplicaConflict(
            ours[0].name,
            f"{' and '.join(map(str, ours))} are replicas of one VM and job: one is a copy",
            "Move the copy out of the target's folder",
        )
    if ours:
        return FoundReplica(ours[0], True)
    if unreadable is not None:  # most likely ours: beginning anew beside it would resend it all
        raise unreadable
    if plain in existing and _is_ours_to_begin(root / plain):
        existing.remove(plain)
    return FoundReplica(root / folder_name(wanted, existing, identity.machine_id[:8]), False)


def _is_ours_to_begin(path: Path) -> bool:
    """Whether a folder without a replica in it may become one: put there for a seed, left by our
    own first session, or a replica that lost its record; never the folder of a VM. So may one that
    a first session left which was refused before it wrote anything, and is not at work."""
    folder = ReplicaFolder(path)
    if folder.exists():
        record = folder.record()
        return folder.is_bare(record) and not is_processing(folder)
    return is_folder(path / POINTS) or not is_there(path / "vm.toml")


def find_seed(folder: ReplicaFolder, disk_id: str, name: str) -> Path | None:
    """The seed of a disk: `seed.vhdx` (or .raw, .img) in the disk's folder, else a file called
    `name`, as the source's disk file is, in the replica's. DiskIO where it cannot be looked at."""
    places = [folder.disk_path(disk_id) / seed for seed in SEEDS]
    if name:
        places.append(folder.path / name)
    return next((path for path in places if is_file(path) and not path.is_symlink()), None)


def seed_of(folder: ReplicaFolder, disk_id: str, name: str) -> Path:
    """`find_seed`, or ConfigurationError saying where it belongs."""
    found = find_seed(folder, disk_id, name)
    if found is None:
        raise ConfigurationError(
            str(folder.path),
            f"the job says there is a seed, but neither {name or 'the disk file'} nor "
            f"{disk_id}/seed.vhdx is here",
            "Copy the disk there, or take the VM out of the job's `seed` table",
        )
    return found


def is_adoptable(file: Path, shape: tuple[int, int]) -> bool:
    """Whether the file can become the base as it is: a VHDX of its own, of this virtual size and
    logical sector size, closed clean, dynamic. Anything else is copied from."""
    try:
        if detected_format(file) != "vhdx":
            return False
        info = vhdx.read_info(file)
    except StandbyError:
        return False
    is_sound = not (info.has_parent or info.log_is_dirty or info.is_fixed)
    return is_sound and (info.virtual_size, info.logical_sector_size) == shape


KEPT = 0
"""The generation, which no writer has, of an unfinished first disk that is copied from."""
_KEPT_STATE = "kept"
"""What the log of such a disk says it builds on, so that nobody goes on with the file itself."""


def outgrown(
    folder: ReplicaFolder, lease: WriterLease, disk_id: str, shape: tuple[int, int]
) -> Path | None:
    """The unfinished disk of the first point where its size or sector size is not the source's any
    more, under a name of its own: what was received, or a seed that was adopted, is copied from it
    and not sent again. It goes with what is unfinished; None where there is nothing like it."""
    home = folder.disk_path(disk_id)
    found = [item for item in resuming.candidates(home) if item.is_usable]
    for item in found:
        if item.generation == KEPT:
            path = item.disk_path(home)
            return path if _shape(path) is not None else None
    for item in found:
        path = item.disk_path(home)
        found_shape = _shape(path)
        if found_shape is None or item.generation > lease.generation:
            continue
        if found_shape == shape:
            return None  # it is gone on with
        lease.check()
        header = LogHeader(disk_id, item.point_id, KEPT, "", found_shape[0], _KEPT_STATE)
        ExtentLog.create(resuming.log_path(home, item.point_id, KEPT), header, []).close()
        killpoints.reach("seed kept")
        kept = resuming.partial_path(home, item.point_id, KEPT)
        rename_durably(path, kept)
        killpoints.reach("seed kept aside")
        remove_durably(item.log_path(home))
        return kept
    return None


def _shape(path: Path) -> tuple[int, int] | None:
    """Virtual size and logical sector size of a disk of its own; None where it is none, or cannot
    be read."""
    try:
        info = vhdx.read_info(path)
        vhdx.open_vhdx(path).close()
    except (DiskCorrupt, DiskUnsupported, ParentRefused):
        return None
    return None if info.has_parent else (info.virtual_size, info.logical_sector_size)


def mapped_machine(root: Path, folder: str) -> Machine:
    """The VM in `folder` below the target's root, which must be off and no replica's: its files
    are to become another replica's, whoever wrote its vm.toml."""
    host = FolderHost("target", root)
    machine = host.machine_in(folder)
    home = root / machine.folder
    for path in (home, *(home / disk.file for disk in machine.disks)):
        for parent in (path, *path.parents):
            if is_there(parent / RECORD):
                raise ReplicaConflict(
                    parent.name, f"{path} is a replica's: only a VM of its own can be mapped"
                )
    state = host.power_state(machine)
    if state is not PowerState.OFF:
        raise MachineRunning("target", machine.name, f"a VM to map has to be off, it is {state}")
    return machine


def seeded(
    folder: ReplicaFolder,
    lease: WriterLease,
    disk_id: str,
    seed_name: str,
    point_id: str,
    checkpoint_id: str,
    shape: tuple[int, int],
) -> tuple[Path, ...]:
    """Begin with the seed: in place where it is a VHDX of the source's shape, then nothing is left
    to copy from; else its file. A transfer that began with it goes on."""
    if any(item.disk_id == disk_id for item in partials(folder)):
        found = find_seed(folder, disk_id, seed_name)
        return (found,) if found is not None else ()
    file = seed_of(folder, disk_id, seed_name)
    if is_adoptable(file, shape):
        adopt_disk(folder, lease, disk_id, file, point_id, checkpoint_id)
        return ()
    return (file,)
