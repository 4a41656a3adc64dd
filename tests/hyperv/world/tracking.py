"""Resilient change tracking: what was written to a disk since an id."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

GRANULARITY = 32 * 1024
"""What is reported at the least.  Not published; scripts must not count on it."""


@dataclass(frozen=True)
class Changes:
    """One answer of GetVirtualDiskChanges."""

    processed: int
    ranges: list[tuple[int, int]]


@dataclass
class Tracker:
    """The log of one disk of one VM.  It sees what the guest writes, wherever the chain's leaf
    is, and nothing else: what a checkpoint that is applied changes, it does not know."""

    size: int
    granularity: int = GRANULARITY
    answers_at_most: int | None = None
    """Bytes of the disk that one call answers for; the whole disk otherwise."""
    more: list[tuple[int, int]] = field(default_factory=list)
    """Ranges that are reported with every answer, though nothing was written there."""
    hidden: list[tuple[int, int]] = field(default_factory=list)
    """Ranges that are left out of every answer: a lie."""
    lost: bool = False
    """No id is known any more."""
    stands_still: bool = False
    """Answers process no byte."""
    log: list[tuple[int, int]] = field(default_factory=list)
    marks: dict[str, int] = field(default_factory=dict)
    made: int = 0
    """How many ids there were: none is given twice."""
    name: uuid.UUID = field(default_factory=uuid.uuid4)

    def record(self, offset: int, length: int) -> None:
        """The guest wrote there."""
        if length:
            self.log.append((offset, length))

    def mark(self) -> str:
        """An id for the state of this moment."""
        text = self.name.hex
        identifier = f"rctX:{text[:8]}:{text[8:12]}:{text[12:16]}:{text[16:]}:{self.made:08x}"
        self.made += 1
        self.marks[identifier] = len(self.log)
        return identifier

    def knows(self, identifier: str) -> bool:
        """Whether changes since that id can be told."""
        return not self.lost and identifier in self.marks

    def forget(self, identifier: str) -> None:
        """The id's reference point is gone."""
        self.marks.pop(identifier, None)

    def written(self, since: str, until: int | None = None) -> list[tuple[int, int]]:
        """The ranges that were written, joined and in order, as they were: no rounding, no lie."""
        return _joined(self.log[self.marks[since] : until], 1, self.size)

    def changes(self, since: str, until: int, offset: int, length: int) -> Changes:
        """What the host answers."""
        if self.stands_still:
            return Changes(0, [])
        stop = offset + min(length, self.answers_at_most or length)
        wanted = [*self.log[self.marks[since] : until], *self.more]
        ranges = _joined(wanted, self.granularity, self.size)
        for start, count in self.hidden:
            ranges = _without(ranges, start, start + count)
        answer = [
            (max(start, offset), min(start + count, stop) - max(start, offset))
            for start, count in ranges
            if start < stop and start + count > offset
        ]
        return Changes(stop - offset, answer)


def _joined(ranges: list[tuple[int, int]], granularity: int, size: int) -> list[tuple[int, int]]:
    result: list[list[int]] = []
    for start, length in sorted(ranges):
        low = start // granularity * granularity
        high = min(-(-(start + length) // granularity) * granularity, size)
        if result and low <= result[-1][1]:
            result[-1][1] = max(result[-1][1], high)
        else:
            result.append([low, high])
    return [(low, high - low) for low, high in result]


def _without(ranges: list[tuple[int, int]], low: int, high: int) -> list[tuple[int, int]]:
    result = []
    for start, length in ranges:
        stop = start + length
        if start < min(stop, low):
            result.append((start, min(stop, low) - start))
        if max(start, high) < stop:
            result.append((max(start, high), stop - max(start, high)))
    return result
