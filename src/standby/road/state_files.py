"""The small state files of a restore point, put back for the replica VM (RULES 12).

Today these are the UEFI variables. At a replica they are always in `nvram.fd`, whatever the source
calls its file, so that no name from elsewhere is one that a replica keeps for itself. They go with
the ready layers: what lies there is what the point below those holds, until a failover lets the VM
write it; an undone failover drops what the VM wrote.
"""

from __future__ import annotations

import base64
import binascii

from standby.errors import PointDamaged
from standby.files import File, is_there
from standby.host.folder.power import RECORD_FILE as POWER_RECORD
from standby.model.point import RestorePoint
from standby.road import naming
from standby.road.replica import ReplicaFolder


def variables_of(folder: ReplicaFolder, point: RestorePoint) -> bytes | None:
    """The UEFI variables that the point holds, None where it has none."""
    text = point.state_files.get(point.machine.nvram or naming.NVRAM)
    if text is None:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        path = str(folder.point_path(point.id))
        raise PointDamaged(folder.name, point.id, path, f"UEFI variables: {exc}") from exc


def is_current(folder: ReplicaFolder, point: RestorePoint) -> bool:
    """Whether the replica VM's UEFI variables are those of the point."""
    return _found(folder) == variables_of(folder, point)


def is_ours(folder: ReplicaFolder, *, drop_writes: bool = False) -> bool:
    """Whether the replica VM's UEFI variables may go: they are a point's, or with `drop_writes`
    those of a VM that our power-on started."""
    found = _found(folder)
    if found is None or (drop_writes and is_there(folder.path / POWER_RECORD)):
        return found is not None
    return any(variables_of(folder, point) == found for point in folder.points())


def _found(folder: ReplicaFolder) -> bytes | None:
    path = folder.path / naming.NVRAM
    if not is_there(path):
        return None
    with File(path) as file:
        return file.read(0, file.size)
