"""What a cache may take of disk and memory."""

from __future__ import annotations

from dataclasses import dataclass

from standby.errors import ConfigurationError
from standby.units import GiB, MiB, format_bytes
from standby.wan.table import BUDGET_MIN

SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX = 64 * MiB, 256 * MiB
SEGMENTS_MIN = 4
"""A limit is worth at least so many segments: one is open, one is room for what is copied."""
LIMIT_MIN = 4 * MiB
"""A segment of a fourth of that takes any record."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a cache may take."""

    limit_bytes: int
    index_bytes: int
    """Memory of the lookup table."""
    facts_bytes: int = 64 * MiB
    """Memory of segments' directories and names, read again when asked for beyond that."""
    segment_bytes: int = 0
    """Size of one segment; 0 chooses 64 to 256 MiB by the limit, less where that is small."""
    keep_free_bytes: int = GiB
    """Nothing is taken in while the file system has less room than that."""

    def segment_size(self) -> int:
        """Size of one segment; raises ConfigurationError for limits that are too small."""
        if self.index_bytes < BUDGET_MIN:
            raise ConfigurationError(
                "global cache",
                f"{format_bytes(self.index_bytes)} of memory for the index",
                f"It needs {format_bytes(BUDGET_MIN)} at least",
            )
        if self.limit_bytes < LIMIT_MIN:
            raise ConfigurationError(
                "global cache",
                f"a limit of {format_bytes(self.limit_bytes)}",
                f"It needs {format_bytes(LIMIT_MIN)} at least",
            )
        size = self.segment_bytes or min(
            SEGMENT_BYTES_MAX, max(SEGMENT_BYTES_MIN, self.limit_bytes // 64)
        )
        return max(MiB, min(size, self.limit_bytes // SEGMENTS_MIN))
