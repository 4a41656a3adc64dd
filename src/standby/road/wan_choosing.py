"""How the next pieces of a disk go between two accelerators: mode auto, from what was measured.

A part of a disk takes as long as the slowest of two: making it at the source, and what comes after,
which is the line and the target. Both are measured per byte of disk for every way, by the parts
that went that way, older ones counting less. The way that takes least is used; of two that are
within HARDLY of each other the one that sends less. The others are tried again on parts of the same
disk, small ones first, as long as what that costs stays below TRIALS of all the time: content
changes through a disk, and so does a line.
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


SIZES = (64, 512, PART_PIECES)
"""Pieces of the first parts that go a way: what is slow is known before much went that way."""

TRIALS = 0.02
"""Of the time so far; more would be half of the 5 % by which a better way may be missed."""

FIRST_TRIALS_S = 0.02
HARDLY = 1.04
OLD = 0.7
"""Weight of what is known when a part of full size comes."""

GIVE_UP = 3.0
"""A way that takes so many times as long, by a small part, is not tried with a larger one."""


@dataclass(slots=True)
class _Stage:
    """Seconds per byte, older measurements counting less."""

    length: float = 0.0
    seconds: float = 0.0

    def add(self, length: int, seconds: float) -> None:
        keeps = 1 - (1 - OLD) * min(1.0, length / (PART_PIECES * PIECE))
        self.length = self.length * keeps + length
        self.seconds = self.seconds * keeps + seconds

    @property
    def per_byte(self) -> float:
        return self.seconds / self.length if self.length else 0.0


@dataclass(slots=True)
class _Cost:
    making: _Stage = field(default_factory=_Stage)
    after: _Stage = field(default_factory=_Stage)
    size: int = 0
    """The largest of SIZES that came back, as an index behind it."""

    @property
    def per_byte(self) -> float:
        return max(self.making.per_byte, self.after.per_byte)


class Choosing:
    """Of one disk's ways. Not thread-safe."""

    def __init__(self, ways: Sequence[Way]) -> None:
        """`ways` that can be gone, in the order of Way; a single one is always taken."""
        self._costs = {way: _Cost() for way in ways}
        self._current = ways[0]
        self._trying: Way | None = None
        self._all_s = 0.0
        self._trials_s = 0.0
        self.lengths = dict.fromkeys(ways, 0)
        """Bytes of disk that went each way."""

    @property
    def is_known(self) -> bool:
        """Whether something of the current way came back: until then little is to be under way."""
        return len(self._costs) == 1 or self._costs[self._current].after.length > 0

    def next(self) -> tuple[Way, int]:
        """The way of the next part, and its pieces at most."""
        if len(self._costs) == 1:
            return self._current, PART_PIECES
        if self._trying is None and self.is_known:
            for way, cost in self._costs.items():
                if way != self._current and self._is_worth_it(cost):
                    self._trying = way
                    return way, SIZES[min(cost.size, len(SIZES) - 1)]
        return self._current, SIZES[min(self._costs[self._current].size, len(SIZES) - 1)]

    def made(self, way: Way, length: int, seconds: float) -> None:
        """`length` bytes took the source's busiest thread so long."""
        self._costs[way].making.add(length, seconds)

    def came_back(self, way: Way, length: int, seconds: float) -> None:
        """A part of `length` bytes was at the target so long after the line was free for it."""
        cost = self._costs[way]
        is_trial = way == self._trying
        cost.after.add(length, seconds)
        if length * 2 > SIZES[min(cost.size, len(SIZES) - 1)] * PIECE:
            cost.size = min(cost.size + 1, len(SIZES))
        self.lengths[way] += length
        took_s = cost.per_byte * length
        self._all_s += took_s
        if is_trial:
            self._trying = None
            self._trials_s += max(0.0, took_s - self._costs[self._current].per_byte * length)
        self._choose()

    def lost(self) -> None:
        """What was tried came to nothing: it had no pieces that could be measured."""
        self._trying = None

    def _choose(self) -> None:
        """A way is taken when a part of full size went it, or when it is far better already."""
        now = self._costs[self._current].per_byte
        known = {way: cost for way, cost in self._costs.items() if cost.size}
        if not known:
            return
        least = min(cost.per_byte for cost in known.values())
        for way, cost in known.items():
            if cost.per_byte <= least * HARDLY and (
                way == self._current or cost.size >= len(SIZES) - 1 or cost.per_byte * 2 < now
            ):
                self._current = way
                return

    def _is_worth_it(self, cost: _Cost) -> bool:
        now = self._costs[self._current].per_byte
        if 0 < cost.size < len(SIZES) and cost.per_byte > now * GIVE_UP:
            expected = cost.per_byte * SIZES[0] * PIECE * len(SIZES) * 4
        elif cost.size:
            expected = (cost.per_byte - now) * SIZES[min(cost.size, len(SIZES) - 1)] * PIECE
        else:
            expected = 0.0
        return self._trials_s + max(0.0, expected) <= self._all_s * TRIALS + FIRST_TRIALS_S
