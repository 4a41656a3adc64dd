"""The global cache: taking in, looking up, reading, and a restart with many entries.

    python bench/wan_cache.py [--small] [--turns N] [--json] [--in FOLDER]

Batches of 2 MiB as a target accelerator handles them, half of them incompressible, half such that
they pack well. Times are processor time of the one thread, kernel time included: what else the
machine does shares caches and memory with it. What is read is compared with what was put in.

The restart is that of the whole cache: its folder is opened, with the table that was saved at the
close, and once more without it, from the segments' footers. Its entries point into a disk file, so
that they need no content; footers and table are those of any other.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from standby import files
from standby.units import GiB, MiB
from standby.wan.appending import Run
from standby.wan.cache import GlobalCache, Limits, fingerprint
from standby.wan.loading import TABLE_NAME
from standby.wan.locations import NONE
from standby.wan.segment_file import PIECE, RAW, DiskFile
from timing import GB, Claim, Report, arguments, run_bench

KEY = bytes(range(32))
BATCH = 2 * MiB
BATCHES_FULL, BATCHES_SMALL = 128, 32
ENTRIES_FULL, ENTRIES_SMALL = 10_000_000, 400_000
SEGMENT_ENTRIES = 1_000_000
RUN_ENTRIES = 50_000


def main() -> int:
    """Run it where the options say."""
    return run_bench("global cache", arguments(__doc__ or "", turns=3), bench)


def bench(folder: Path, report: Report, options: argparse.Namespace) -> None:
    """Content first, then the restart."""
    count = BATCHES_SMALL if options.small else BATCHES_FULL
    limits = Limits(8 * GiB, 16 * MiB, keep_free_bytes=0)
    kinds = {"that does not pack": _noise, "that packs": _text}
    with GlobalCache(folder / "content", limits) as cache:
        for kind, make in kinds.items():
            _content(report, cache, kind, [make(number) for number in range(count)], options.turns)
    _restart(report, folder / "many", ENTRIES_SMALL if options.small else ENTRIES_FULL)


def _noise(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (BATCH // PIECE, PIECE), dtype=np.uint8)


def _text(seed: int) -> np.ndarray:
    """Pieces that are different, and of which zstd makes a quarter."""
    random = np.random.default_rng(1000 + seed)
    made = np.tile(random.integers(97, 123, (1, PIECE), dtype=np.uint8), (BATCH // PIECE, 1))
    made[:, ::5] = random.integers(0, 256, made[:, ::5].shape, dtype=np.uint8)
    return made


def _content(
    report: Report, cache: GlobalCache, kind: str, batches: list[np.ndarray], turns: int
) -> None:
    part = cache.namespace(KEY)
    size = BATCH * len(batches)
    before = cache.status().bytes
    names: list[np.ndarray] = []
    took = _seconds(lambda: names.extend(part.add(batch) for batch in batches), 1)
    _row(report, f"take in content {kind}", size, took)
    again = _seconds(lambda: [part.add(batch) for batch in batches], turns)
    _row(report, "the same again", size, again)
    found = [part.lookup(each) for each in names]
    assert all((each != NONE).mean() > 0.999 for each in found)
    asked = _seconds(lambda: [part.lookup(each) for each in names], turns)
    _row(report, "look it up", size, asked)

    def read() -> None:
        for batch, places, wanted in zip(batches, found, names, strict=True):
            data, ok = part.read(places, wanted)
            assert ok.mean() > 0.999
            assert np.array_equal(data, batch) or np.array_equal(data[ok], batch[ok])

    compared = _seconds(lambda: [np.array_equal(b, b) for b in batches], turns)
    _row(report, "read it", size, _seconds(read, turns) - compared)
    held = (cache.status().bytes - before) / size
    report.notes.append(f"content {kind} takes {held:.3f} of its size in the cache")


def _seconds(work: Callable[[], object], turns: int) -> float:
    """The fastest of some turns, processor time."""
    fastest = float("inf")
    for _ in range(turns):
        begun = time.thread_time()
        work()
        fastest = min(fastest, time.thread_time() - begun)
    return fastest


def _row(report: Report, what: str, size: int, seconds: float) -> None:
    report.rows.append(
        {"what": what, "fastest_s": round(seconds, 4), "GB_per_s": round(size / seconds / GB, 2)}
    )


def _restart(report: Report, folder: Path, count: int) -> None:
    limits = Limits(8 * GiB, max(4 * MiB, 11 * count), keep_free_bytes=0)
    random = np.random.default_rng(1)
    with GlobalCache(folder, limits) as cache:
        for start in range(0, count, SEGMENT_ENTRIES):
            _entries(cache, random, start, min(SEGMENT_ENTRIES, count - start))
        entries = cache.table.entries
        report.claims.append(
            Claim("memory per entry, bytes", cache.table.memory_bytes / entries, 14)
        )
    for what in ("table saved", "no table, footers read"):
        for path in folder.iterdir():
            files.drop_cached(path)
        begun = time.perf_counter()
        cache = GlobalCache(folder, limits)
        seconds = time.perf_counter() - begun
        assert cache.table.entries == entries
        assert not cache.problems
        cache.close()
        (folder / TABLE_NAME).unlink()
        text = f"restart with {entries / 1e6:.1f} M entries, {what}, seconds, files not cached"
        report.claims.append(Claim(text, seconds, 3))


def _entries(cache: GlobalCache, random: np.random.Generator, start: int, count: int) -> None:
    """A segment of entries that all have different names."""
    opened = cache.intake.open_disk_segment(fingerprint(KEY), DiskFile("/disk", "guid", 1 << 45))
    assert opened is not None
    for first in range(0, count, RUN_ENTRIES):
        size = min(RUN_ENTRIES, count - first)
        names = np.frombuffer(random.bytes(16 * size), dtype=np.uint8).reshape(size, 16)
        assert cache.intake.take_entries(opened, [Run(names, b"", RAW, start + first)])
    cache.intake.seal_entries(opened)


if __name__ == "__main__":
    sys.exit(main())
