"""How well a disk's literals are compressed: as well as the line, not the processor, makes wait.

A session begins at FIRST_LEVEL, and goes on at LEVEL behind FIRST_LITERALS bytes: what is right
where nobody tells how long frames take. Who does tell (`came_back`) gets another level: where
encoding takes longer than everything behind it, one that keeps up; where the line is what all wait
for, one that uses up to half of the time it leaves. Another level is a new stream, which knows
nothing of what came before, so levels change seldom.
"""

from __future__ import annotations

LEVEL = 3
"""9 costs three times the time for 7 % fewer bytes behind a prefix; 1 is a false economy there:
three times the bytes (measured on an aged file system)."""

FIRST_LEVEL = 6
"""Of a session's first literals: 5 % fewer bytes at 40 % of the speed. A quiet day has no others,
and takes a quarter of a second longer."""

FIRST_LITERALS = 16 << 20
"""Bytes of a session's literals that are compressed better than those behind them."""

SPEEDS = {1: 203, 3: 143, 6: 59, 12: 18}
"""Levels, and how many MB/s of a system's files each compressed with long distance matching: what
counts is how they compare."""

LEAST = 128 << 10
"""Literals in a frame that says something of a level."""

FRAMES = 3
"""That must agree where it is not plain."""

PLAINLY = 2.0

_KEPT = 0.7
"""Of what earlier frames said, per frame."""

_LEVELS = tuple(SPEEDS)


class Pace:
    """The level of one disk's stream. Not thread-safe."""

    def __init__(self, level: int = 0) -> None:
        """`level` is one that other disks of the same line came to, 0 where none did."""
        self._level = level
        """0: nobody has told anything that asks for another one."""
        self._literals = 0
        self._made_s = 0.0
        self._took_s = 0.0
        self._frames = 0
        self.last = (FIRST_LEVEL, 0)
        """Level and literal bytes of the frame made last: what to tell `came_back`."""

    @property
    def chosen(self) -> int:
        """What times asked for, 0 while they asked for nothing."""
        return self._level

    def level_for(self, length: int) -> int:
        """The level for the next `length` bytes of literals."""
        self._literals += length
        usual = FIRST_LEVEL if self._literals <= FIRST_LITERALS else LEVEL
        self.last = (self._level or usual, length)
        return self.last[0]

    def came_back(
        self, frame: tuple[int, int], made_s: float, took_s: float, *, is_line: bool
    ) -> None:
        """A frame (`last`, when it was made) took `made_s` to make, and then `took_s` until the
        target had it, not counting what it waited for earlier ones. `is_line`: the line was the
        brake of it, not the target."""
        level, literals = frame
        if level != self.last[0] or literals < LEAST:
            return
        self._made_s = self._made_s * _KEPT + made_s
        self._took_s = self._took_s * _KEPT + took_s
        self._frames += 1
        is_plain = made_s > PLAINLY * took_s and not is_line
        if self._frames >= FRAMES or is_plain:
            self._choose(level, is_line=is_line)

    def _choose(self, level: int, *, is_line: bool) -> None:
        made_s, took_s = self._made_s, self._took_s
        chosen = level
        if made_s > took_s:
            fitting = [n for n in _LEVELS if n < level and _scaled(made_s, level, n) <= took_s]
            chosen = max(fitting, default=_LEVELS[0])
        elif not is_line and level > LEVEL and 2 * made_s > took_s:
            chosen = LEVEL
        elif is_line:
            fitting = [n for n in _LEVELS if n >= level and 2 * _scaled(made_s, level, n) <= took_s]
            chosen = max(fitting, default=level)
            self._level = level if fitting else self._level  # not to be lowered behind the first
        if chosen != level:
            self._level = chosen
            self._made_s = self._took_s = 0.0
            self._frames = 0


class Paces:
    """What disks came to, by whom they were sent to, for the next ones to begin with: each that
    finds out by itself has sent some parts by then. Thread-safe."""

    def __init__(self) -> None:
        self._levels: dict[str, int] = {}

    def begun(self, peer: str) -> Pace:
        """For a disk to that peer."""
        return Pace(self._levels.get(peer, 0))

    def learned(self, peer: str, pace: Pace) -> None:
        """A frame of a disk to that peer came back."""
        if pace.chosen:
            self._levels[peer] = pace.chosen


def _scaled(made_s: float, level: int, other: int) -> float:
    """How long a frame would take at another level, were it all literals."""
    return made_s * SPEEDS[level] / SPEEDS[other]
