"""The stages between look-ups by name and the stream: each takes undecided pieces of a batch."""

from __future__ import annotations

from standby.wan import compressing
from standby.wan.batches import Batch
from standby.wan.references import Kind

SAMPLED_PIECES = 8
"""Pieces that are sent raw together: half of what zstd would decide about by itself."""

SLICE = 512
"""Bytes of each of these pieces that are tried."""

SHRINKS = 0.97
"""What does not shrink below this is sent raw: compressing it all would cost its CPU time for less
than 3 %."""


def keep_incompressible(batch: Batch) -> None:
    """Decide for RAW where a sample of neighbouring pieces does not shrink."""
    pieces = batch.undecided()
    for first in range(0, len(pieces), SAMPLED_PIECES):
        group = pieces[first : first + SAMPLED_PIECES]
        sample = batch.data[group, :SLICE].tobytes()
        if len(compressing.sampled(sample)) > len(sample) * SHRINKS:
            batch.kinds[group] = Kind.RAW
