"""Caches for tests: a lookup table over a dict, small limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import blake3
import numpy as np

from standby.clock import Clock
from standby.units import MiB
from standby.wan import names
from standby.wan.cache import GlobalCache, Limits
from standby.wan.locations import NONE

KEY = bytes(range(32))
OTHER_KEY = bytes(32)
PIECE = 4096


class HeldClock(Clock):
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.at = 1000.0

    def monotonic(self) -> float:
        return self.at


names_of = names.names


def plain_names(data: np.ndarray, key: bytes) -> np.ndarray:
    """Names as the format says: the first 16 bytes of BLAKE3 under the key, piece by piece."""
    held = [blake3.blake3(bytes(piece), key=key).digest(16) for piece in data.reshape(-1, PIECE)]
    return np.frombuffer(b"".join(held), dtype=np.uint8).reshape(-1, 16)


class DictTable:
    """The Table protocol over a dict; `sampled` keeps one name in 16."""

    def __init__(self, budget_bytes: int, *, sampled: bool = False) -> None:
        self.budget_bytes = budget_bytes
        self.is_sampled = sampled
        self.held: dict[bytes, int] = {}

    def insert(self, wanted: np.ndarray, locations: np.ndarray) -> None:
        assert wanted.shape == (len(locations), 16)
        assert locations.dtype == np.uint64
        for name, location in zip(wanted, locations.tolist(), strict=True):
            if not self.is_sampled or name[0] & 15 == 0:
                self.held[bytes(name)] = location

    def lookup(self, wanted: np.ndarray) -> np.ndarray:
        found = [self.held.get(bytes(name), int(NONE)) for name in wanted]
        return np.array(found, dtype=np.uint64)

    def remove(self, wanted: np.ndarray, locations: np.ndarray) -> None:
        for name, location in zip(wanted, locations.tolist(), strict=True):
            if self.held.get(bytes(name)) == location:
                del self.held[bytes(name)]

    def remove_between(self, start: int, stop: int) -> None:
        self.held = {n: place for n, place in self.held.items() if not start <= place < stop}

    def clear(self) -> None:
        self.held = {}

    @property
    def entries(self) -> int:
        return len(self.held)

    @property
    def memory_bytes(self) -> int:
        return 10 * len(self.held)


def sampled_table(budget_bytes: int) -> DictTable:
    return DictTable(budget_bytes, sampled=True)


def open_cache(folder: Path, limit: int = 64 * MiB, segment: int = 2 * MiB, **more: Any):
    """A cache with small segments, which takes in whatever the file system has free."""
    limits = Limits(limit, MiB, segment_bytes=segment, keep_free_bytes=0)
    more = {"new_table": DictTable, "clock": HeldClock()} | more
    return GlobalCache(folder, limits, **more)


def noise(count: int, seed: int) -> np.ndarray:
    """`count` pieces that do not compress, (count, 4096)."""
    return np.random.default_rng(seed).integers(0, 256, (count, PIECE), dtype=np.uint8)


def text(count: int, seed: int) -> np.ndarray:
    """`count` different pieces that compress well."""
    made = np.zeros((count, PIECE), dtype=np.uint8)
    made[:, :64] = np.random.default_rng(seed).integers(0, 256, (count, 64), dtype=np.uint8)
    made[:, 64:] = np.arange(PIECE - 64, dtype=np.int64) % 7
    return made


def held(part: Any, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a namespace gives for names: (pieces, ok)."""
    return part.read(part.lookup(wanted), wanted)


def check_never_wrong(part: Any, pieces: np.ndarray, key: bytes = KEY) -> int:
    """Whatever is handed out for these pieces is just these bytes; how many were."""
    wanted = names_of(pieces, key)
    data, ok = held(part, wanted)
    assert np.array_equal(data[ok], pieces[ok])
    assert not data[~ok].any()
    data, ok = part.read(part.lookup(wanted))
    assert np.array_equal(data[ok], pieces[ok])
    return int(np.count_nonzero(ok))
