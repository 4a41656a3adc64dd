"""Figure 5: what does not grow with the disk.

    python bench/limits.py [--small] [--json] [--in FOLDER]

Peak memory of both mover processes (VmHWM, shared batches included) over a full and an incremental
session of the 4 GiB Debian disk, and of a sparse 16 TiB disk with content strewn over all of it;
the time of a session of that disk when nothing changed, without a tracker; the size of what is
kept about content on each side (repository near the source, digest files beside the points) as a
share of the bytes in pieces that are not zero, after the first point and after a day of changes.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import standby
from installation import (
    Installation,
    changed_pieces,
    must_be_done,
    nonzero_bytes,
    session,
    write_pieces,
)
from standby.disk import vhdx
from standby.units import MiB, TiB
from timing import Claim, Report, arguments, disks, run_bench

STREWN = 512
"""Places with content on the 16 TiB disk, 128 KiB each."""


def peak_bytes(server: standby.BackupServer) -> int:
    """Largest resident size any of the server's movers ever had."""
    peaks = []
    for pair in server.crews._idle:
        for mover in (pair.source, pair.target):
            assert mover.process is not None
            status = Path(f"/proc/{mover.process.pid}/status").read_text()
            (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
            peaks.append(int(line.split()[1]) * 1024)
    return max(peaks)


def make_large_disk(path: Path) -> int:
    """A dynamic VHDX of 16 TiB with content all over it; bytes of that."""
    chance = random.Random(16)
    disk = vhdx.create(path, 16 * TiB)
    try:
        for number in range(STREWN):
            offset = number * (16 * TiB // STREWN) + chance.randrange(1000) * 4096
            disk.write(offset, chance.randbytes(128 * 1024))
        disk.flush()
    finally:
        disk.close()
    return STREWN * 128 * 1024


def bench(folder: Path, report: Report, options: argparse.Namespace) -> None:
    """Measure in `folder`."""
    made = disks(options)
    pieces = changed_pieces(made.path("base", "raw"), made.path("next", "raw"))
    small = Installation(folder / "4 GiB")
    disk = small.add_machine("web01", made.path("base"))
    with small.server() as server:
        must_be_done(session(server).value)
        first_peak = peak_bytes(server)
    present = nonzero_bytes(made.path("base", "raw"))
    shares = {"repository, one point": small.repository_bytes() / present}
    shares["digest files, one point"] = small.digest_bytes() / present
    write_pieces(disk, pieces)
    with small.server() as server:
        must_be_done(session(server).value)
        small_peak = max(first_peak, peak_bytes(server))
    shares["repository, two points"] = small.repository_bytes() / present
    shares["digest files, two points"] = small.digest_bytes() / present

    large = Installation(folder / "16 TiB")
    kept = folder / "large.vhdx"
    content = make_large_disk(kept)
    large.add_machine("big01", kept)
    kept.unlink()
    with large.server() as server:
        full = session(server)
        must_be_done(full.value)
        again = session(server)
        must_be_done(again.value)
        large_peak = peak_bytes(server)
    (told,) = again.value.machines[0].disks
    if told.changed or told.written:
        raise SystemExit(f"nothing changed, but {told.changed} bytes are said to have")
    report.claims = [
        Claim("mover peak memory, 4 GiB disk, MiB", small_peak / MiB, 256),
        Claim("mover peak memory, 16 TiB disk, MiB", large_peak / MiB, 256),
        Claim("seconds for a cycle of the unchanged 16 TiB disk", again.seconds, 5),
        Claim("seconds for its first cycle", full.seconds),
        *(
            Claim(f"{what}, % of the data", share * 100, 0.25 if "one point" in what else None)
            for what, share in shares.items()
        ),
    ]
    report.notes.append(
        f"the 16 TiB disk holds {content} bytes, strewn; its repository has"
        f" {large.repository_bytes()} bytes"
    )


if __name__ == "__main__":
    sys.exit(run_bench("limits", arguments(__doc__, turns=1), bench))
