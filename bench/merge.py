"""Figure 4: merging a day of changes into the base, as retention does.

    python bench/merge.py [--small] [--json] [--turns N] [--in FOLDER]

Ours is `standby disk merge` of a child whose base is the Debian disk: payload into the base,
flush, identities, the child's name gone; told apart is the time until the file system has the
child's space back, which on ext4 over a device with discards is most of it. The floor copies the
child's present bytes with pread and pwrite, one thread and two, into a copy of the same base at the
very places where the merge puts them, and syncs. Every turn starts from fresh copies in the page
cache and ends with a comparison.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path

import floors
from installation import changed_pieces, must_be_equal, write_pieces
from standby.disk import merge, open_disk, vhdx
from standby.files.giving_back import wait_for_space
from timing import Claim, Contender, Report, arguments, copy, disks, in_turns, run_bench, warm

OURS = "standby, merge"
WHOLE = "the same, child's space back"
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
    with closing(open_disk(kept_child)) as chain:
        runs = chain.mapped(0, chain.virtual_size).tolist()

    def fresh(*files: tuple[Path, Path]) -> None:
        for kept, used in files:
            copy(kept, used)
            warm(used)

    def prepare() -> None:
        fresh((kept_base, base), (kept_child, child))

    prepare()
    merge.merge_file(child)
    with closing(open_disk(base)) as merged:
        ranges = floors.in_chunks(places(runs, merged.mapped(0, merged.virtual_size).tolist()))

    def copy_plainly(threads: int) -> Contender:
        return Contender(
            TWO if threads == 2 else ONE,
            lambda: floors.copy_ranges(kept_child, plain, ranges, threads),
            lambda: fresh((kept_base, plain)),
        )

    def merge_whole() -> None:
        merge.merge_file(child)
        wait_for_space()

    def check(_: object) -> None:
        wait_for_space()  # or it would cost the next contender
        must_be_equal(base, made.path("next", "raw"))

    contenders = [
        Contender(OURS, lambda: merge.merge_file(child), prepare, check),
        Contender(WHOLE, merge_whole, prepare, check),
        copy_plainly(1),
        copy_plainly(2),
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
    report.claims.append(
        Claim(
            "the same with the child's space back",
            result.ratio(ONE, WHOLE),
            spread=result.ratio_range(ONE, WHOLE),
        )
    )
    report.notes.append(f"{floors.total(ranges)} bytes present in the child, {len(runs)} runs")


def places(runs: list[list[int]], base: list[list[int]]) -> list[floors.Range]:
    """Where each of the child's runs lies in the base's file: both are rows of (virtual offset,
    length, file offset), ascending."""
    found = []
    position = 0
    for offset, length, source in runs:
        done = 0
        while done < length:
            start, size, place = base[position]
            if start + size <= offset + done:
                position += 1
                continue
            ahead = offset + done - start
            if ahead < 0:
                raise SystemExit(f"the merged base has nothing at {offset + done}")
            part = min(length - done, size - ahead)
            found.append((source + done, place + ahead, part))
            done += part
    return found


if __name__ == "__main__":
    sys.exit(run_bench("merging a child", arguments(__doc__, turns=5), bench))
