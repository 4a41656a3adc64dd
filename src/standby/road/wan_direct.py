"""Parts of a disk that go between two accelerators as the batches of direct mode, and what others
would have come to that way."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from standby import digesting
from standby.clock import SYSTEM_CLOCK
from standby.road.batches import DATA, leaves_of_rows
from standby.road.packing import AutoPacking, Packer
from standby.road.wan_batches import Part, batch_of
from standby.wire.messages import Batch

SAMPLED = 64
PLACES = 8
SAVED_MORE = 26
"""Pieces in a row of each part that are compressed as direct mode would, from another of so many
places each time, to know what it would have sent. Alone they come out too high, for zstd does not
know what is in front of them: on 192 MiB of files of a system it saved a 26th more in whole batches
(67.6 MiB, not 72.5), which is added; where content compresses better this is too much, and so says
less for the accelerator. Short runs from all over a part came out 25 % too high."""

PARTS_FIRST, ONE_PART_IN = 32, 5
"""So many parts of a disk are all sampled, 256 MiB at most, then one in so many: a sample of each
took 6 % of what a disk that is known costs both accelerators."""


class DirectBatches:
    """Of one disk. `sent` may be called by another thread than the rest."""

    def __init__(self, virtual_size: int) -> None:
        self._virtual_size = virtual_size
        self._packer = Packer("fast")
        self._packing = AutoPacking()
        self._lock = threading.Lock()
        self._parts = 0
        self._samples = 0
        self._sampled = self._sampled_sent = 0
        self.sent_bytes = 0
        self.pieces = 0
        """That went directly."""
        self.estimated = 0
        """Bytes that everything would have come to directly: what did go, and samples."""

    def batch(self, part: Part) -> tuple[Batch, tuple[Any, ...]]:
        """The message that brings the part, and its payload."""
        rows, data = batch_of(part, self._virtual_size)
        leaves = leaves_of_rows(data, rows[rows[:, 2] == DATA, 1])
        self.pieces += len(part.offsets)
        with self._lock:
            packs, wants_sample = self._packing.should_pack, self._packing.wants_sample
        if not packs:
            if wants_sample:
                self._packed(part.data.reshape(-1)[: AutoPacking.SAMPLE])
            self.estimated += rows.nbytes + len(data)
            return Batch(len(rows), len(leaves), len(data)), (rows, leaves, data)
        began = SYSTEM_CLOCK.monotonic()
        frame = self._packer.pack(rows, data)
        with self._lock:
            self._packing.packed(len(data), len(frame), SYSTEM_CLOCK.monotonic() - began)
        self.estimated += len(frame)
        digest = digesting.leaves_digest(leaves)
        return Batch(len(rows), len(leaves), len(data), -1, "zstd", digest), (frame,)

    def _packed(self, chosen: npt.NDArray[np.uint8]) -> int:
        began = SYSTEM_CLOCK.monotonic()
        length = len(self._packer.pack(chosen))
        with self._lock:
            self._packing.packed(chosen.nbytes, length, SYSTEM_CLOCK.monotonic() - began)
        return length

    def sent(self, payload: tuple[Any, ...], seconds: float) -> None:
        """A batch went out, and kept its sender so long."""
        length = sum(memoryview(part).nbytes for part in payload)
        self.sent_bytes += length
        with self._lock:
            self._packing.sent(length, seconds)

    def sample(self, data: npt.NDArray[np.uint8]) -> None:
        """These pieces (n, PIECE) go another way."""
        self._parts += 1
        if self._parts > PARTS_FIRST and self._parts % ONE_PART_IN:
            self.estimated += data.nbytes * self._sampled_sent // self._sampled
            return
        place = self._samples * (PLACES // 2 + 1) % PLACES
        self._samples += 1
        start = max(0, min(len(data) * place // PLACES, len(data) - SAMPLED))
        chosen = data[start : start + SAMPLED]
        saved = max(0, chosen.nbytes - self._packed(chosen))
        sent = max(0, chosen.nbytes - saved - saved // SAVED_MORE)
        self._sampled += chosen.nbytes
        self._sampled_sent += sent
        self.estimated += sent * len(data) // len(chosen)
