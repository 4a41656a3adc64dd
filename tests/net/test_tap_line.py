"""The line in user space, in time that is only counted."""

from __future__ import annotations

import pytest

from net.tap_line import Direction


def test_a_direction_delays_and_keeps_the_order() -> None:
    direction = Direction(0.02, 0, 0, 1)
    direction.take(b"one", 1.0)
    direction.take(b"two", 1.005)
    assert direction.next_s(1.0) == pytest.approx(0.02)
    assert direction.arrived(1.0199) == []
    assert direction.arrived(1.0201) == [b"one"]
    assert direction.arrived(2.0) == [b"two"]
    assert direction.next_s(2.0) is None


def test_a_direction_keeps_to_its_rate_and_drops_what_is_too_much() -> None:
    direction = Direction(0, 1_000_000, 0, 1)
    for _ in range(500):
        direction.take(bytes(1000), 0.0)
    assert len(direction.arrived(0.0501)) == 50
    # A tenth of a second's frames wait, one more is on its way.
    assert len(direction.arrived(10.0)) == pytest.approx(51, abs=1)


def test_frames_that_waited_to_be_read_cost_the_line_nothing() -> None:
    direction = Direction(0, 1_000_000, 0, 1)
    for turn in range(1, 11):  # the line's process gets the processor every 20 ms
        for _ in range(20):
            direction.take(bytes(1000), turn * 0.02, (turn - 1) * 0.02)
    assert len(direction.arrived(0.2001)) == 200
    assert direction.next_s(0.2001) is None


def test_frames_that_waited_to_be_read_do_not_arrive_earlier_or_faster() -> None:
    direction = Direction(0.04, 1_000_000, 0, 1)
    for _ in range(60):
        direction.take(bytes(1000), 1.0, 0.98)
    assert direction.arrived(1.0399) == []
    assert len(direction.arrived(1.0401)) == 20
    assert len(direction.arrived(1.0601)) == 20
    assert len(direction.arrived(1.0801)) == 20


def test_a_direction_loses_its_share() -> None:
    direction = Direction(0, 0, 0.1, 1)
    for _ in range(10_000):
        direction.take(b"frame", 0.0)
    assert 850 < 10_000 - len(direction.arrived(0.0)) < 1150
