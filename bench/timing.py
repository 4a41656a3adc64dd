"""What every bench here shares: contenders in turns, medians, places to measure in, one table.

Both contenders of a ratio run in one process and in turns (A B A B), so that what else the machine
does meets them alike. A row of the result has the median and the fastest time; the ratio is that
of the medians, and `ratio_range` the smallest and largest of the single turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import debian_disk
from standby import comparing

ROOT = Path(__file__).resolve().parent.parent
GB = 1e9


@dataclass(slots=True)
class Contender:
    """Something to time. `prepare` runs before each turn and is not timed; what `run` returns
    goes to `check`, which raises when it is wrong. `run` may return a `Timed` to report its own
    time. `turns_max` bounds what is very slow."""

    name: str
    run: Callable[[], Any]
    prepare: Callable[[], None] = lambda: None
    check: Callable[[Any], None] = lambda _: None
    turns_max: int = 1_000


@dataclass(frozen=True, slots=True)
class Timed:
    """A result with the seconds it took, where the whole call is not what is measured."""

    seconds: float
    value: Any


@dataclass(slots=True)
class Result:
    """Seconds of each turn by contender, in order."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """Median seconds of a contender."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, to: str) -> float:
        """Median time of `name` over that of `to`."""
        return self.median(name) / self.median(to)

    def ratio_range(self, name: str, to: str) -> tuple[float, float]:
        """Smallest and largest ratio of one turn."""
        pairs = zip(self.seconds[name], self.seconds[to], strict=False)
        ratios = [one / other for one, other in pairs]
        return min(ratios), max(ratios)


def in_turns(contenders: Sequence[Contender], turns: int) -> Result:
    """Run all contenders one after another, `turns` times, checking the result of every turn."""
    result = Result({contender.name: [] for contender in contenders})
    for turn in range(turns):
        for contender in contenders:
            if turn >= contender.turns_max:
                continue
            contender.prepare()
            touch_memory()
            say(f"{contender.name}, turn {turn + 1}")
            begun = time.perf_counter()
            value = contender.run()
            seconds = time.perf_counter() - begun
            if isinstance(value, Timed):
                seconds, value = value.seconds, value.value
            contender.check(value)
            result.seconds[contender.name].append(seconds)
    return result


def say(text: str) -> None:
    """Tell a person at the terminal what goes on; the result alone is on stdout."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


@dataclass(slots=True)
class Claim:
    """A figure with its goal. `is_at_most` tells on which side of `goal` it must lie."""

    text: str
    value: float
    goal: float | None = None
    is_at_most: bool = True
    spread: tuple[float, float] | None = None
    """Smallest and largest of the single turns."""

    @property
    def is_met(self) -> bool:
        """Whether it is met, or has no goal."""
        if self.goal is None:
            return True
        return self.value <= self.goal if self.is_at_most else self.value >= self.goal


@dataclass(slots=True)
class Report:
    """Everything one bench found out in one place."""

    bench: str
    place: str
    facts: dict[str, str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def times(self, result: Result, size_bytes: int, against: str) -> None:
        """A row for each contender: times, speed over `size_bytes`, ratio to `against`."""
        for name in result.seconds:
            median = result.median(name)
            self.rows.append(
                {
                    "what": name,
                    "median_s": round(median, 4),
                    "fastest_s": round(min(result.seconds[name]), 4),
                    "turns": len(result.seconds[name]),
                    "GB_per_s": round(size_bytes / median / GB, 2),
                    f"time / {against}": round(result.ratio(name, against), 3),
                }
            )

    def print(self) -> None:
        """The report as text on stdout."""
        print(f"\n## {self.bench}, on {self.place}")
        print("   " + "; ".join(f"{name}: {value}" for name, value in self.facts.items()))
        if self.rows:
            _print_table(self.rows)
        for claim in self.claims:
            verdict = ""
            if claim.goal is not None:
                side = "at most" if claim.is_at_most else "at least"
                verdict = f" (goal: {side} {claim.goal:g}) {'met' if claim.is_met else 'MISSED'}"
            spread = f" [{claim.spread[0]:.3g} to {claim.spread[1]:.3g}]" if claim.spread else ""
            print(f"{claim.text}: {claim.value:.4g}{spread}{verdict}")
        for note in self.notes:
            print(f"note: {note}")


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    for line in cells:
        first, *others = (
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())


# --- facts and places ------------------------------------------------------------------------


def facts() -> dict[str, str]:
    """What a figure is worth nothing without."""
    return {
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "kernel variant": comparing.kernel_variant(),
        "compiler": _first_line("gcc", "--version"),
        "python": platform.python_version(),
        "linux": platform.release(),
        "commit": _commit(),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _first_line(*command: str) -> str:
    with contextlib.suppress(OSError, IndexError):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.splitlines()[0]
    return "unknown"


def _commit() -> str:
    if not (ROOT / ".git").exists():
        return "unknown"
    commit = _first_line("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    changed = _first_line("git", "-C", str(ROOT), "status", "--porcelain", "-uno")
    return commit + (" with changes" if changed != "unknown" else "")


def tool_version(*command: str) -> str:
    """First line of what a peer says of its version."""
    return _first_line(*command)


def arguments(description: str, *, turns: int) -> argparse.Namespace:
    """The command line all benches have."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--small", action="store_true", help="the 256 MiB disk: a try-out")
    parser.add_argument("--turns", type=int, default=turns, help=f"turns each (default {turns})")
    parser.add_argument(
        "--in",
        dest="folders",
        action="append",
        type=Path,
        metavar="FOLDER",
        help="where to work; repeatable (default: /dev/shm, and the cache folder's disk)",
    )
    return parser.parse_args()


def disks(options: argparse.Namespace) -> debian_disk.Disks:
    """The disks the command line asks for."""
    return debian_disk.disks(debian_disk.SMALL if options.small else debian_disk.FULL)


@contextlib.contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """A fresh folder in `parent`, gone afterwards."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="standby-bench-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def describe_place(folder: Path) -> str:
    """The file system of a folder."""
    found = _first_line("stat", "--file-system", "--format=%T", str(folder))
    return f"{found} ({folder.parent})"


Bench = Callable[[Path, Report, argparse.Namespace], None]
"""Called with a fresh folder to work in, the report to fill, and the command line."""


def run_bench(name: str, options: argparse.Namespace, bench: Bench) -> int:
    """Run `bench` in each place and print its reports. Exit code 3 when a goal is missed."""
    reports = []
    for parent in options.folders or [Path("/dev/shm"), debian_disk.cache_folder()]:
        with work_folder(parent) as folder:
            report = Report(name, describe_place(folder), facts())
            bench(folder, report, options)
            reports.append(report)
            if not options.json:
                say("")
                report.print()
    if options.json:
        print(json.dumps([asdict(report) for report in reports], indent=1))
    return 0 if all(claim.is_met for report in reports for claim in report.claims) else 3


MEMORY = 4 << 30
"""Bytes that `touch_memory` uses at most: more than any contender here writes in a turn."""
MEMORY_LEFT = 512 << 20
"""Bytes that stay free meanwhile, so that nothing leaves the page cache."""


def touch_memory() -> None:
    """Use memory and give it back, so that a contender gets pages the machine has at hand.

    Where this machine is a virtual one whose host takes free memory back (free page reporting of
    the virtio balloon, 2 s after it was freed), the first write to each such page waits for the
    host. That doubled the time of whichever contender came later in a turn, and says nothing of it.
    """
    size = min(MEMORY, _free_memory() - MEMORY_LEFT)
    if size <= 0:  # what there is lies in the page cache: at hand, and not to be taken from it
        return
    with mmap.mmap(-1, size) as memory:
        with contextlib.suppress(OSError):  # an advice
            memory.madvise(mmap.MADV_HUGEPAGE)
        np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE] = 1


def _free_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemFree:"):
            return int(line.split()[1]) * 1024
    return 0


# --- files -----------------------------------------------------------------------------------


def warm(path: Path) -> None:
    """Read a file once, so that it is in the page cache."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(4 << 20)
        while file.readinto(buffer):
            pass


def copy(source: Path, target: Path) -> None:
    """Copy a file with its holes, replacing the target, and leave nothing to be written back."""
    command = ["cp", "--sparse=always", "--reflink=never", str(source), str(target)]
    subprocess.run(command, check=True)
    subprocess.run(["sync", str(target)], check=True)


def run(*command: str | Path, accept: Sequence[int] = (0,)) -> str:
    """Run a peer and return what it printed; another exit code ends the bench."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode not in accept:
        raise SystemExit(f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
