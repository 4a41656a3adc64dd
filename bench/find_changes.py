"""Figure 1: how long it takes to find what changed when no tracker helps.

    python bench/find_changes.py [--small] [--json] [--turns N] [--in FOLDER]

Ours is `job plan --scan` with movers running: the day-after disk is read, hashed and compared with
the repository's digests; the changed bytes it names are checked against the two images. The floor
reads the same bytes of the same file on two threads and hashes them with xxh3, nothing else.
qemu-img compares the disk with an equal one (it stops at the first difference); rsync brings a
copy of the day-before raw image up to date in place.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import floors
from installation import (
    JOB,
    Installation,
    changed_pieces,
    content_bytes,
    must_be_done,
    session,
    write_pieces,
)
from standby.server.plan import JobPlan
from timing import Claim, Contender, Report, arguments, copy, disks, in_turns, run, run_bench, warm

OURS = "standby, plan --scan"
FLOOR = "read + xxh3, 2 threads"
QEMU = "qemu-img compare (equal)"
RSYNC = "rsync --inplace"


def bench(folder: Path, report: Report, options: argparse.Namespace) -> None:
    """Measure in `folder`."""
    made = disks(options)
    pieces = changed_pieces(made.path("base", "raw"), made.path("next", "raw"))
    to_send = content_bytes(pieces)
    ours = Installation(folder / "ours")
    disk = ours.add_machine("web01", made.path("base"))
    twin, old, new = (folder / name for name in ("twin.vhdx", "old.raw", "new.raw"))
    copy(made.path("next", "raw"), new)

    def check(plan: JobPlan) -> None:
        (found,) = plan.machines[0].disks
        if found.send.value != to_send:
            raise SystemExit(f"plan --scan would send {found.send}, the images say {to_send}")

    with ours.server() as server:
        must_be_done(session(server).value)
        write_pieces(disk, pieces)
        copy(disk, twin)
        warm(disk)
        ranges = floors.data_ranges(disk)
        contenders = [
            Contender(OURS, lambda: server.plan(JOB, scan=True), check=check),
            Contender(FLOOR, lambda: floors.read_and_hash(disk, ranges)),
            Contender(QEMU, lambda: run("qemu-img", "compare", disk, twin)),
            Contender(
                RSYNC,
                lambda: run("rsync", "--inplace", "--no-whole-file", "-I", new, old),
                prepare=lambda: copy(made.path("base", "raw"), old),
                check=lambda _: run("cmp", old, new),
                turns_max=1,
            ),
        ]
        result = in_turns(contenders, options.turns)

    report.times(result, floors.total(ranges), FLOOR)
    report.claims = [
        Claim(
            "time over plain reads + xxh3",
            result.ratio(OURS, FLOOR),
            1.4,
            spread=result.ratio_range(OURS, FLOOR),
        ),
        Claim(
            "times as fast as qemu-img compare",
            result.ratio(QEMU, OURS),
            1.8,
            is_at_most=False,
            spread=result.ratio_range(QEMU, OURS),
        ),
        Claim("times as fast as rsync", result.ratio(RSYNC, OURS), 30, is_at_most=False),
    ]
    report.notes.append(f"{floors.total(ranges)} bytes read, {to_send} bytes to send")


if __name__ == "__main__":
    sys.exit(run_bench("finding changes without a tracker", arguments(__doc__, turns=5), bench))
