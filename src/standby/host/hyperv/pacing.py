"""How many checkpoints and merges a host gets at once: at most 4, and 2 on a volume.

Each of them writes metadata of every disk and, where the guest is asked to hold still, keeps it
waiting; a merge reads and writes a volume as fast as it can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from standby.host.seen_paths import parsed_place

HOST_MAX = 4
VOLUME_MAX = 2


def volume_of(path: str) -> str:
    """The volume that a file is on, as far as its path tells: a cluster's shared volume, a share, a
    drive letter. A volume mounted into a folder counts as the drive's."""
    place = parsed_place(path)
    if place is None:
        return path.lower()
    if place.folded[:1] == ("clusterstorage",) and len(place.folded) > 1:
        return f"{place.anchor}\\clusterstorage\\{place.folded[1]}"
    return place.anchor


def volumes_of(paths: Iterable[str]) -> frozenset[str]:
    """The volumes of these files."""
    return frozenset(volume_of(path) for path in paths)


def startable(
    under_way: Sequence[frozenset[str]],
    waiting: Sequence[frozenset[str]],
    host_max: int = HOST_MAX,
    volume_max: int = VOLUME_MAX,
) -> list[int]:
    """Which of `waiting` may begin beside those `under_way` (each one's volumes), by index. In
    order; one that must wait keeps its turn on its volumes: later ones do not fill them first."""
    slots = host_max - len(under_way)
    load = Counter(volume for volumes in under_way for volume in volumes)
    kept: set[str] = set()
    chosen: list[int] = []
    for index, volumes in enumerate(waiting):
        if len(chosen) >= slots:
            break
        if volumes & kept or any(load[volume] >= volume_max for volume in volumes):
            kept |= volumes
            continue
        chosen.append(index)
        load.update(volumes)
    return chosen


def rounds(
    waiting: Sequence[frozenset[str]], host_max: int = HOST_MAX, volume_max: int = VOLUME_MAX
) -> list[int]:
    """In which round each of `waiting` is begun, where one ends before the next begins."""
    numbers = [0] * len(waiting)
    left = list(range(len(waiting)))
    number = 0
    while left:
        chosen = startable((), [waiting[index] for index in left], host_max, volume_max)
        for position in chosen:
            numbers[left[position]] = number
        left = [index for position, index in enumerate(left) if position not in chosen]
        number += 1
    return numbers
