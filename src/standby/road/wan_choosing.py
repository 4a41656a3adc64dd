"""How the next pieces of a disk go between two accelerators: mode auto, from what was measured.

A part of a disk takes as long as the slowest of two: making it at the source, and what comes after,
which is the line and the target. Both are measured per byte of disk for every way, by the parts
that went that way, older ones counting less.

It begins in rounds: every way is tried with two parts of a size of SIZES, of which the faster one
counts (what else a machine does makes nothing faster), and those that take too many times as long
as the best one are out before the next, larger round. From then on the way that takes least is
used; of two that are within HARDLY of each other the one that sends less. The others are tried
again, as long as what that cost stays below TRIALS of all the time: content changes through a disk,
and so does a line.

Parts differ, and on a slow line more than ways do. So where the line is what a way waits for, as
direct batches tell whose making and taking is next to nothing, no way is taken that sends more.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from standby.road.wan_batches import PART_PIECES
from standby.wan.references import PIECE


class Way(enum.StrEnum):
    """In the order of bytes that they send, fewest first."""

    FULL = "full"
    """Ask the target, and refer to its newest point."""
    DIGEST = "digest"
    """Ask the target."""
    DIRECT = "direct"
    """Packed batches, as without accelerators."""


WAYS = tuple(Way)

SIZES = (32, 512, PART_PIECES)
"""Pieces of the parts of the rounds, at most: what is slow is known before much went that way."""

ROUND_S = 0.1
"""And how long the best way may take with a round's part: on a slow line small ones tell enough."""

STAYS = (5.0, 2.0)
"""How many times as long as the best one a way may take to be in the next round."""

EVERY = 6
"""Parts between trials."""

TRIALS = 0.02
"""Of the time so far; more would be half of the 5 % by which a better way may be missed."""

DOUBT = 0.25
"""How much of what a trial would cost, by what is known, is believed: it may be otherwise now."""

HARDLY = 1.04
OLD = 0.5
"""Weight of what is known of the way in use when a part of full size comes; what is known of
another one is older."""
OLDER = 0.3

AT_FIRST = 2
"""Parts of each way in a round."""

LINE_S, LINE_BYTES = 0.02, 1 << 20
"""A direct part tells how fast the line is when it took so long, or had so many bytes on it: what
takes less may be the time that threads and processes wait for each other."""

LINE_GROWS = 1.1
"""With each direct part, what the line takes at the least: it may have become slower."""

LINE_SHARE = 0.6
"""Of a way's time is the line's where it is what the way waits for."""

LINE_TRIALS = 0.005
"""Of the time for ways that send more, then: the line may have become faster."""

UNDER_WAY_MAX = 6
"""Parts during the rounds: more would go the wrong way before it is known to be."""


@dataclass(slots=True)
class _Stage:
    """Seconds per byte, older measurements counting less."""

    length: float = 0.0
    seconds: float = 0.0

    def add(self, length: int, seconds: float, keeps: float) -> None:
        self.length = self.length * keeps + length
        self.seconds = self.seconds * keeps + seconds

    @property
    def per_byte(self) -> float:
        return self.seconds / self.length if self.length else 0.0


@dataclass(slots=True)
class _Cost:
    making: _Stage = field(default_factory=_Stage)
    after: _Stage = field(default_factory=_Stage)
    wire: _Stage = field(default_factory=_Stage)
    """Bytes for seconds."""
    under_way: int = 0
    """As trials."""
    of_round: list[tuple[float, float, int, int]] = field(default_factory=list)
    """What came back in this round: seconds of both stages, bytes on the line, bytes."""

    @property
    def per_byte(self) -> float:
        return max(self.making.per_byte, self.after.per_byte)


class Choosing:
    """Of one disk's ways. Not thread-safe."""

    def __init__(self, ways: Sequence[Way]) -> None:
        """`ways` that can be gone, in the order of Way; a single one is always taken."""
        self._costs = {way: _Cost() for way in ways}
        self._current = ways[0]
        self._round = 0 if len(ways) > 1 else len(SIZES)
        self._entered = list(ways) if len(ways) > 1 else []
        """In this round."""
        self._waiting = self._entered * AT_FIRST
        """Of these, to be tried."""
        self._all_s = 0.0
        self._trials_s = 0.0
        self._since = self._turn = 0
        self._line = 0.0
        """Seconds per byte on it; 0 while that is not known."""
        self.lengths = dict.fromkeys(ways, 0)
        """Bytes of disk that went each way."""

    @property
    def under_way_max(self) -> int:
        """Parts that may be under way."""
        return UNDER_WAY_MAX if self._round < len(SIZES) else 1 << 30

    def next(self) -> tuple[Way, int]:
        """The way of the next part, and its pieces at most."""
        if self._waiting:
            way = self._waiting.pop(0)
            return self._try(way, self._size(way, self._round))
        if self._round < len(SIZES):  # the round's parts are under way
            return self._current, self._size(self._current, self._round)
        self._since += 1
        others = [way for way in self._costs if way != self._current]
        if others and self._since > EVERY and not any(it.under_way for it in self._costs.values()):
            self._turn += 1
            way = others[self._turn % len(others)]
            size = self._size(way, len(SIZES) - 1)
            if self._may_try(way, size):
                self._since = 0
                return self._try(way, size)
        return self._current, SIZES[-1]

    def _may_try(self, way: Way, pieces: int) -> bool:
        """Whether trials have cost so little that another one may be made."""
        sends_more = WAYS.index(way) > WAYS.index(self._current)
        limit = LINE_TRIALS if sends_more and self._is_bound(self._current) else TRIALS
        worse = self._costs[way].per_byte - self._costs[self._current].per_byte
        expected = max(0.0, worse) * pieces * PIECE * DOUBT
        return self._trials_s + expected <= self._all_s * limit

    def _try(self, way: Way, pieces: int) -> tuple[Way, int]:
        self._costs[way].under_way += 1
        return way, pieces

    def _size(self, way: Way, number: int) -> int:
        """Pieces of a trial: as in that round, in what the way does in ROUND_S."""
        takes_s = self._costs[way].per_byte * PIECE
        return max(SIZES[0], min(SIZES[number], int(ROUND_S / takes_s) if takes_s else SIZES[0]))

    def _is_bound(self, way: Way) -> bool:
        """Whether the line is what the way waits for."""
        cost = self._costs[way]
        return 0 < cost.per_byte * LINE_SHARE <= self._line * cost.wire.per_byte

    def came_back(self, way: Way, length: int, wire: int, making_s: float, after_s: float) -> None:
        """A part of `length` bytes, `wire` on the line, took the source's busiest thread
        `making_s`, and was at the target `after_s` after the line was free for it."""
        if way == Way.DIRECT and (after_s >= LINE_S or wire >= LINE_BYTES):
            found = after_s / max(1, wire)
            self._line = min(self._line * LINE_GROWS, found) if self._line else found
        cost = self._costs[way]
        took_s = max(making_s, after_s)
        keeps = 1 - (1 - OLD) * min(1.0, length / (SIZES[-1] * PIECE))
        if cost.under_way:
            cost.under_way -= 1
            keeps = OLDER
        if self._round < len(SIZES):
            cost.of_round.append((making_s, after_s, wire, length))
            best = min(cost.of_round, key=lambda it: max(it[:2]) / it[3])
            cost.making.add(best[3], best[0], 0.0)
            cost.after.add(best[3], best[1], 0.0)
            cost.wire.add(best[3], best[2], 0.0)
        else:
            cost.making.add(length, making_s, keeps)
            cost.after.add(length, after_s, keeps)
            cost.wire.add(length, wire, keeps)
        self.lengths[way] += length
        self._all_s += took_s
        self._choose()
        if way != self._current and self._round >= len(SIZES):
            self._trials_s += max(0.0, took_s - self._costs[self._current].per_byte * length)
        self._next_round()

    def _choose(self) -> None:
        known: dict[Way, float] = {}
        for way, cost in self._costs.items():
            if cost.after.length:
                known[way] = cost.per_byte
                if self._is_bound(way):
                    break  # those behind it send more
        least = min(known.values())
        self._current = next(way for way in known if known[way] <= least * HARDLY)

    def _next_round(self) -> None:
        tried = [self._costs[way] for way in self._entered]
        if self._round >= len(SIZES) or self._waiting or any(it.under_way for it in tried):
            return
        self._round += 1
        for cost in self._costs.values():
            cost.of_round.clear()
        if self._round == len(SIZES):
            return
        limit = self._costs[self._current].per_byte * STAYS[self._round - 1]
        self._entered = [way for way in self._entered if self._costs[way].per_byte <= limit]
        for number, way in enumerate(self._entered):
            if self._is_bound(way):
                self._entered = self._entered[: number + 1]
                break
        if len(self._entered) < 2:
            self._round = len(SIZES)
            return
        self._waiting = self._entered * AT_FIRST
