"""The newest restore point of a disk, as the target's WAN accelerator reads it.

Frames may refer to it (`wan.holding`) where this mover has the replica's root and the folder there
is that replica's. It is read beside whoever writes a partial disk above it, and nothing is believed
of it: what a frame gives is checked against keyed digests. So a merge, a failover or a disk that
changes meanwhile costs bytes only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from standby.disk import VhdxDisk
from standby.disk.chain import open_chain
from standby.errors import StandbyError
from standby.road.places import Places
from standby.road.points import disk_of
from standby.road.records import RecordDamaged, layer_evidence
from standby.road.replica import ReplicaFolder


@dataclass(frozen=True, slots=True)
class NewestPoint:
    """The disk at the newest point, and the session that made the point: '' where there is none
    yet, None where it cannot be read."""

    session: str | None = None
    disk: VhdxDisk | None = None


NO_POINT = NewestPoint()


@contextlib.contextmanager
def newest_point(
    places: Places, path: str, replica: str, disk_id: str, virtual_size: int
) -> Iterator[NewestPoint]:
    """The disk as the replica in the folder `path` has it, open until the end of the block.
    `replica` is what tickets call the replica; '' as path: nobody says where it is."""
    found = NO_POINT
    if path:
        with contextlib.suppress(StandbyError, RecordDamaged, OSError):
            found = _opened(places, path, replica, disk_id, virtual_size)
    try:
        yield found
    finally:
        if found.disk is not None:
            found.disk.close()


def _opened(
    places: Places, path: str, replica: str, disk_id: str, virtual_size: int
) -> NewestPoint:
    folder = ReplicaFolder(places.path(path))
    if not folder.exists():
        return NO_POINT
    who = folder.record().identity
    if "/".join((who.installation, who.source_host, who.machine_id, who.job)) != replica:
        return NO_POINT  # another mover's root may have the name that ours has
    point = folder.newest()
    if point is None:
        return NewestPoint("")
    disk = disk_of(point, disk_id)
    if disk is None or disk.virtual_size != virtual_size:
        return NewestPoint("")
    if any(layer_evidence(folder.path, layer) for layer in disk.chain):
        return NO_POINT
    first, *parents = folder.chain_paths(point, disk_id)
    return NewestPoint(point.session, open_chain(first, parents=parents))
