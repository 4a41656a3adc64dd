"""The target proxy's station: receive batches, write the partial disk, prove what was written.

One disk is one task and one thread that writes, with others beside it: where the bytes travel on
the link one takes the next frames in (read_ahead.py); one commits what came
before (RULES 7), so that receiving waits for no sync; one reads the last commit's extents back,
through a second, read-only open of the file, and compares them leaf by leaf with what was logged
(RULES 9).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from standby.clock import SYSTEM_CLOCK
from standby.digesting import LEAVES_PER_PAGE
from standby.errors import LinkError, ProtocolError, StandbyError, VerifyFailed, error_to_wire
from standby.road.batches import DATA, parsed_batch
from standby.road.group_commits import Committer, Taken, cause_first
from standby.road.packing import Unpacker
from standby.road.partial import PartialDisk
from standby.road.read_ahead import ReadAhead
from standby.road.tree_nodes import TreeAnswers
from standby.wire.link import Link
from standby.wire.messages import (
    Acknowledged,
    Attach,
    Batch,
    Failed,
    Finish,
    Finished,
    GetLeaves,
    GetNodes,
    Leaves,
    Mark,
    Nodes,
    Resend,
    SlotFree,
)
from standby.wire.shared_memory import SharedRing

GET_LEAVES_MAX = 64


@dataclass(slots=True)
class ReceiveCounters:
    """What one task did, bytes; `busy_s` seconds by station."""

    written: int = 0
    zeroed: int = 0
    resent_blocks: int = 0
    busy_s: dict[str, float] = field(default_factory=dict)


class TargetProxy:
    """Receives one disk from a data link into a partial disk."""

    def __init__(
        self,
        task: str,
        replica: str,
        partial: PartialDisk,
        virtual_size: int,
        link: Link,
        ring: SharedRing | None,
        *,
        verify_writes: str = "cache",
        check_lease: Callable[[], None] | None = None,
    ) -> None:
        """`check_lease` raises Fenced once somebody took over; asked at every group commit."""
        self.counters = ReceiveCounters()
        self._task = task
        self._replica = replica
        self._partial = partial
        self._virtual_size = virtual_size
        self._link = link
        self._ring = ring
        self._check_lease = check_lease
        self._device = verify_writes == "device"
        self._unpacker = Unpacker(link.peer)
        self._committer = Committer(f"{task} commits")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix=f"{task} read-back")
        self._checks: list[Future[list[tuple[int, int]]]] = []
        self._busy = {"target": 0.0, "verify": 0.0}

    def run(self) -> ReceiveCounters:
        """Receive until the source is done; on an error the source is told and everything
        acknowledged stays for a resume."""
        try:
            message, _ = self._link.receive()
            if not isinstance(message, Attach) or message.task != self._task:
                raise ProtocolError(self._link.peer, f"expected task {self._task}, got {message}")
            if self._ring is None:
                with contextlib.closing(ReadAhead(self._link)) as ahead:
                    self._receive_all(ahead)
            else:
                self._receive_all(self._link)
        except BaseException as exc:
            if isinstance(exc, LinkError):
                self._keep_received()
            if not isinstance(exc, LinkError) or isinstance(exc, ProtocolError):
                try:
                    self._link.send(Failed(0, error_to_wire(exc, "target")))
                except StandbyError:
                    pass
            raise
        finally:
            self._committer.close()
            self._reader.shutdown(wait=True)
        self.counters.busy_s = dict(self._busy)
        return self.counters

    def _receive_all(self, incoming: Link | ReadAhead) -> None:
        resends = 0
        while True:
            message, payload = incoming.receive()
            self._committer.check()
            if isinstance(message, Batch):
                started = SYSTEM_CLOCK.monotonic()
                with cause_first(self._committer):
                    self._write(message, payload)
                if self._partial.should_commit():
                    self._begin_commit()
                self._busy["target"] += SYSTEM_CLOCK.monotonic() - started
            elif isinstance(message, Mark):
                self._partial.mark(message.offset)
            elif isinstance(message, GetNodes):
                children = self._tree.children(message.level, message.numbers)
                self._link.send(Nodes(len(message.numbers)), *children)
            elif isinstance(message, GetLeaves):
                self._send_leaves(message.pages)
            elif isinstance(message, Finish):
                self._begin_commit(threads=2)  # nobody else needs the processors now
                self._committer.wait()
                bad = [item for check in self._checks for item in check.result()]
                self._checks.clear()
                if not bad:
                    self._link.send(Finished(self.counters.written, self.counters.zeroed))
                    return
                resends += 1
                self.counters.resent_blocks += len(bad)
                if resends > 1:
                    raise VerifyFailed(self._replica, self._task, bad[0][0])
                self._link.send(Resend(bad))
            else:
                raise ProtocolError(self._link.peer, f"unexpected {type(message).__name__}")

    def _write(self, message: Batch, payload: memoryview) -> None:
        slot = None
        if message.slot >= 0:
            if self._ring is None or message.slot >= self._ring.count:
                raise ProtocolError(self._link.peer, f"no shared slot {message.slot}")
            slot = self._ring.slot(message.slot)
        if message.packing == "zstd":
            payload = memoryview(self._unpacker.unpack(payload))
        elif message.packing:
            raise ProtocolError(self._link.peer, f"unknown packing {message.packing!r}")
        batch = parsed_batch(message, payload, slot, self._virtual_size, self._link.peer)
        self._partial.receive(batch.rows, batch.leaves, batch.data)
        if message.slot >= 0:
            self._link.send(SlotFree(message.slot))
        self.counters.written += message.data_length
        self.counters.zeroed += int(batch.rows[batch.rows[:, 2] != DATA, 1].sum())

    def _begin_commit(self, threads: int = 1) -> None:
        """Commit what was received so far beside what is received next, then read it back. Waits
        for the commit before: what is not acknowledged stays bounded."""
        self._committer.wait()
        if self._check_lease is not None:
            self._check_lease()
        taken, written = self._partial.take(), self.counters.written
        self._committer.begin(lambda: self._commit(taken, written, threads))

    def _keep_received(self) -> None:
        """The link is gone: commit what came over it, so that it is not sent again. Where that is
        not to be (fenced, closed meanwhile, a full disk) the link's end stays the error."""
        with contextlib.suppress(StandbyError):
            self._begin_commit()
            self._committer.wait()

    def _commit(self, taken: Taken, written: int, threads: int) -> None:
        self._partial.commit(taken)
        with contextlib.suppress(LinkError):  # whoever receives learns that the link is gone
            self._link.send(Acknowledged(written))
        self._checks.append(self._reader.submit(self._read_back, threads))

    def _read_back(self, threads: int) -> list[tuple[int, int]]:
        started = SYSTEM_CLOCK.monotonic()
        bad = self._partial.read_back(threads=threads, device=self._device)
        self._busy["verify"] += SYSTEM_CLOCK.monotonic() - started
        return bad

    @functools.cached_property
    def _tree(self) -> TreeAnswers:
        return TreeAnswers(self._partial.baseline, self._virtual_size, self._link.peer)

    def _send_leaves(self, pages: list[int]) -> None:
        if not 0 < len(pages) <= GET_LEAVES_MAX:
            raise ProtocolError(self._link.peer, f"leaves of {len(pages)} pages asked for")
        leaves = np.stack([self._partial.baseline.leaves(page) for page in pages])
        assert leaves.shape == (len(pages), LEAVES_PER_PAGE)
        self._link.send(Leaves(len(pages)), leaves)
