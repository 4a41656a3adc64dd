"""How many checkpoints and merges a host gets at once: at most 4, and 2 on a volume.

Each of them writes metadata of every disk and, where the guest is asked to hold still, keeps it
waiting; a merge reads and writes a volume as fast as it can.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

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


class Pace:
    """Lets so many begin at once, in the order they came; for threads."""

    def __init__(self, host_max: int = HOST_MAX, volume_max: int = VOLUME_MAX) -> None:
        self._limits = (host_max, volume_max)
        self._turn = threading.Condition()
        self._under_way: list[frozenset[str]] = []
        self._waiting: list[tuple[object, frozenset[str]]] = []

    @contextlib.contextmanager
    def slot(self, volumes: frozenset[str]) -> Iterator[None]:
        """Wait for a turn, and hold it."""
        ticket = object()
        with self._turn:
            self._waiting.append((ticket, volumes))
            try:
                self._turn.wait_for(lambda: self._may_start(ticket))
            finally:
                self._waiting.remove((ticket, volumes))
            self._under_way.append(volumes)
            self._turn.notify_all()
        try:
            yield
        finally:
            with self._turn:
                self._under_way.remove(volumes)
                self._turn.notify_all()

    def _may_start(self, ticket: object) -> bool:
        chosen = startable(self._under_way, [item[1] for item in self._waiting], *self._limits)
        return any(self._waiting[index][0] is ticket for index in chosen)
