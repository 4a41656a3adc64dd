"""Figure 2: the first session of a VM, from a VHDX to a replica's VHDX.

    python bench/full_replication.py [--small] [--json] [--turns N] [--in FOLDER]

Ours is a whole session through two mover processes that run already (their start is reported
apart): digests of every piece, read-back of every block, durable commit of the restore point. Every
turn begins with an empty target and ends, untimed, with the replica compared with the source by
qemu-img. The peers write the same disk and sync it: qemu-img convert to a VHDX of 1 MiB blocks,
cp, and as floor plain pread and pwrite on two threads.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

import floors
import standby
from installation import Installation, must_be_done, session
from standby.model.report import SessionReport
from timing import Claim, Contender, Report, arguments, disks, in_turns, run, run_bench, warm

OURS = "standby, full session"
QEMU = "qemu-img convert + sync"
CP = "cp + sync"
FLOOR = "pread + pwrite, 2 threads"


class _Ours:
    """A fresh installation for every turn, with the same VM."""

    def __init__(self, folder: Path, disk: Path) -> None:
        self.folder = folder / "ours"
        self.installation = Installation(self.folder)
        self.source = self.installation.add_machine("web01", disk)
        self.server: standby.BackupServer | None = None
        self.started_s: list[float] = []
        self.steps_s: dict[str, list[float]] = {}

    def close(self) -> None:
        """End the movers."""
        if self.server is not None:
            self.server.close()
            self.server = None

    def prepare(self) -> None:
        """Empty target, empty repository, movers running, the source in the page cache."""
        self.close()
        for name in ("recovery", "repository"):
            shutil.rmtree(self.folder / name)
            (self.folder / name).mkdir()
        for path in self.folder.glob("*.sqlite*"):
            path.unlink()
        warm(self.source)
        begun = time.perf_counter()
        self.server = standby.BackupServer(self.folder / "standby.toml")
        self.server.start_movers()
        self.started_s.append(time.perf_counter() - begun)

    def run(self) -> object:
        """One session."""
        assert self.server is not None
        return session(self.server)

    def check(self, report: SessionReport) -> None:
        """The session is done and the replica equals the source."""
        must_be_done(report)
        for step, seconds in report.machines[0].steps_s.items():
            self.steps_s.setdefault(step, []).append(seconds)
        (base,) = (self.folder / "recovery").glob("*/*/base.vhdx")
        run("qemu-img", "compare", self.source, base)


def bench(folder: Path, report: Report, options: argparse.Namespace) -> None:
    """Measure in `folder`."""
    ours = _Ours(folder, disks(options).path("base"))
    target = folder / "target.vhdx"
    ranges = floors.data_ranges(ours.source)

    def empty() -> None:
        target.unlink(missing_ok=True)
        warm(ours.source)

    def convert() -> None:
        layout = "subformat=dynamic,block_size=1M"
        run("qemu-img", "convert", "-f", "vhdx", "-O", "vhdx", "-o", layout, ours.source, target)
        run("sync", target)

    def copy() -> None:
        run("cp", "--reflink=never", ours.source, target)
        run("sync", target)

    def copy_plainly() -> None:
        size = ours.source.stat().st_size
        floors.copy_ranges(ours.source, target, ranges, size=size)

    def same(_: object) -> None:
        run("qemu-img", "compare", ours.source, target)

    try:
        contenders = [
            Contender(OURS, ours.run, ours.prepare, ours.check),
            Contender(QEMU, convert, empty, same),
            Contender(CP, copy, empty, same),
            Contender(FLOOR, copy_plainly, empty, same),
        ]
        result = in_turns(contenders, options.turns)
    finally:
        ours.close()
    report.times(result, floors.total(ranges), FLOOR)
    report.claims = [
        Claim(
            "times as fast as qemu-img convert",
            result.ratio(QEMU, OURS),
            1.3,
            is_at_most=False,
            spread=result.ratio_range(QEMU, OURS),
        ),
        Claim(
            "time over cp + sync",
            result.ratio(OURS, CP),
            1.7,
            spread=result.ratio_range(OURS, CP),
        ),
        Claim(
            "time over plain pread + pwrite",
            result.ratio(OURS, FLOOR),
            spread=result.ratio_range(OURS, FLOOR),
        ),
    ]
    middle = sorted(ours.started_s)[len(ours.started_s) // 2]
    report.notes.append(f"starting the movers took {middle:.2f} s (median), not counted above")
    steps = {step: sorted(taken)[len(taken) // 2] for step, taken in ours.steps_s.items()}
    told = ", ".join(f"{step} {seconds:.3f}" for step, seconds in steps.items())
    report.notes.append(f"steps of our session, median seconds: {told}")


if __name__ == "__main__":
    sys.exit(run_bench("full replication", arguments(__doc__, turns=5), bench))
