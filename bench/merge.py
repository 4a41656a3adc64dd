"""Figure 4: merging a day of changes into the base, as retention does.

    python bench/merge.py [--small] [--json] [--turns N] [--in FOLDER]

Ours is `standby disk merge` of a child whose base is the Debian disk: payload into the base,
flush, close. The floor copies the child's present bytes to the same places of an existing file as
large as the base with pread and pwrite, one thread and two, and syncs; both reference and merged
file are in the page cache. Every turn starts from fresh copies and ends with a comparison.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path

import floors
from installation import changed_pieces, must_be_equal, write_pieces
from standby.disk import merge, open_disk, vhdx
from timing import Claim, Contender, Report, arguments, copy, disks, in_turns, run_bench, warm

OURS = "standby, merge"
ONE = "pread + pwrite, 1 thread"
TWO = "pread + pwrite, 2 threads"


def bench(folder: Path, report: Report, options: argparse.Namespace) -> None:
    """Measure in `folder`."""
    made = disks(options)
    kept_base, kept_child = folder / "kept" / "base.vhdx", folder / "kept" / "child.vhdx"
    base, child, plain = folder / "base.vhdx", folder / "child.vhdx", folder / "plain"
    kept_base.parent.mkdir()
    # Parent and child name each other by file name, so copies of both are a chain of their own.
    copy(made.path("base"), kept_base)
    vhdx.create_child(kept_child, kept_base).close()
    write_pieces(kept_child, changed_pieces(made.path("base", "raw"), made.path("next", "raw")))
    copy(kept_base, plain)
    with closing(open_disk(kept_child)) as chain:
        rows = chain.mapped(0, chain.virtual_size).tolist()
    places = _places_in(kept_base, rows)
    ranges = floors.in_chunks(places)

    def prepare() -> None:
        copy(kept_base, base)
        copy(kept_child, child)
        warm(base)
        warm(child)

    contenders = [
        Contender(
            OURS,
            lambda: merge.merge_file(child),
            prepare,
            lambda _: must_be_equal(base, made.path("next", "raw")),
        ),
        Contender(ONE, lambda: floors.copy_ranges(kept_child, plain, ranges, threads=1)),
        Contender(TWO, lambda: floors.copy_ranges(kept_child, plain, ranges, threads=2)),
    ]
    result = in_turns(contenders, options.turns)
    report.times(result, floors.total(ranges), ONE)
    report.claims = [
        Claim(
            "speed over plain pread + pwrite, one thread",
            result.ratio(ONE, OURS),
            0.7,
            is_at_most=False,
            spread=result.ratio_range(ONE, OURS),
        ),
        Claim(
            "speed over plain pread + pwrite, two threads",
            result.ratio(TWO, OURS),
            spread=result.ratio_range(TWO, OURS),
        ),
    ]
    report.notes.append(f"{floors.total(ranges)} bytes present in the child, {len(rows)} runs")


def _places_in(base: Path, rows: list[list[int]]) -> list[floors.Range]:
    """Where the child's runs would go in a plain file: their virtual offset, as far as the base's
    file is long, so that no page of it is new."""
    size = base.stat().st_size
    return [(source, offset % max(1, size - length), length) for offset, length, source in rows]


if __name__ == "__main__":
    sys.exit(run_bench("merging a child", arguments(__doc__, turns=5), bench))
