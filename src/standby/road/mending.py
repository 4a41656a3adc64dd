"""Damaged `.digests` never end a session: they are computed again from the disks they describe, and
believed only when those have the root in the point's record (RULES 6).

What their index shows is made good when the replica is opened, before there is a checkpoint that
waits. A page of leaves is looked at only when it is needed: `Baseline` proves that page by the disk
then, and the file is written anew when the disk has been received.
"""

from __future__ import annotations

from collections.abc import Callable

from standby.errors import DiskUnsupported, StandbyError
from standby.model.point import PointDisk, RestorePoint
from standby.road.points import disk_of, newest_with
from standby.road.rebuilding import digests_of, mend_digests
from standby.road.replica import ReplicaFolder
from standby.road.surveying import lasting_points


def mended_before_use(folder: ReplicaFolder, check: Callable[[], None]) -> list[str]:
    """Have the index of the digests be whole that each disk's next state is compared with; what
    was done, and what could not be, as sentences. `check` is the lease's."""
    said = []
    points = lasting_points(folder)
    for known in folder.record().disks:
        point = newest_with(points, known.id)
        disk = disk_of(point, known.id) if point is not None else None
        if point is None or disk is None:
            continue
        try:
            digests_of(folder, point, disk).close()
        except DiskUnsupported:
            continue  # of a later release: theirs, and not damaged
        except StandbyError as exc:
            said += _mended(folder, point, disk, check, str(exc))
    return said


def mended_after_use(folder: ReplicaFolder, disk_id: str, check: Callable[[], None]) -> list[str]:
    """Write the digests anew that lost leaves of the disk's newest point; what was done."""
    point = newest_with(lasting_points(folder), disk_id)
    disk = disk_of(point, disk_id) if point is not None else None
    if point is None or disk is None:
        return []
    return _mended(folder, point, disk, check, "pages of leaves do not match their nodes")


def _mended(
    folder: ReplicaFolder,
    point: RestorePoint,
    disk: PointDisk,
    check: Callable[[], None],
    why: str,
) -> list[str]:
    try:
        mended = mend_digests(folder, point, disk, check)
    except StandbyError as exc:
        check()
        return [f"disk {disk.place}: damaged digests ({why}) could not be computed again: {exc}"]
    which = ", ".join(mended) or point.id
    return [
        f"disk {disk.place}: damaged digests of {which} were computed again from the disk, which "
        f"is as it was committed ({why})"
    ]
