"""The global cache of a target WAN accelerator as its tasks use it: a help, never a condition.

It is opened by the first task, shared by all, and closed with the mover. Where it cannot be opened,
read or written, everything misses and is sent; the task's report says why.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from standby.clock import SYSTEM_CLOCK, Clock
from standby.road.service_config import WanConfig
from standby.wan.cache import GlobalCache, Namespace
from standby.wan.counting import CacheStatus
from standby.wan.decoding import Rebuilt
from standby.wan.locations import NONE, Locations, Mask, Names
from standby.wan.references import PIECE, Array
from standby.wan.transfers import CacheTransfer

Pieces = npt.NDArray[np.uint8]

RETRY_S = 30.0
WARNINGS_MAX = 64

QUEUED_BATCHES = 4
"""Decoded batches that wait to be cached, per task: 32 MiB."""

PATIENCE_S = 5.0
"""How long a transfer waits for a cache that takes nothing in; what comes behind is not cached."""

ENDING_S = 60.0
"""How long a task waits in the end for what it gave to the cache."""


class SharedCache:
    """A mover's global cache. Thread-safe; `close` it."""

    def __init__(self, config: WanConfig | None, clock: Clock = SYSTEM_CLOCK) -> None:
        """None, or one without a folder: a mover that caches nothing."""
        self._config = config
        self._clock = clock
        self._lock = threading.Lock()
        self._cache: GlobalCache | None = None
        self._failure: Exception | None = None
        self._retry_at = 0.0
        self._is_closed = False
        self._warnings: deque[str] = deque(maxlen=WARNINGS_MAX)
        self._warned = 0

    def opened(self) -> GlobalCache | None:
        """The cache, None where the mover has none. Raises what kept it from being opened, which is
        tried again after a while."""
        with self._lock:
            if self._cache is not None or self._is_closed:
                return self._cache
            if self._config is None or self._config.cache is None:
                return None
            if self._failure is None or self._clock.monotonic() >= self._retry_at:
                try:
                    self._cache = GlobalCache(
                        self._config.cache, self._config.limits, clock=self._clock, warn=self._warn
                    )
                    self._failure = None
                    return self._cache
                except Exception as exc:
                    self._failure = exc
                    self._retry_at = self._clock.monotonic() + RETRY_S
            raise self._failure

    def namespace(self, key: bytes) -> tuple[Namespace | None, list[str]]:
        """A tenant's part of the cache; None, and why, where there is none to be had."""
        try:
            cache = self.opened()
        except Exception as exc:  # whatever it is: no replication fails of it
            return None, [f"the global cache cannot be used, everything is sent: {exc}"]
        return None if cache is None else cache.namespace(key), []

    def status(self) -> CacheStatus | None:
        """The cache's, None where the mover has none; raises as `opened`."""
        cache = self.opened()
        return None if cache is None else cache.status()

    def _warn(self, text: str) -> None:
        self._warned += 1
        self._warnings.append(text)

    @property
    def warned(self) -> int:
        """How many warnings there were so far."""
        return self._warned

    def warnings(self, since: int) -> list[str]:
        """Those after the first `since`, as far as they are remembered."""
        kept = list(self._warnings)
        return kept[max(0, len(kept) - (self._warned - since)) :]

    def close(self) -> None:
        """Close the cache; whoever asks from now on gets none."""
        with self._lock:
            self._is_closed = True
            cache, self._cache = self._cache, None
        if cache is not None:
            cache.close()


class CachedContent:
    """What one task's decoder finds in the cache (`holding.Cached`); whatever fails in there is a
    miss. `close` it in the end."""

    def __init__(self, namespace: Namespace | None) -> None:
        self._transfer = None if namespace is None else CacheTransfer(namespace)
        self.asked = 0
        self.found = 0
        self.problem = ""
        """Why a look-up or a read failed, of the last one that did."""

    def find(self, asked: npt.NDArray[np.uint8]) -> tuple[Mask, Locations]:
        """See decoding.Held."""
        self.asked += len(asked)
        nothing = np.zeros(len(asked), np.bool_), np.full(len(asked), NONE, np.uint64)
        if self._transfer is None:
            return nothing
        try:
            hits, locations = self._transfer.find(asked)
        except Exception as exc:  # whatever it is: no replication fails of it
            self.problem = f"the global cache was not asked: {exc}"
            return nothing
        self.found += int(np.count_nonzero(hits))
        return hits, locations

    def read_found(self, locations: Locations, rows: Array, out: Pieces) -> Mask:
        """See decoding.Held."""
        if self._transfer is not None:
            try:
                return self._transfer.read_found(locations, rows, out)
            except Exception as exc:  # as above
                self.problem = f"the global cache was not read: {exc}"
        return np.zeros(len(locations), np.bool_)

    def disprove(self, locations: Locations, names: Names) -> None:
        """See decoding.Held."""
        if self._transfer is not None:
            try:
                self._transfer.disprove(locations, names)
            except Exception as exc:  # as above
                self.problem = f"the global cache was not told what is wrong in it: {exc}"

    def release(self, locations: Locations) -> None:
        """See decoding.Held."""
        if self._transfer is not None:
            self._transfer.release(locations)

    def close(self) -> None:
        """Nothing needs to stay for this task."""
        if self._transfer is not None:
            self._transfer.close()


class Caching:
    """Takes what a task decoded into the cache, by a thread of its own. `end` it."""

    def __init__(self, namespace: Namespace | None, clock: Clock = SYSTEM_CLOCK) -> None:
        self.cached = 0
        """Pieces that are in the cache now and were not before."""
        self.left_out = 0
        """Pieces that the cache was too slow for."""
        self.cpu_s = 0.0
        self.problem = ""
        """Why taking in was given up."""
        self._namespace = namespace
        self._clock = clock
        self._patience_s = PATIENCE_S
        self._queue: queue.Queue[Sequence[Rebuilt] | None] = queue.Queue(QUEUED_BATCHES)
        self._thread: threading.Thread | None = None
        if namespace is not None:
            self._thread = threading.Thread(target=self._work, name="caching", daemon=True)
            self._thread.start()

    def add(self, runs: Sequence[Rebuilt]) -> None:
        """Have these taken in, some time; their bytes must not change."""
        if self._thread is None or self.problem or not runs:
            return
        try:
            self._queue.put(runs, timeout=self._patience_s)
            self._patience_s = PATIENCE_S
        except queue.Full:
            self._patience_s = 0.001  # it was waited for long enough, until it takes one again
            self.left_out += sum(run.length for run in runs if run.data is not None) // PIECE

    def end(self) -> None:
        """Return when everything given is taken in, or that takes too long."""
        if self._thread is None:
            return
        try:
            self._queue.put(None, timeout=ENDING_S)
            self._thread.join(ENDING_S)
        except queue.Full:
            pass
        if self._thread.is_alive():
            self.problem = "the global cache hangs; not everything is in it"

    def _work(self) -> None:
        began = self._clock.thread_cpu_s()
        while (runs := self._queue.get()) is not None:
            views = [run.data for run in runs if run.data is not None]
            names = [run.names for run in runs if run.data is not None and run.names is not None]
            if views and not self.problem:
                self._take(
                    views[0] if len(views) == 1 else b"".join(views),
                    np.concatenate(names) if len(names) == len(views) else None,
                )
            self.cpu_s = self._clock.thread_cpu_s() - began

    def _take(self, data: bytes | memoryview, names: Names | None) -> None:
        assert self._namespace is not None
        try:
            self.cached += self._namespace.take_in(data, names)[1]
        except Exception as exc:  # whatever it is: no replication fails of it
            self.problem = f"the global cache takes nothing in: {exc}"
