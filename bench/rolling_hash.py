"""The rolling kernel beside the scalar loops of the literature: speed, and quality with it.

    python bench/rolling_hash.py [--small] [--turns N]

Speed, for each CPU variant, from memory (a buffer larger than the caches) and from the cache:
anchors, one in 2048 positions, against a Gear loop with the same rarity; cuts (4, 16, 64 KiB)
against FastCDC with normalised chunking of level 2. The rivals are rolling_rivals.c, at -O3 and
unrolled, without a key. All contenders take turns in one process and are measured by the processor
time of the thread, each by its fastest turn; the ratio is the figure.

Quality, on noise and on the files of Python's own library: the spread of sizes, and the bytes of
pieces that are new after an insertion, both against FastCDC on the same bytes and places. These are
averages over different cuts of the same bytes, so their own error is printed with them.

Goals: from memory anchors at least 2 times Gear with AVX-512 and 1.4 times with AVX2; spread and
resent bytes at most 1.03 times FastCDC's (beyond twice the error of the measurement). Exit code 3
when one is missed.
"""

from __future__ import annotations

import argparse
import ctypes
import shlex
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from standby import chunking
from standby._kernels import rolling

KEY = bytes(range(32))
SIZES = (4 << 10, 16 << 10, 64 << 10)
HARD, EASY = 0x0000D90303537000, 0x0000D90103530000
"""Masks of 16 and 12 bits, spread as those of the paper (which has 15, 13 and 11 of them)."""
GEAR_MASK = 0xFFE0000000000000
GOALS = {"avx2": 1.4, "avx512": 2.0}
CACHED = 256 << 10
Array = NDArray[np.int64]


class Rivals:
    """The compiled loops of rolling_rivals.c."""

    def __init__(self) -> None:
        compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]
        source = Path(__file__).with_name("rolling_rivals.c")
        with tempfile.TemporaryDirectory() as folder:
            built = Path(folder) / "rivals.so"
            command = [compiler, "-O3", "-shared", "-fPIC", str(source), "-o", str(built)]
            subprocess.run(command, check=True)
            self._library = ctypes.CDLL(str(built))
        for function in (self._library.gear, self._library.fastcdc):
            function.restype = ctypes.c_size_t
        self._table = np.random.default_rng(2016).integers(0, 1 << 64, 256, np.uint64)
        self._room = np.empty(0, np.int64)

    def _out(self, count: int) -> Array:
        if len(self._room) < count:
            self._room = np.empty(count, np.int64)
        return self._room

    def gear(self, data: NDArray[np.uint8]) -> Array:
        """Positions, one in 2048 of them."""
        out = self._out(len(data) // 64)
        found = self._library.gear(
            ctypes.c_void_p(self._table.ctypes.data), ctypes.c_void_p(data.ctypes.data),
            ctypes.c_size_t(len(data)), ctypes.c_uint64(GEAR_MASK),
            ctypes.c_void_p(out.ctypes.data),
        )  # fmt: skip
        return out[:found].copy()

    def fastcdc(self, data: NDArray[np.uint8]) -> Array:
        """Where the pieces end."""
        out = self._out(len(data) // SIZES[0] + 1)
        found = self._library.fastcdc(
            ctypes.c_void_p(self._table.ctypes.data), ctypes.c_void_p(data.ctypes.data),
            *(ctypes.c_size_t(size) for size in (len(data), *SIZES)),
            ctypes.c_uint64(HARD), ctypes.c_uint64(EASY), ctypes.c_void_p(out.ctypes.data),
        )  # fmt: skip
        return out[:found].copy()


# --- speed -----------------------------------------------------------------------------------


def speeds(rivals: Rivals, data: NDArray[np.uint8], turns: int) -> dict[str, float]:
    """Bytes per second of processor time, by contender."""
    contenders: dict[str, Callable[[], object]] = {
        "Gear": lambda: rivals.gear(data),
        "FastCDC": lambda: rivals.fastcdc(data),
    }
    for variant in rolling.variants():
        contenders[f"anchors {variant}"] = lambda: chunking.anchors(data, KEY)
        contenders[f"cuts {variant}"] = lambda: chunking.cuts(data, KEY, *SIZES)
    calls = max(1, (16 << 20) // len(data))
    best = dict.fromkeys(contenders, float("inf"))
    before = rolling.variant()
    try:
        for _ in range(turns):
            for name, work in contenders.items():
                rolling.select(name.rpartition(" ")[2] if " " in name else before)
                start = time.thread_time()
                for _ in range(calls):
                    work()
                best[name] = min(best[name], time.thread_time() - start)
    finally:
        rolling.select(before)
    return {name: calls * len(data) / seconds for name, seconds in best.items()}


def show_speeds(rivals: Rivals, data: NDArray[np.uint8], turns: int, missed: list[str]) -> None:
    """Print a table; add to `missed` what is below its goal from memory."""
    for where, part in (("memory", data), ("cache", data[:CACHED])):
        found = speeds(rivals, part, turns if where == "memory" else 4 * turns)
        print(f"\nfrom {where}, {len(part) >> 10} KiB, GB/s of processor time")
        for name, rate in found.items():
            rival = "FastCDC" if name.startswith("cuts") else "Gear"
            ratio = rate / found[rival]
            goal = GOALS.get(name.removeprefix("anchors ")) if where == "memory" else None
            note = f"   goal {goal}" if goal else ""
            print(f"  {name:18} {rate / 1e9:6.2f}   {ratio:5.2f} x {rival}{note}")
            if goal and ratio < goal:
                missed.append(f"{name} from memory: {ratio:.2f} of Gear, goal {goal}")


# --- quality ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Quality:
    """Of one chunker on some data."""

    mean: float
    spread: float
    """Standard deviation of sizes over their mean."""
    resent: NDArray[np.float64]
    """Bytes of new pieces, per insertion."""


def quality(
    cuts_of: Callable[[NDArray[np.uint8]], Array], data: NDArray[np.uint8], insertions: int
) -> Quality:
    """Sizes over all of `data`; insertions of 1 to 100 bytes each into 1 MiB of it."""
    ends = cuts_of(data)
    assert ends[-1] == len(data)
    sizes = np.diff(ends, prepend=0)[:-1]
    assert SIZES[0] <= sizes.min()
    assert sizes.max() <= SIZES[2]
    chance = np.random.default_rng(3)
    around = 512 << 10
    resent = np.empty(insertions)
    for number in range(insertions):
        place = int(chance.integers(around, len(data) - around))
        inserted = chance.integers(0, 256, int(chance.integers(1, 101)), np.uint8)
        old = data[place - around : place + around]
        new = np.concatenate((old[:around], inserted, old[around:]))
        resent[number] = _new_bytes(cuts_of(old), cuts_of(new), around, len(inserted))
    return Quality(float(sizes.mean()), float(sizes.std() / sizes.mean()), resent)


def _new_bytes(old: Array, new: Array, place: int, inserted: int) -> int:
    """Bytes in pieces of `new` that are not, moved by what was inserted, pieces of `old`."""
    starts, stops = np.concatenate(([0], new[:-1])), new
    shift = np.where(starts >= place + inserted, inserted, 0)
    is_whole = (stops <= place) | (starts >= place + inserted)
    pieces = set(zip([0, *old[:-1].tolist()], old.tolist(), strict=True))
    moved = zip((starts - shift).tolist(), (stops - shift).tolist(), strict=True)
    known = np.array([pair in pieces for pair in moved]) & is_whole
    return int((stops - starts)[~known].sum())


def show_quality(
    rivals: Rivals, name: str, data: NDArray[np.uint8], insertions: int, missed: list[str]
) -> None:
    """Print both chunkers' figures; add to `missed` what is beyond its goal."""
    ours = quality(lambda part: chunking.cuts(part, KEY, *SIZES), data, insertions)
    theirs = quality(rivals.fastcdc, data, insertions)
    pieces = len(data) / ours.mean
    spread = ours.spread / theirs.spread
    spread_error = np.sqrt(2 / pieces)  # of a deviation: 1 / sqrt(2 n), twice
    resent = ours.resent.mean() / theirs.resent.mean()
    errors = [q.resent.std() / np.sqrt(insertions) / q.resent.mean() for q in (ours, theirs)]
    resent_error = float(np.hypot(*errors))
    print(f"\n{name}, {len(data) >> 20} MiB, {insertions} insertions   ours  FastCDC  ratio")
    print(f"  mean size, KiB          {ours.mean / 1024:8.2f} {theirs.mean / 1024:8.2f}")
    print(
        f"  sd / mean               {ours.spread:8.3f} {theirs.spread:8.3f}"
        f"  {spread:.3f} +- {spread_error:.3f}"
    )
    print(
        f"  resent / insertion, KiB {ours.resent.mean() / 1024:8.2f}"
        f" {theirs.resent.mean() / 1024:8.2f}  {resent:.3f} +- {resent_error:.3f}"
    )
    for what, ratio, error in (
        ("spread", spread, spread_error), ("resent bytes", resent, resent_error)
    ):  # fmt: skip
        if ratio > 1.03 + 2 * error:
            missed.append(f"{what} on {name}: {ratio:.3f} of FastCDC, goal 1.03")


def library_files(size_max: int) -> NDArray[np.uint8]:
    """Python's library, file after file."""
    data = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*")):
        if path.is_file() and len(data) < size_max:
            data += path.read_bytes()
    return np.frombuffer(bytes(data[:size_max]), np.uint8)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="less of everything")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--in", dest="folder", help="taken as all benches take it; not used")
    options = parser.parse_args()
    memory, insertions = (32 << 20, 100) if options.small else (192 << 20, 4000)
    noise = np.frombuffer(np.random.default_rng(1).bytes(memory), np.uint8)
    rivals = Rivals()
    missed: list[str] = []
    show_speeds(rivals, noise, options.turns, missed)
    show_quality(rivals, "noise", noise, insertions, missed)
    show_quality(rivals, "Python's library", library_files(memory), insertions, missed)
    print("\n" + "\n".join(f"missed: {line}" for line in missed) if missed else "\nall goals met")
    return 3 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
