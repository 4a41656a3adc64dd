"""The plan: the cheapest trustworthy way, and why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from standby.model.extent import Extent
from standby.server.plan import (
    Basis,
    DiskFacts,
    Figure,
    Mode,
    PartialFacts,
    TargetDiskFacts,
    plan_disk,
)
from standby.units import GiB, MiB

ROOT = "ab" * 16
FIRST = DiskFacts("scsi:0:0", "disk0", 4 * GiB, 512, 2 * GiB, "cp1", MiB)
HELD = TargetDiskFacts(ROOT, 4 * GiB, 512, "tracker-1")
LATER = replace(FIRST, target=HELD, repository_root=ROOT)


def test_the_first_session_is_full_with_nothing_to_compare():
    plan = plan_disk(FIRST)
    assert (plan.mode, plan.baseline, plan.has_parent) == (Mode.FULL, "none", False)
    assert plan.read.value == 2 * GiB
    assert plan.send.basis is Basis.UPPER_BOUND


def test_digests_with_the_targets_root_are_the_baseline():
    plan = plan_disk(LATER)
    assert (plan.mode, plan.baseline) == (Mode.INCREMENTAL, "repository")
    assert plan.builds_on_repository
    assert plan.has_parent


@pytest.mark.parametrize("root", ["", "cd" * 16])
def test_lost_or_stale_metadata_is_noticed_and_never_a_full_resend(root):
    plan = plan_disk(replace(LATER, repository_root=root))
    assert (plan.mode, plan.baseline) == (Mode.INCREMENTAL, "target")
    assert not plan.builds_on_repository
    assert "repository" in plan.reason


def test_a_tracker_limits_what_is_read():
    plan = plan_disk(replace(LATER, tracked=(Extent(0, MiB), Extent(8 * MiB, MiB))))
    assert plan.candidates == (Extent(0, MiB), Extent(8 * MiB, MiB))
    assert (plan.read.value, plan.read.basis) == (2 * MiB, Basis.EXACT)


def test_a_tracker_is_not_used_where_the_metadata_is_lost():
    plan = plan_disk(replace(LATER, repository_root="", tracked=(Extent(0, MiB),)))
    assert plan.candidates is None


def test_an_interrupted_transfer_is_continued_whatever_tracker_and_repository_say():
    partial = PartialFacts("p", "cp1", 100 * MiB, 64 * MiB)
    plan = plan_disk(replace(LATER, partial=partial, tracked=(Extent(0, MiB),)))
    assert (plan.mode, plan.baseline, plan.candidates) == (Mode.RESUME, "target", None)
    assert plan.resume_mark == 64 * MiB


def test_a_mark_of_another_checkpoint_is_worth_nothing():
    plan = plan_disk(replace(LATER, partial=PartialFacts("p", "cp0", 100 * MiB, 64 * MiB)))
    assert plan.resume_mark == 0
    assert "newer checkpoint" in plan.reason


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"virtual_size": 5 * GiB}, "grew"),
        ({"virtual_size": 3 * GiB}, "shrank"),
        ({"logical_sector_size": 4096}, "sector size"),
    ],
)
def test_another_shape_starts_a_new_chain_from_what_the_target_holds(change, said):
    plan = plan_disk(replace(LATER, **change))
    assert (plan.mode, plan.baseline, plan.has_parent) == (Mode.NEW_CHAIN, "target", False)
    assert said in plan.reason


def test_space_counts_whole_blocks_not_bytes():
    # 40 pieces of 4 KiB in 40 blocks; two blocks in a row.
    scattered = replace(FIRST, allocated=40 * 4096, stored_blocks=40)
    assert plan_disk(scattered).space == Figure(40 * MiB, Basis.UPPER_BOUND)
    assert plan_disk(replace(FIRST, allocated=2 * MiB, stored_blocks=2)).space.value == 2 * MiB
    full = replace(FIRST, virtual_size=3 * MiB + 512, allocated=3 * MiB + 512, stored_blocks=4)
    assert plan_disk(full).space.value == 4 * MiB


def test_a_trackers_ranges_take_the_blocks_they_touch():
    tracked = (Extent(MiB - 4096, 8192), Extent(2 * MiB - 4096, 4096), Extent(9 * MiB, MiB))
    plan = plan_disk(replace(LATER, tracked=tracked))
    assert plan.space == Figure(3 * MiB, Basis.UPPER_BOUND)


def test_an_estimate_of_space_is_whole_blocks_with_its_range():
    plan = plan_disk(replace(LATER, stored_blocks=2048, history=(4096, 3 * MiB + 4096, 8192)))
    assert plan.space == Figure(MiB, Basis.ESTIMATED, MiB, 769 * MiB)
    unchanged = plan_disk(replace(LATER, stored_blocks=2048, history=(0, 0, 0)))
    assert unchanged.space == Figure(0, Basis.ESTIMATED, 0, 0)


def test_a_new_chain_takes_what_is_copied_too():
    plan = plan_disk(replace(LATER, virtual_size=5 * GiB, stored_blocks=10))
    assert plan.space == Figure(4 * GiB + 10 * MiB, Basis.UPPER_BOUND)


def test_a_seed_is_compared_not_overwritten():
    plan = plan_disk(replace(FIRST, has_seed=True))
    assert (plan.mode, plan.baseline) == (Mode.SEED, "target")


def test_a_seed_that_was_cut_off_goes_on_with_its_file():
    plan = plan_disk(replace(FIRST, has_seed=True, partial=PartialFacts("p", "cp0")))
    assert (plan.mode, plan.baseline, plan.uses_seed) == (Mode.RESUME, "target", True)


def test_a_mapped_disk_is_compared_with_what_is_there():
    plan = plan_disk(replace(FIRST, mapped_from="old"))
    assert (plan.mode, plan.baseline, plan.mapped_from) == (Mode.INCREMENTAL, "target", "old")
    assert "old" in plan.reason


def test_a_new_chain_that_was_cut_off_still_copies_what_the_target_holds():
    partial = PartialFacts("p", "cp1", 100 * MiB)
    plan = plan_disk(replace(LATER, virtual_size=5 * GiB, partial=partial))
    assert (plan.mode, plan.copies_chain, plan.has_parent) == (Mode.RESUME, True, False)


def test_a_full_where_an_incremental_was_to_be_expected_is_said():
    plan = plan_disk(replace(FIRST, lost="another disk is at this place now"))
    assert plan.is_unforeseen
    assert plan.reason == "another disk is at this place now"
    assert not plan_disk(FIRST).is_unforeseen


def test_what_is_left_of_an_interrupted_transfer_is_an_estimate():
    partial = PartialFacts("p", "cp1", 512 * MiB, 64 * MiB)
    plan = plan_disk(replace(FIRST, partial=partial))
    assert (plan.send.basis, plan.send.value) == (Basis.ESTIMATED, 3 * GiB // 2)
    assert plan.read.basis is Basis.UPPER_BOUND


def test_an_excluded_disk_costs_nothing():
    plan = plan_disk(replace(LATER, is_excluded=True))
    assert plan.mode is Mode.EXCLUDED
    assert plan.read.value == plan.send.value == 0


def test_history_makes_an_estimate_with_its_range():
    plan = plan_disk(replace(LATER, history=(10 * MiB, 30 * MiB, 20 * MiB)))
    assert plan.send.basis is Basis.ESTIMATED
    assert (plan.send.value, plan.send.low, plan.send.high) == (20 * MiB, 10 * MiB, 30 * MiB)
