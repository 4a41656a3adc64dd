"""Bytes between a pair of WAN accelerators, beside the peers on the same disks.

    python bench/wan_bytes.py [--small] [--json] [--in FOLDER]

The disks are those of `bench/wan_disks.py`, whose text is their recipe. Source and target are in
one process; every byte of every message counts, either way: questions, answers, frames with their
plans and digests, receipts, units sent again. What the link adds (TLS, frame headers, some 100
bytes per 8 MiB) does not. Each rebuilt disk is compared with the original, piece by piece.

Figure 1, nothing but digests kept at the source: a database server while the target knows a web
server, the web server's patch day and quiet day. Two ways to know what the target has: the source's
own index, whose size is stated, or asking the target for each piece by 6 bytes of its name. What
counts is the index; the question is what stands in for it when it is lost.

Figure 2, with a source store: the same days and a day of edits, with a store of 0 (figure 1), 1, 5,
20 and 100 % of the disk's data, filled by sending the disk from its beginning to its end once.

Peers are given the disk of the day before and then that of the day: what counts is by how much
their repository grew. borg with zstd,3 and chunks of 64 KiB, restic and casync with what they do by
default. `zstd -3` and one frame with the whole old disk as its prefix (level 3, long distance
matching, a window of 2 GiB) get exactly the changed 4 KiB pieces.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import wan_disks
from standby.testing.wan_target import MemoryTarget
from standby.wan.compressing import compressed_behind
from standby.wan.decoding import Decoder
from standby.wan.encoding import Encoder, Sent
from standby.wan.knowledge import SourceIndex
from standby.wan.names import names
from standby.wan.references import NOW, PIECE
from standby.wan.source_store import SourceStore
from standby.wan.table import LookupTable
from timing import Claim, Report, arguments, run, run_bench, say

KEY = bytes(range(32))
BATCH = 2048
"""Pieces: 8 MiB."""

INDEX_BUDGET = 256 << 20
STORES = (0.0, 0.01, 0.05, 0.2, 1.0)
PATCH_MAX = 2_000_000_000
"""A prefix and what is compressed behind it: zstd's window ends at 2 GiB."""

Pieces = NDArray[np.uint8]
Numbers = NDArray[np.int64]


class Disk:
    """One image, mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: Pieces = np.asarray(np.memmap(path, np.uint8, "r"))
        self.size = len(self.content)

    def writable(self) -> Pieces:
        """The same content; what is written stays in memory."""
        return np.asarray(np.memmap(self.path, np.uint8, "c"))

    def pieces(self, numbers: Numbers) -> Pieces:
        """(n, PIECE) in one buffer."""
        return np.ascontiguousarray(self.content.reshape(-1, PIECE)[numbers])

    def stored(self) -> Numbers:
        """The pieces that are not zero."""
        found = [at + np.flatnonzero(words.any(axis=1)) for at, words in self._words()]
        return np.concatenate(found)

    def changed_since(self, old: Disk) -> Numbers:
        """The pieces that differ."""
        both = zip(self._words(), old._words(), strict=True)
        found = [at + np.flatnonzero((new != was).any(axis=1)) for (at, new), (_, was) in both]
        return np.concatenate(found)

    def _words(self) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        for start in range(0, self.size, 16 << 20):
            part = self.content[start : start + (16 << 20)]
            yield start // PIECE, part.view(np.uint64).reshape(-1, PIECE // 8)


@dataclass(slots=True)
class Day:
    """What one transfer came to."""

    sent: Sent
    changed_bytes: int
    index_bytes: int
    known_bytes: int
    encode_s: float = 0.0
    decode_s: float = 0.0


def batches(numbers: Numbers) -> Iterator[Numbers]:
    """BATCH pieces at a time."""
    for start in range(0, len(numbers), BATCH):
        yield numbers[start : start + BATCH]


def transfer(
    new: Disk, old: Disk | None, others: list[Disk], *, asks: bool = False, store: float = 0.0
) -> Day:
    """Send `new` to a target that holds `old`, its day before, and `others`; check what arrived.

    With `asks` the source knows nothing and asks; else its index knows all that the target holds.
    """
    index = SourceIndex(KEY, LookupTable, INDEX_BUDGET, has_anchors=store > 0)
    target = MemoryTarget(KEY)
    first = old or new
    base = index.add_disk(first.size)
    stored = old.stored() if old else np.empty(0, np.int64)
    kept = SourceStore(int(len(stored) * PIECE * store))
    if old is None:
        nothing = np.zeros(new.size, np.uint8)
        target.add_disk(base, nothing, np.zeros(new.size, np.uint8))
    known = 0
    for disk, at in [(old, base)] if old else []:
        target.add_disk(at, disk.content, disk.writable())
        known += _learn(index, disk, at, kept, asks=asks)
    for disk in others:
        at = index.add_disk(disk.size)
        target.add_disk(at, disk.content, disk.writable())
        known += _learn(index, disk, at, SourceStore(0), asks=asks)

    changed = new.changed_since(old) if old else new.stored()
    encoder = Encoder(
        KEY, index, base, shared=kept if store else None, asks=asks, marks=old is not None
    )
    decoder = Decoder(KEY, target)
    day = Day(encoder.sent, len(changed) * PIECE, index.memory_bytes, known)
    for numbers in batches(changed):
        data = new.pieces(numbers)
        begin = time.thread_time()
        batch = encoder.prepare(numbers * PIECE, data)
        asked = time.thread_time()
        answer = decoder.answer(batch.question) if batch.question else b""
        answered = time.thread_time()
        frame = encoder.encode(batch, answer)
        made = time.thread_time()
        decoded = decoder.decode(frame)
        day.decode_s += answered - asked + time.thread_time() - made
        settling = time.thread_time()
        again = encoder.settle(decoded.receipt)
        day.encode_s += asked - begin + made - answered + time.thread_time() - settling
        target.write(base, decoded.runs)
        if again:
            decoded = decoder.decode(again)
            target.write(base, decoded.runs)
            encoder.settle(decoded.receipt)
    _must_be_equal(target.disk(base), new, changed)
    return day


def _learn(index: SourceIndex, disk: Disk, base: int, kept: SourceStore, *, asks: bool) -> int:
    stored = disk.stored()
    for numbers in batches(stored):
        data = disk.pieces(numbers)
        if not asks:
            index.learn(base, numbers * PIECE, names(data, KEY), data)
        kept.put(base // PIECE + numbers + NOW // PIECE, data)
    index.commit(base)
    kept.commit(base, disk.size)
    return len(stored) * PIECE


def _must_be_equal(rebuilt: Pieces, new: Disk, changed: Numbers) -> None:
    for numbers in batches(changed):
        if (rebuilt.reshape(-1, PIECE)[numbers] != new.pieces(numbers)).any():
            raise SystemExit("the rebuilt disk differs from the original")


# --- peers ---------------------------------------------------------------------------------------


def peers(old: Disk, new: Disk, folder: Path) -> dict[str, int]:
    """By how much each peer's repository grows."""
    contenders = {"borg": _borg, "restic": _restic, "casync": _casync}
    found = {}
    for name, contender in contenders.items():
        say(f"{name}: {new.path.name} after {old.path.name}")
        work = folder / name
        work.mkdir()
        found[name] = contender(old.path, new.path, work)
        subprocess.run(["rm", "-rf", str(work)], check=True)
    return found


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _borg(old: Path, new: Path, folder: Path) -> int:
    os.environ["BORG_BASE_DIR"] = str(folder / "base")
    os.environ["BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK"] = "yes"
    repository = folder / "repository"
    run("borg", "init", "-e", "none", repository)
    options = ("--compression", "zstd,3", "--chunker-params", "buzhash,10,23,16,4095")
    run("borg", "create", *options, f"{repository}::old", old)
    before = _bytes_in(repository / "data")
    run("borg", "create", *options, f"{repository}::new", new)
    return _bytes_in(repository / "data") - before


def _restic(old: Path, new: Path, folder: Path) -> int:
    os.environ["RESTIC_PASSWORD"] = "bench"
    repository = folder / "repository"
    start = ("restic", "-q", "--no-cache", "-r", repository)
    run(*start, "init")
    run(*start, "backup", old)
    before = _bytes_in(repository)
    run(*start, "backup", new)
    return _bytes_in(repository) - before


def _casync(old: Path, new: Path, folder: Path) -> int:
    store = f"--store={folder / 'store'}"
    run("casync", "make", store, folder / "old.caibx", old)
    before = _bytes_in(folder)
    run("casync", "make", store, folder / "new.caibx", new)
    return _bytes_in(folder) - before


def plain(new: Disk, changed: Numbers, folder: Path) -> int:
    """`zstd -3` of the pieces."""
    path = folder / "pieces"
    with path.open("wb") as file:
        for numbers in batches(changed):
            file.write(new.pieces(numbers))
    run("zstd", "-q", "-3", path, "-o", folder / "pieces.zst")
    size = (folder / "pieces.zst").stat().st_size
    path.unlink()
    (folder / "pieces.zst").unlink()
    return size


def one_prefix(old: Disk, new: Disk, changed: Numbers) -> int | None:
    """One frame behind the old disk's stored pieces; None where that is beyond zstd's window."""
    stored = old.stored()
    if (len(stored) + len(changed)) * PIECE > PATCH_MAX:
        return None
    prefix = old.pieces(stored).reshape(-1)
    frame = compressed_behind(prefix, new.pieces(changed).reshape(-1), is_long=True)
    return len(frame)


# --- the figures ---------------------------------------------------------------------------------

DAYS = (("database", None, "web"), ("patched", "web", None), ("quiet", "web", None),
        ("edited", "database", None))  # fmt: skip
GOALS = {"database": 0.75, "patched": 0.72, "quiet": 0.50, "edited": 0.25}


def bench(folder: Path, report: Report, options: argparse.Namespace) -> None:
    """Measure in `folder`."""
    made = wan_disks.disks(wan_disks.SMALL if options.small else wan_disks.FULL)
    disks = {state: Disk(made.path(state)) for state in wan_disks.STATES}
    for state, before, beside in DAYS:
        new, old = disks[state], disks[before] if before else None
        others = [disks[beside]] if beside else []
        changed = new.changed_since(old) if old else new.stored()
        found = peers(old or others[0], new, folder)
        best = min(found.values())
        references = {"zstd -3": plain(new, changed, folder)}
        if old is not None and (size := one_prefix(old, new, changed)) is not None:
            references["one prefix"] = size
        for name, size in {**found, **references}.items():
            report.rows.append(_row(state, name, size, len(changed) * PIECE, best))
        _figure_1(report, state, new, old, others, best, references)
        if old is not None:
            _figure_2(report, state, new, old, best, references)


def _figure_1(
    report: Report,
    state: str,
    new: Disk,
    old: Disk | None,
    others: list[Disk],
    best: int,
    references: dict[str, int],
) -> None:
    for asks, way in ((False, "standby, index"), (True, "standby, asking")):
        say(f"{way}: {state}")
        day = transfer(new, old, others, asks=asks)
        report.rows.append(_our_row(state, way, day, best))
        wire = day.sent.wire_bytes
        if not asks and state != "edited":
            report.claims.append(Claim(f"{state}: bytes over best peer", wire / best, GOALS[state]))
            share = 100 * day.index_bytes / day.known_bytes
            report.notes.append(f"{state}: index {day.index_bytes / 1e6:.1f} MB, {share:.2f} %"
                                f" of {day.known_bytes / 1e6:.0f} MB known")  # fmt: skip
            if state == "quiet":
                ratio = wire / references["zstd -3"]
                report.claims.append(Claim("quiet: bytes over zstd -3 of the pieces", ratio, 1.0))


def _figure_2(
    report: Report, state: str, new: Disk, old: Disk, best: int, references: dict[str, int]
) -> None:
    for share in STORES[1:]:
        way = f"standby, store {100 * share:.0f} %"
        say(f"{way}: {state}")
        day = transfer(new, old, [], store=share)
        report.rows.append(_our_row(state, way, day, best))
        if share == 1 and state == "edited":
            wire = day.sent.wire_bytes
            report.claims.append(Claim("edited: bytes over best peer", wire / best, GOALS[state]))
            if "one prefix" in references:
                ratio = wire / references["one prefix"]
                report.claims.append(Claim("edited: bytes over one prefix", ratio, 1.4))


def _row(state: str, what: str, size: int, changed: int, best: int) -> dict[str, Any]:
    return {
        "day": state,
        "what": what,
        "MB": round(size / 1e6, 3),
        "of changed %": round(100 * size / changed, 2),
        "over best peer": round(size / best, 3),
    }


def _our_row(state: str, way: str, day: Day, best: int) -> dict[str, Any]:
    sent = day.sent
    total = sum(sent.pieces.values())
    shares = {kind.name.lower(): count for kind, count in sent.pieces.items() if count}
    return {
        **_row(state, way, sent.wire_bytes, day.changed_bytes, best),
        "pieces by kind %": " ".join(
            f"{name} {100 * count / total:.0f}" for name, count in shares.items()
        ),
        "refs MB": round((sent.wire_bytes - sent.stream - sent.raw - sent.deltas) / 1e6, 3),
        "again": sent.units_resent,
        "source MB/s": round(day.changed_bytes / day.encode_s / 1e6),
        "target MB/s": round(day.changed_bytes / day.decode_s / 1e6),
    }


if __name__ == "__main__":
    sys.exit(run_bench("bytes between WAN accelerators", arguments(__doc__, turns=1), bench))
