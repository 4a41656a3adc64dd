"""What the user put at the target for a first point: seed files, and VMs to map (RULES 16)."""

from __future__ import annotations

from pathlib import Path

from standby.disk import detected_format, vhdx
from standby.errors import ConfigurationError, MachineRunning, StandbyError
from standby.host.folder import FolderHost
from standby.model.machine import Machine, PowerState
from standby.road.replica import ReplicaFolder

SEEDS = ("seed.vhdx", "seed.raw", "seed.img")


def find_seed(folder: ReplicaFolder, disk_id: str, name: str) -> Path | None:
    """The seed of a disk: `seed.vhdx` (or .raw, .img) in the disk's folder, else a file called
    `name`, as the source's disk file is, in the replica's."""
    places = [folder.disk_path(disk_id) / seed for seed in SEEDS]
    if name:
        places.append(folder.path / name)
    return next((path for path in places if path.is_file() and not path.is_symlink()), None)


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


def mapped_machine(root: Path, folder: str) -> Machine:
    """The VM in `folder` below the target's root, which must be off."""
    host = FolderHost("target", root)
    machine = host.machine_in(folder)
    state = host.power_state(machine)
    if state is not PowerState.OFF:
        raise MachineRunning("target", machine.name, f"a VM to map has to be off, it is {state}")
    return machine
