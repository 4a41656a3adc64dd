"""A large disk of a simulated Hyper-V host, of which little changed: what its session reads.

    python bench/hyperv_rct.py [--small] [--json] [--turns N] [--in FOLDER]

A sparse VHDX of 1 TiB on a simulated host (tests/hyperv: the real door over HTTP, the very text of
the scripts, a real VHDX file) is replicated to a folder; then its guest writes 1 GiB in runs of
1 MiB and of 64 KiB, spread over the disk, and the job plans and replicates again. What a session
reads beside the ranges that the host's change tracking (RCT) reports are 64 samples of 1 MiB of
what it calls unchanged. Every changed run of the replica is compared with the guest's.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from standby.disk import open_disk
from standby.road.replica import ReplicaFolder
from standby.units import GiB, KiB, MiB, TiB
from timing import ROOT, Claim, Report, arguments, run_bench, say

sys.path.append(str(ROOT / "tests"))
from hyperv.sites import Site, only
from hyperv.world.machines import Machine

SAMPLED = 64 * MiB
GOAL_READ, GOAL_PLAN_S = 1.02, 1.0


def main() -> int:
    """Run it where the options say."""
    return run_bench("RCT of a large disk", arguments(__doc__ or "", turns=1), bench)


def bench(folder: Path, report: Report, options: argparse.Namespace) -> None:
    """Both sizes of runs, one after the other, on the same disk."""
    size, changed = (64 * GiB, 64 * MiB) if options.small else (TiB, GiB)
    site = Site(folder)
    with site.host:
        machine = site.world.add_machine("web", "hv1", [size])
        say("first session")
        _session(site)
        for run in (MiB, 64 * KiB):
            for turn in range(options.turns):
                _measure(site, machine, report, changed, run, np.random.default_rng(turn + run))


def _measure(
    site: Site,
    machine: Machine,
    report: Report,
    changed: int,
    run: int,
    chance: np.random.Generator,
) -> None:
    """Write, plan, replicate, compare."""
    (drive,) = machine.disks()
    assert drive.path is not None
    size = site.world.storage.opened(drive.path).virtual_size
    places = chance.choice(size // run, changed // run, replace=False) * run
    say(f"{len(places)} runs of {run // KiB} KiB")
    for place in places.tolist():
        site.world.write(machine, place, chance.bytes(run))
    planned_s = _plan(site)
    read, seconds = _session(site)
    what = f"{len(places)} runs of {run // KiB} KiB"
    report.claims += [
        Claim(f"{what}: bytes read, over those reported", read / changed, GOAL_READ),
        Claim(f"{what}: seconds to plan, the host's simulation included", planned_s, GOAL_PLAN_S),
    ]
    report.notes.append(f"{what}: session {seconds:.2f} s; beside it {SAMPLED // MiB} MiB sampled")
    _compare(site, machine, places.tolist(), run)


def _plan(site: Site) -> float:
    begun = time.perf_counter()
    plan = site.plan()
    seconds = time.perf_counter() - begun
    (machine,) = plan.machines
    assert machine.disks[0].mode == "incremental", machine.disks[0].reason
    return seconds


def _session(site: Site) -> tuple[int, float]:
    """(bytes read, seconds) of a session."""
    with site.server() as server:
        begun = time.perf_counter()
        found = only(server.start("nightly"))
        seconds = time.perf_counter() - begun
    site.world.clock.advance(3600)
    site.world.settle()
    return sum(disk.read for disk in found.disks), seconds


def _compare(site: Site, machine: Machine, places: list[int], run: int) -> None:
    """Every run as the guest has it stands in the replica's newest point."""
    folder = ReplicaFolder(site.folder / "replicas" / "web_replica")
    point = folder.points()[-1]
    (disk,) = point.disks
    chain = folder.chain_paths(point, disk.disk_id)
    (drive,) = machine.disks()
    assert drive.path is not None
    theirs, ours = bytearray(run), bytearray(run)
    with (
        site.world.storage.opened(drive.path) as guest,
        open_disk(chain[0], parents=chain[1:] or None) as replica,
    ):
        for place in places:
            guest.read_into(place, theirs)
            replica.read_into(place, ours)
            if theirs != ours:
                raise SystemExit(f"the replica differs at {place}")


if __name__ == "__main__":
    sys.exit(main())
