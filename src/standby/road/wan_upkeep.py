"""Looking after a mover's global cache from afar, while disks go through it: `standby wan …`.

What reads for long is a task: it tells how far it is by `progress`, and ends at its next look when
it is cancelled. Places are "ROOT:relative" below the mover's roots (RULES 20).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from standby.errors import ConfigurationError, ProtocolError, WorkStopped
from standby.ports import Progress
from standby.road.places import LOCAL_PLACES, Places
from standby.road.wan_cache import SharedCache
from standby.wan.cache import KEY_BYTES, GlobalCache
from standby.wan.counting import CacheStatus
from standby.wan.populating import Told, disk_files


class WanUpkeep:
    """The verbs that look after a mover's cache. Thread-safe."""

    def __init__(self, cache: SharedCache, name: str, places: Places = LOCAL_PLACES) -> None:
        """`name` is the mover's, for what it refuses."""
        self._shared = cache
        self._name = name
        self._places = places
        self._lock = threading.Lock()
        self._progress: dict[str, tuple[int, int]] = {}
        self._cancelled: set[str] = set()
        self.verbs: dict[str, Callable[..., Any]] = {
            "wan_status": self.status,
            "wan_verify": self.verify,
            "wan_clear": self.clear,
            "wan_disks": self.disks,
            "wan_populate": self.populate,
        }

    def progress(self) -> dict[str, list[int]]:
        """{task: [done, total]} of what reads now, in bytes."""
        with self._lock:
            return {task: list(told) for task, told in self._progress.items()}

    def cancel(self, task: str) -> None:
        """End the task at its next look."""
        with self._lock:
            if task in self._progress:
                self._cancelled.add(task)

    def close(self) -> None:
        """End what still reads."""
        with self._lock:
            self._cancelled.update(self._progress)

    def _cache(self) -> GlobalCache:
        cache = self._shared.opened()
        if cache is None:
            raise ConfigurationError(
                f"mover {self._name}", "keeps no global cache", "Name one in its [wan]"
            )
        return cache

    # --- verbs -------------------------------------------------------------------------------

    def status(self) -> CacheStatus | None:
        """None where the mover has no cache."""
        return self._shared.status()

    def verify(self, task: str, keys: Sequence[str] = (), drop: bool = True) -> dict[str, Any]:
        """A CheckReport, and `is_ok`. `keys` are those of tenants whose names are to be compared
        too."""
        cache, tenants = self._cache(), [tenant_key(key) for key in keys]
        with self._followed(task, "verify") as progress:
            report = cache.verify(tenants, progress, drop=drop)
        return {**msgspec.to_builtins(report), "is_ok": report.is_ok}

    def clear(self, key: str = "") -> int:
        """How many segments went: all, or those of one tenant's key."""
        return self._cache().clear(tenant_key(key) if key else None)

    def disks(self, places: Sequence[str]) -> list[list[Any]]:
        """[path, bytes] of each disk file that `populate` would take in."""
        return [[str(path), path.stat().st_size] for path in self._files(places)]

    def populate(
        self,
        task: str,
        places: Sequence[str],
        key: str,
        in_place: bool = False,
        folders: Sequence[str] = (),
    ) -> dict[str, Any]:
        """A PopulateReport, and `evicted`, the segments that went for room. `places` are disk files
        or folders of them, `folders` where else parents are looked for."""
        cache, tenant = self._cache(), tenant_key(key)
        disks = self._files(places)
        beside = [self._places.path(folder) for folder in folders]
        before = cache.counters["evicted"]
        with self._followed(task, "populate") as progress:
            told = by_size(disks, progress)
            report = cache.populate(tenant, disks, folders=beside, in_place=in_place, told=told)
        evicted = cache.counters["evicted"] - before
        return {**msgspec.to_builtins(report), "evicted": evicted}

    def _files(self, places: Sequence[str]) -> list[Path]:
        found: list[Path] = []
        for place in places:
            path = self._places.path(place)
            if not path.exists():
                raise ConfigurationError(str(path), f"is not there, at mover {self._name}", "")
            found += disk_files(path) if path.is_dir() else [path]
        return found

    @contextmanager
    def _followed(self, task: str, verb: str) -> Iterator[Progress]:
        def progress(done: int, total: int) -> None:
            with self._lock:
                self._progress[task] = (done, total)
                is_cancelled = task in self._cancelled
            if is_cancelled:
                raise WorkStopped(f"wan {verb} at mover {self._name}")

        with self._lock:
            self._progress[task] = (0, 0)
        try:
            yield progress
        finally:
            with self._lock:
                self._progress.pop(task, None)
                self._cancelled.discard(task)


def by_size(disks: Sequence[Path], progress: Progress) -> Told:
    """What tells `progress` of a warm-up with these disks, in bytes of their files."""
    sizes = [path.stat().st_size for path in disks]
    whole, before = sum(sizes), 0
    left = list(zip(disks, sizes, strict=True))

    def told(label: str, done: int, total: int) -> None:
        nonlocal before
        while left and left[0][0].name != label:  # one that could not be read tells nothing
            before += left.pop(0)[1]
        size = left[0][1] if left else 0
        progress(before + size * done // max(1, total), whole)
        if done >= total and left:
            before += left.pop(0)[1]

    return told


def tenant_key(text: str) -> bytes:
    """The 32 bytes of a tenant's key; ProtocolError, which does not repeat it, where it is none."""
    try:
        key = bytes.fromhex(text)
    except (ValueError, TypeError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ProtocolError("backup server", f"a tenant's key of {KEY_BYTES} bytes is expected")
    return key
