"""Mode auto on pretended lines: what it costs not to have known."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import pytest

from standby.road.wan_choosing import Choosing, Way
from standby.units import KiB, MiB
from standby.wan.references import PIECE

DELAY_S = 0.02
HARDLY_S = 0.25
"""Some round trips: a beginning takes them whatever comes after it."""
LATENCY_S = 0.002
STRIP = 2 * MiB
IN_FLIGHT_MAX, IN_FLIGHT_BYTES = 16, 64 * MiB


@dataclass(frozen=True)
class Cost:
    """Of a way, per byte of disk: seconds at the source, bytes on the line, seconds at the
    target."""

    making: float
    wire: float
    taking: float


Content = Callable[[float], dict[Way, Cost]]
"""What lies at a share of the disk."""


def nothing_known(at: float) -> dict[Way, Cost]:
    return {
        Way.FULL: Cost(14e-9, 0.38, 5e-9),
        Way.DIGEST: Cost(9e-9, 0.38, 4e-9),
        Way.DIRECT: Cost(2.5e-9, 0.4, 0.5e-9),
    }


def all_known(at: float) -> dict[Way, Cost]:
    return {
        Way.FULL: Cost(3.5e-9, 0.0018, 2e-9),
        Way.DIGEST: Cost(1.5e-9, 0.0018, 2e-9),
        Way.DIRECT: Cost(2.5e-9, 0.4, 0.5e-9),
    }


def like_before(at: float) -> dict[Way, Cost]:
    return {
        Way.FULL: Cost(20e-9, 0.1, 6e-9),
        Way.DIGEST: Cost(9e-9, 0.38, 4e-9),
        Way.DIRECT: Cost(2.5e-9, 0.4, 0.5e-9),
    }


def noise(at: float) -> dict[Way, Cost]:
    return {
        Way.FULL: Cost(7e-9, 1.002, 2e-9),
        Way.DIGEST: Cost(2.5e-9, 1.002, 2e-9),
        Way.DIRECT: Cost(0.5e-9, 1.0, 0.5e-9),
    }


def half_known(at: float) -> dict[Way, Cost]:
    return nothing_known(at) if at < 0.5 else all_known(at)


def known_then_not(at: float) -> dict[Way, Cost]:
    return all_known(at) if at < 0.5 else nothing_known(at)


def taken(ways: list[Way], content: Content, rate_bps: float, total: int, seed: int) -> float:
    """Seconds for a disk: source, line, target, one behind the other, as the stations do it. Parts
    of a disk differ, by its place alone; each takes LATENCY_S and more to be noticed."""
    choosing = Choosing(ways)
    random = Random(seed)
    hardness = [random.uniform(0.4, 1.6) for _ in range(total // STRIP + 1)]
    now = made_at = line_free = target_free = last_back = 0.0
    back: list[tuple[float, int, Way, int, float, float, int]] = []
    done = number = in_flight = 0
    while done < total or back:
        few = len(back) < min(IN_FLIGHT_MAX, choosing.under_way_max)
        has_room = few and (in_flight + 8 * MiB <= IN_FLIGHT_BYTES or not back)
        if done < total and has_room and (not back or back[0][0] > max(now, made_at)):
            now = max(now, made_at)
            way, pieces = choosing.next()
            # Contents change in the middle.
            length = min(pieces * PIECE, (total // 2 if done < total // 2 else total) - done)
            cost = content(done / total)[way]
            strips = hardness[done // STRIP : (done + length - 1) // STRIP + 1]
            hard = sum(strips) / len(strips) if cost.wire < 0.99 else 1.0
            wire = int(cost.wire * length * hard)
            made_s = cost.making * length
            made_at = now + made_s
            sent_at = max(made_at, line_free)
            line_free = sent_at + wire / rate_bps
            latency_s = LATENCY_S * random.uniform(0.5, 2)
            target_free = max(target_free, line_free + DELAY_S) + cost.taking * length + latency_s
            number += 1
            item = (target_free + DELAY_S, number, way, length, made_s, sent_at, wire)
            heapq.heappush(back, item)
            done, in_flight = done + length, in_flight + length
            continue
        now, _, way, length, made_s, sent_at, wire = heapq.heappop(back)
        in_flight -= length
        took_s = now - max(sent_at, last_back) - (2 * DELAY_S if sent_at >= last_back else 0)
        last_back = now
        choosing.came_back(way, length, wire, made_s, max(0.0, took_s))
    return now


LINES = {"10 Mbit": (1.25e6, 96 * MiB), "100 Mbit": (12.5e6, 512 * MiB),
         "1 Gbit": (125e6, 2048 * MiB), "loopback": (4e9, 2048 * MiB)}  # fmt: skip
CONTENTS = [nothing_known, all_known, like_before, noise, half_known, known_then_not]


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("seed", range(4))
def test_auto_takes_hardly_longer_than_the_best_way(line: str, content: Content, seed: int) -> None:
    rate_bps, total = LINES[line]
    fixed = {way: taken([way], content, rate_bps, total, seed) for way in Way}
    auto = taken(list(Way), content, rate_bps, total, seed)
    assert auto <= 1.05 * min(fixed.values()) + HARDLY_S, fixed


def test_a_single_way_is_always_taken() -> None:
    choosing = Choosing([Way.DIRECT])
    for _ in range(3):
        assert choosing.under_way_max > 1000
        assert choosing.next() == (Way.DIRECT, 2048)
        choosing.came_back(Way.DIRECT, 8 * MiB, MiB, 9.0, 9.0)


def test_little_is_under_way_until_every_way_came_back() -> None:
    choosing = Choosing(list(Way))
    assert [choosing.next() for _ in range(7)] == [(way, 32) for way in (*Way, *Way, Way.FULL)]
    assert choosing.under_way_max == 6
    for slower in (3, 1):  # the faster part counts
        choosing.came_back(Way.FULL, 128 * KiB, 1000, 0.1 * slower, 0.1)
        choosing.came_back(Way.DIGEST, 128 * KiB, 1000, 0.001, 0.002 * slower)
        choosing.came_back(Way.DIRECT, 128 * KiB, 1000, 0.003 * slower, 0.001)
    assert [choosing.next() for _ in range(5)] == [
        (way, 512) for way in [Way.DIGEST, Way.DIRECT] * 2 + [Way.DIGEST]
    ]


def test_parts_that_are_smaller_than_wished_for_count_too() -> None:
    choosing = Choosing(list(Way))
    for _ in range(40):
        way, _ = choosing.next()
        choosing.came_back(way, 4 * KiB, 4000, 0.001, 0.001)
    assert choosing.under_way_max > 1000
    assert choosing.next()[0] == Way.FULL
