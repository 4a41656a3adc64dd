"""`compression = "auto"`: packing begins where it pays and ends where it does not."""

from __future__ import annotations

import pytest

from standby.road.packing import AutoPacking
from standby.units import MiB

BATCH = 16 * MiB


def simulated(
    link_bps: float, pack_bps: float, ratio: float, batches: int = 64, *, is_auto: bool = True
) -> tuple[float, int]:
    """(seconds, batches packed): one thread that packs and sends through a socket buffer which
    drains at the link's rate all the while."""
    auto = AutoPacking()
    now, queued, packed, buffer = 0.0, 0.0, 0, 4 * MiB

    def spend(seconds: float) -> None:
        nonlocal now, queued
        now += seconds
        queued = max(0.0, queued - seconds * link_bps)

    def send(length: float) -> float:
        nonlocal queued
        begun = now
        copied_s = length / 2e9
        spend(copied_s)
        queued += length
        if queued > buffer:
            spend((queued - buffer) / link_bps)
        return now - begun

    for _ in range(batches):
        if is_auto and auto.wants_sample:
            seconds = auto.SAMPLE / pack_bps
            spend(seconds)
            auto.packed(auto.SAMPLE, int(auto.SAMPLE * ratio), seconds)
        length = BATCH
        if is_auto and auto.should_pack:
            packed += 1
            length = int(BATCH * ratio)
            spend(BATCH / pack_bps)
            auto.packed(BATCH, length, BATCH / pack_bps)
        auto.sent(length, send(length))
    return now + queued / link_bps, packed


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("pack_bps", [100e6, 400e6])
def test_a_fast_link_is_not_made_slower(pack_bps: float, ratio: float) -> None:
    auto_s, packed = simulated(1.2e9, pack_bps, ratio, batches=256)
    plain_s, _ = simulated(1.2e9, pack_bps, ratio, batches=256, is_auto=False)
    assert packed <= 1
    assert auto_s < plain_s + BATCH / pack_bps + plain_s * 0.02


@pytest.mark.parametrize("link_bps", [1e6, 12e6, 60e6])
def test_a_slow_link_carries_packed_batches(link_bps: float) -> None:
    auto_s, packed = simulated(link_bps, 400e6, 0.4)
    plain_s, _ = simulated(link_bps, 400e6, 0.4, is_auto=False)
    assert packed >= 60
    assert auto_s < plain_s * 0.55


def test_what_does_not_shrink_is_not_packed_even_once() -> None:
    assert simulated(1e6, 400e6, 1.0)[1] == 0


def test_a_link_that_becomes_slow_is_noticed() -> None:
    auto = AutoPacking()
    auto.packed(auto.SAMPLE, auto.SAMPLE // 2, auto.SAMPLE / 400e6)
    for _ in range(32):
        auto.sent(BATCH, BATCH / 2e9)
    assert not auto.should_pack
    for _ in range(16):
        auto.sent(BATCH, BATCH / 10e6)
    assert auto.should_pack


def test_data_that_begins_to_shrink_is_noticed_by_a_sample() -> None:
    auto = AutoPacking()
    auto.packed(auto.SAMPLE, auto.SAMPLE, auto.SAMPLE / 400e6)
    samples = 0
    for _ in range(8 * auto.SAMPLE_EVERY):
        if auto.wants_sample:
            samples += 1
            auto.packed(auto.SAMPLE, auto.SAMPLE // 4, auto.SAMPLE / 400e6)
        auto.sent(BATCH, BATCH / 50e6)
    assert auto.should_pack
    assert samples <= 8


def test_more_threads_pack_for_one_link() -> None:
    decisions = []
    for threads in (1, 4):
        auto = AutoPacking(threads)
        auto.packed(BATCH, BATCH // 2, BATCH / 200e6)
        for _ in range(8):
            auto.sent(BATCH, BATCH / 180e6)
        decisions.append(auto.should_pack)
    assert decisions == [False, True]
