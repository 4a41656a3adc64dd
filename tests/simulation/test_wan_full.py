"""Modes full and auto of a pair of WAN accelerators in whole sessions, points merged meanwhile."""

from __future__ import annotations

import pytest

from simulation.wan_site import DATA, MORE, WanSite
from standby.units import KiB

EDITED = 40


@pytest.fixture
def make_site(tmp_path):
    made = []

    def make(mode: str, restore_points: int = 7) -> WanSite:
        site = WanSite(tmp_path / "site", f'{MORE}mode = "{mode}"\n')
        text = site.config.read_text()
        site.config.write_text(text.replace("points = 7", f"points = {restore_points}"))
        made.append(site)
        site.twin("vm1")
        return site

    yield make
    for site in made:
        site.close()


def edit(site: WanSite, seed: int) -> None:
    """Half a KiB in each of EDITED pieces."""
    for number in range(EDITED):
        site.write((number * 8 + seed) * 64 * KiB, 512)


def run(site: WanSite):
    (machine,) = site.run().machines
    assert machine.outcome == "done", machine.error
    assert machine.warnings == []
    (disk,) = machine.disks
    return disk


def test_edits_of_a_newest_point_that_merges_change_are_deltas(make_site):
    site = make_site("full", 1)
    assert run(site).wan.mode == "full"
    for seed in range(4):
        edit(site, seed)
        disk = run(site)
        assert disk.changed == EDITED * 4 * KiB
        assert (set(disk.wan.pieces), disk.wan.resent) == ({"delta"}, 0)
        assert disk.sent < 32 * KiB
    assert site.check_points("vm1_replica") == 1


def test_mode_auto_says_which_way_most_went(make_site):
    site = make_site("auto")
    disk = run(site)
    assert disk.wan.mode in ("auto: full", "auto: digest", "auto: direct")
    assert sum(disk.wan.pieces.values()) == DATA // (4 * KiB)
    edit(site, 1)
    assert run(site).changed == EDITED * 4 * KiB
    assert site.check_points("vm1_replica") == 2
