"""Figure 3: bytes on the wire for a day of changes, over a link that compresses.

    python bench/incremental_wire.py [--small] [--json] [--in FOLDER]

Ours is an incremental session with `compression = "fast"`; what counts is what the session reports
as sent: packed batches with their tables of extents (frame headers, some 100 bytes for 4 MiB, are
not in it). The reference is `zstd -3` of exactly the 4 KiB pieces that differ and are not zero, in
one stream. The new restore point is compared with the day-after image, piece by piece.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from installation import (
    Installation,
    changed_pieces,
    content_bytes,
    must_be_done,
    must_be_equal,
    session,
    write_pieces,
)
from timing import Claim, Report, arguments, disks, run, run_bench


def zstd_bytes(pieces: list[tuple[int, bytes]], folder: Path) -> int:
    """Size of one zstd -3 stream of all pieces."""
    plain, packed = folder / "pieces", folder / "pieces.zst"
    with plain.open("wb") as file:
        for _, data in pieces:
            file.write(data)
    run("zstd", "-q", "-3", plain, "-o", packed)
    return packed.stat().st_size


def bench(folder: Path, report: Report, options: argparse.Namespace) -> None:
    """Measure in `folder`."""
    made = disks(options)
    pieces = changed_pieces(made.path("base", "raw"), made.path("next", "raw"))
    ours = Installation(folder / "ours", compression="fast")
    disk = ours.add_machine("web01", made.path("base"))
    with ours.server() as server:
        must_be_done(session(server).value)
        write_pieces(disk, pieces)
        day = session(server)
        must_be_done(day.value)
    must_be_equal(ours.newest_layer("web01"), made.path("next", "raw"))
    (told,) = day.value.machines[0].disks
    reference = zstd_bytes(pieces, folder)
    report.rows = [
        {"what": "standby, incremental session", "MB": round(told.sent / 1e6, 3),
         "seconds": round(day.seconds, 3)},
        {"what": "zstd -3 of the changed pieces", "MB": round(reference / 1e6, 3)},
        {"what": "changed pieces", "MB": round(content_bytes(pieces) / 1e6, 3)},
        {"what": "read by the session", "MB": round(told.read / 1e6, 3)},
    ]  # fmt: skip
    if told.changed - told.zeroed != content_bytes(pieces):
        raise SystemExit(f"{told.changed - told.zeroed} bytes travelled, not the changed ones")
    report.claims = [Claim("bytes over zstd -3 of the pieces", told.sent / reference, 1.05)]


if __name__ == "__main__":
    sys.exit(run_bench("a day of changes on the wire", arguments(__doc__, turns=1), bench))
