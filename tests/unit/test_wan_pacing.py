"""Which level the literals of a disk get: the line decides, or the processor."""

from __future__ import annotations

from itertools import pairwise

from standby.wan.pacing import FIRST_LEVEL, FIRST_LITERALS, LEVEL, SPEEDS, Pace, Paces

MB = 1_000_000
PART = 4 * MB


def run(pace: Pace, frames: int, line_mb_s: float, *, target_mb_s: float = 1e9) -> list[int]:
    """The levels of so many frames of literals, which shrink to half; a processor as in SPEEDS."""
    levels = []
    for _ in range(frames):
        level = pace.level_for(PART)
        levels.append(level)
        line_s, target_s = PART / 2 / MB / line_mb_s, PART / MB / target_mb_s
        made_s = PART / MB / SPEEDS[level]
        is_line = line_s > max(made_s, target_s)
        pace.came_back(pace.last, made_s, max(line_s, target_s), is_line=is_line)
    return levels


def changes(levels: list[int]) -> int:
    return sum(one != other for one, other in pairwise(levels))


def test_without_a_word_of_times_the_first_literals_get_more_than_those_behind() -> None:
    pace = Pace()
    levels = [pace.level_for(PART) for _ in range(10)]
    first = FIRST_LITERALS // PART
    assert levels == [FIRST_LEVEL] * first + [LEVEL] * (10 - first)


def test_where_encoding_is_the_brake_the_next_frame_is_encoded_faster() -> None:
    levels = run(Pace(), 50, 1000)
    assert levels[0] == FIRST_LEVEL
    assert set(levels[1:]) == {1}


def test_a_line_that_a_middle_level_fills_gets_that() -> None:
    assert run(Pace(), 50, 60)[-1] == LEVEL


def test_a_slow_line_gets_no_less_than_without_a_word_and_more_when_there_is_time() -> None:
    quiet = Pace()
    usual = [quiet.level_for(PART) for _ in range(50)]
    for line_mb_s in (25, 12.5, 5, 1.25):
        levels = run(Pace(), 50, line_mb_s)
        assert all(one >= other for one, other in zip(levels, usual, strict=True))
    assert run(Pace(), 50, 1.25)[-1] == max(SPEEDS)


def test_a_slow_target_is_no_reason_for_better_levels() -> None:
    assert max(run(Pace(), 50, 1000, target_mb_s=10)) == FIRST_LEVEL
    assert run(Pace(), 50, 1000, target_mb_s=100)[-1] <= LEVEL


def test_levels_change_seldom() -> None:
    for line_mb_s in (1000, 100, 71, 60, 30, 25, 12.5, 9, 5, 1.25):
        assert changes(run(Pace(), 200, line_mb_s)) <= 3, line_mb_s


def test_frames_of_an_earlier_level_or_of_few_literals_say_nothing() -> None:
    pace = Pace()
    pace.level_for(PART)
    for _ in range(20):
        pace.came_back((1, PART), 1.0, 0.001, is_line=False)
        pace.came_back((FIRST_LEVEL, 1000), 1.0, 0.001, is_line=False)
    assert pace.level_for(PART) == FIRST_LEVEL


def test_the_next_disk_of_a_line_begins_with_what_the_one_before_came_to() -> None:
    paces = Paces()
    first = paces.begun("far")
    assert run(first, 10, 1000)[-1] == 1
    paces.learned("far", first)
    paces.learned("far", Pace())  # another disk under way, that knows nothing yet
    assert paces.begun("far").level_for(PART) == 1
    assert paces.begun("elsewhere").level_for(PART) == FIRST_LEVEL
    assert run(paces.begun("far"), 50, 1.25)[-1] == max(SPEEDS)
