"""The lookup table of the global cache beside a Python dict: memory, look-ups, a restart.

    python bench/wan_index.py [--small] [--turns N] [--json] [--in FOLDER]

Both hold the same names in the same run, and look-ups go over the same names in the same random
order: hits are names that are there, misses are others. The dict has bytes as keys and is asked in
a loop over slices. Times of look-ups are processor time of the thread, taken in turns: what else
the machine does shares caches and memory with both. Answers are checked in every turn.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import blake3
import numpy as np

from standby import files
from standby._kernels import wan_cache
from standby.units import MiB
from standby.wan import names as naming
from standby.wan import table_file
from standby.wan.names import NAME, PIECE
from standby.wan.table import BUDGET_MIN, NONE, LookupTable
from timing import Claim, Contender, Report, Result, Timed, arguments, in_turns, run_bench

FULL, SMALL = 10_000_000, 400_000
"""Entries."""

LOAD = 0.93
"""Of the slots that the budget has, how many are used."""

BATCH = 4096
"""Names a call: what one message asks."""

THREADS = os.cpu_count() or 1
GOALS = {"hits": 60, "misses": 40}

KEYED_BYTES = 64 * MiB


def main() -> int:
    """Run it where the options say."""
    return run_bench("lookup table", arguments(__doc__ or "", turns=5), bench)


def bench(folder: Path, report: Report, options: argparse.Namespace) -> None:
    """Fill both, ask both, save and load."""
    count = SMALL if options.small else FULL
    random = np.random.default_rng(1)
    names, others = (_random_names(random, count) for _ in range(2))
    locations = random.permutation(count).astype(np.uint64)
    slots = wan_cache.BUCKETS_LAST * wan_cache.SLOTS
    budget = -(-count // int(slots * LOAD)) * BUDGET_MIN

    before = _resident()
    table = LookupTable(budget)
    begun = time.thread_time()
    worst = _insert(table, names, locations)
    seconds = time.thread_time() - begun
    resident = _resident() - before
    report.notes.append(
        f"insert, growing from nothing: {count / seconds / 1e6:.1f} M names/s; the longest call of "
        f"{BATCH} names took {worst * 1e3:.0f} ms on the wall"
    )
    known = table.lookup(names)
    wrong = float((known != locations).mean())
    false = float((table.lookup(others) != NONE).mean())
    report.notes.append(
        f"{wrong:.1e} of the names hide behind a later one, {false:.1e} of others have an answer"
    )
    report.claims += [
        Claim("memory per entry, bytes (counted)", table.memory_bytes / table.entries, 14),
        Claim("memory per entry, bytes (resident)", resident / table.entries, 14),
    ]
    assert wrong < 1e-3
    assert false < 1e-3
    assert not table.is_sampled

    order = random.permutation(count)
    _look_ups(report, options, table, (names, others), locations, order)
    _restart(report, table, folder, budget)
    _keyed(report, options)


def _random_names(random: np.random.Generator, count: int) -> np.ndarray:
    return np.frombuffer(random.bytes(16 * count), np.uint8).reshape(count, 16)


def _insert(table: LookupTable, names: np.ndarray, locations: np.ndarray) -> float:
    """Put all in, in calls of BATCH; the longest call's seconds."""
    worst = 0.0
    for start in range(0, len(names), BATCH):
        begun = time.perf_counter()
        table.insert(names[start : start + BATCH], locations[start : start + BATCH])
        worst = max(worst, time.perf_counter() - begun)
    return worst


def _resident() -> int:
    """Bytes of memory that are this process's own now."""
    gc.collect()
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


def _look_ups(
    report: Report,
    options: argparse.Namespace,
    table: LookupTable,
    names_of: Sequence[np.ndarray],
    locations: np.ndarray,
    order: np.ndarray,
) -> None:
    names, others = names_of
    raw = names.tobytes()
    known = {raw[at : at + 16]: at >> 4 for at in range(0, len(raw), 16)}
    asked = len(order) // 5
    questions = {
        "hits": (np.ascontiguousarray(names[order]), locations[order], order[:asked]),
        "misses": (np.ascontiguousarray(others[order]), np.full(len(order), NONE), None),
    }
    for kind, (rows, answers, of_dict) in questions.items():
        wanted = [None] * asked if of_dict is None else of_dict.tolist()
        contenders = [
            Contender(
                f"dict, {kind}",
                _timed(_dict_loop(known, rows[:asked].tobytes()), len(rows) / asked),
                check=lambda found, wanted=wanted: _check(found == wanted),
            ),
            Contender(f"table, {kind}", _timed(_batches(table, rows)), check=_same(answers)),
            Contender(
                f"no prefetch, {kind}", _timed(_without_prefetch(table, rows)),
                check=_same(answers),
            ),
        ]  # fmt: skip
        result = in_turns(contenders, options.turns)
        for name in result.seconds:
            fastest = min(result.seconds[name])
            report.rows.append(
                {
                    "what": name,
                    "M/s, fastest": round(len(rows) / fastest / 1e6, 2),
                    "M/s, median": round(len(rows) / result.median(name) / 1e6, 2),
                    "turns": len(result.seconds[name]),
                }
            )
        _faster(report, result, kind, f"dict, {kind}", f"table, {kind}", "one thread")
        report.claims.append(
            Claim(
                f"{kind}: with over without prefetch",
                result.ratio(f"no prefetch, {kind}", f"table, {kind}"),
                4,
                is_at_most=False,
                spread=result.ratio_range(f"no prefetch, {kind}", f"table, {kind}"),
            )
        )
        of_all, of_table = f"dict, threads, {kind}", f"table, threads, {kind}"
        half = asked // THREADS
        dicts = [
            _dict_loop(known, rows[at * half : (at + 1) * half].tobytes()) for at in range(THREADS)
        ]
        tables = [_batches(table, part) for part in np.array_split(rows, THREADS)]
        result = in_turns(
            [
                Contender(of_all, _together(dicts, len(rows) / (half * THREADS))),
                Contender(
                    of_table,
                    _together(tables),
                    check=lambda found, answers=answers: _same(answers)(np.concatenate(found)),
                ),
            ],
            options.turns,
        )
        _faster(report, result, kind, of_all, of_table, f"{THREADS} threads")


def _faster(
    report: Report, result: Result, kind: str, of_dict: str, of_table: str, by: str
) -> None:
    report.claims.append(
        Claim(
            f"{kind} a second, times a dict's, calls of {BATCH}, {by}",
            result.ratio(of_dict, of_table),
            GOALS[kind],
            is_at_most=False,
            spread=result.ratio_range(of_dict, of_table),
        )
    )


def _together(runs: Sequence[Callable[[], Any]], factor: float = 1.0) -> Callable[[], Timed]:
    """All at once, each in a thread, by the clock, times `factor`; what each returns."""

    def timed() -> Timed:
        with ThreadPoolExecutor(len(runs)) as threads:
            begun = time.perf_counter()
            value = list(threads.map(lambda run: run(), runs))
            return Timed((time.perf_counter() - begun) * factor, value)

    return timed


def _timed(run: Callable[[], object], factor: float = 1.0) -> Callable[[], Timed]:
    """`run` by processor time, times `factor`."""

    def timed() -> Timed:
        begun = time.thread_time()
        value = run()
        return Timed((time.thread_time() - begun) * factor, value)

    return timed


def _dict_loop(known: dict[bytes, int], raw: bytes) -> Callable[[], list[int | None]]:
    def run() -> list[int | None]:
        get = known.get
        return [get(raw[at : at + 16]) for at in range(0, len(raw), 16)]

    return run


def _batches(table: LookupTable, rows: np.ndarray) -> Callable[[], np.ndarray]:
    found = np.zeros(len(rows), np.uint64)

    def run() -> np.ndarray:
        for at in range(0, len(rows), BATCH):
            table.lookup(rows[at : at + BATCH], found[at : at + BATCH])
        return found

    return run


def _without_prefetch(table: LookupTable, rows: np.ndarray) -> Callable[[], np.ndarray]:
    found = np.zeros(len(rows), np.uint64)

    def run() -> np.ndarray:
        wan_cache.lookup(table._room, table._shards, rows, found, False)
        return found

    return run


def _same(answers: np.ndarray) -> Callable[[np.ndarray], None]:
    return lambda found: _check(bool((found == answers).mean() > 0.999))


def _check(fact: bool) -> None:
    if not fact:
        raise SystemExit("a look-up gave a wrong answer")


def _restart(report: Report, table: LookupTable, folder: Path, budget: int) -> None:
    path = folder / "table"
    begun = time.perf_counter()
    table_file.save(table, path)
    saved = time.perf_counter() - begun
    with contextlib.suppress(OSError):
        files.drop_cached(path)
    begun = time.perf_counter()
    loaded = table_file.load(path, budget)
    seconds = time.perf_counter() - begun
    if loaded.reason or loaded.table.entries != table.entries:
        raise SystemExit(f"the table came back otherwise: {loaded.reason}")
    report.notes.append(f"saved {path.stat().st_size / 1e6:.0f} MB in {saved:.2f} s, synced")
    report.claims.append(
        Claim(
            f"restart with {table.entries / 1e6:.1f} M entries, seconds, file not cached",
            seconds,
            3,
        )
    )


def _keyed(report: Report, options: argparse.Namespace) -> None:
    """Names of 4 KiB pieces, side by side and one call each: of a batch just read, which is in the
    cache, and from memory."""
    key = bytes(range(32))
    for place, size, goal in (("in cache", MiB, 3.5), ("from memory", KEYED_BYTES, None)):
        data = np.frombuffer(np.random.default_rng(2).bytes(size), np.uint8)
        repeats = max(1, (KEYED_BYTES // (8 if options.small else 1)) // size)
        one, many = f"blake3, a call a piece, {place}", f"keyed names, {place}"
        wanted = _one_by_one(data, key)
        contenders = [
            Contender(one, _repeated(lambda data=data: _one_by_one(data, key), repeats)),
            Contender(
                many,
                _repeated(lambda data=data: naming.names(data, key).tobytes(), repeats),
                check=lambda found, wanted=wanted: _check(found == wanted),
            ),
        ]
        result = in_turns(contenders, options.turns)
        report.times(result, size * repeats, many)
        report.claims.append(
            Claim(
                f"names of 4 KiB pieces a second, {place}, times the blake3 package's",
                result.ratio(one, many),
                goal,
                is_at_most=False,
                spread=result.ratio_range(one, many),
            )
        )
    report.notes.append(f"kernel keyed: {naming.kernel_variant()}")


def _repeated(run: Callable[[], object], repeats: int) -> Callable[[], Timed]:
    def several() -> object:
        for _ in range(repeats - 1):
            run()
        return run()

    return _timed(several)


def _one_by_one(data: np.ndarray, key: bytes) -> bytes:
    view, digest = memoryview(data), blake3.blake3
    return b"".join(
        digest(view[at : at + PIECE], key=key).digest(NAME) for at in range(0, len(data), PIECE)
    )


if __name__ == "__main__":
    sys.exit(main())
