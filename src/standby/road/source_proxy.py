"""The source proxy's station: read a disk under its checkpoint, find what changed, send it.

One disk is one task. Scanning threads (`scanning`) take pages of 16 MiB in ascending order and send
batches as they fill. What the baseline is decides what a change is:

* `none`: nothing is at the target; whatever is not zero is a change.
* `repository`: the repository's leaves of the newest point, trusted because their root is the one
  the target told (RULES 6).
* `target`: nothing trusted on this side (first use, seed, lost metadata, a resumed transfer):
  compared with the digest tree of what the target holds, from the root down (`tree_scanning`).

New leaves are staged in the repository as they are computed.
"""

from __future__ import annotations

import functools
import queue
import socket
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from standby import comparing, digesting
from standby.clock import SYSTEM_CLOCK
from standby.digesting import LEAVES_PER_PAGE, PAGE, PIECE
from standby.disk.vhdx import default_block_size
from standby.errors import LinkError, ProtocolError, StandbyError, error_from_wire
from standby.model.extent import Extent, Kind
from standby.ports import VirtualDisk
from standby.road.batches import BatchBuilder, LeafArray
from standby.road.packing import AutoPacking, Packer, packer_for
from standby.road.scan_ranges import PageNumbers
from standby.road.scanning import (
    READ_SIZE,
    Change,
    PageLookup,
    PageScanner,
    SendTask,
    StoredLeaves,
)
from standby.road.tree_nodes import Children, unpacked_children
from standby.road.tree_scanning import TreeScan
from standby.units import MiB
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
    Message,
    Nodes,
    Resend,
    SlotFree,
)
from standby.wire.shared_memory import SharedRing


@dataclass(slots=True)
class SendCounters:
    """What one task did, bytes; `busy_s` seconds of its threads by station. `blocks`, of a task
    that only counts: how many blocks of the size that a point's layers have a change lies in."""

    read: int = 0
    skipped: int = 0
    changed: int = 0
    zeroed: int = 0
    sent: int = 0
    resent: int = 0
    acknowledged: int = 0
    blocks: int = 0
    busy_s: dict[str, float] = field(default_factory=dict)


BATCH_SIZE = 4 * MiB
PAGES_AT_A_TIME = 8
"""Pages a thread takes at once: 128 MiB of disk, so that threads rarely meet and each reads a long
run of the file. Towards the end it is fewer, so that all threads end together."""

MARK_EVERY = 256 * MiB
"""Of disk: what a session that resumes reads again at most, beside what is under way."""

_PAGES_FOR_A_THREAD = 4
"""Pages that are worth a further thread."""


class SourceProxy:
    """Runs one SendTask over a data link."""

    keeps = True
    """Whether scanners collect what changed, to be sent."""

    def __init__(self, task: SendTask, link: Link, ring: SharedRing | None) -> None:
        if task.compression == "auto" and link.is_local:
            # Packing and unpacking would take the processor from the very work that is waited for.
            task = replace(task, compression="none")
        self.task = task
        self.counters = SendCounters()
        self._link = link
        self._ring = ring if task.compression == "none" else None
        self._auto = AutoPacking(task.threads) if task.compression == "auto" else None
        self._lock = threading.Lock()
        self._stage_lock = threading.Lock()
        self._busy = {"source": 0.0, "proxy": 0.0, "network": 0.0}
        self._failure: BaseException | None = None
        self._free_slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Message, bytes]] = queue.SimpleQueue()
        self._ends: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.changes: Mapping[int, Change] = {}
        """Of the pages that are scanned, those that were compared already."""
        self._stop = task.disk.virtual_size
        self._tree: TreeScan | None = None
        self._in_flight: dict[int, int] = {}
        self._next_group = 0
        self._pages: PageNumbers = np.empty(0, np.int64)
        self._marked = task.resume_mark
        self._scanners: list[PageScanner] = []

    # --- the whole task ----------------------------------------------------------------------

    def run(self) -> SendCounters:
        """Send everything; returns when the target has committed and read back all of it."""
        task = self.task
        if self._ring is not None:
            for index in range(self._ring.count):
                self._free_slots.put(index)
        else:
            self._make_private_slots(self.task.threads * 2, 2 * BATCH_SIZE)
        receiver = threading.Thread(target=self._receive, name=f"{task.task} answers", daemon=True)
        self._link.send(Attach(task.task))
        receiver.start()
        try:
            if task.baseline == "target":
                self._tree = TreeScan(self, self._candidate_pages())
                self._tree.run()
            else:
                self._pages = self._candidate_pages()
                self._run_scanners()
            self._finish()
        except BaseException:
            self._link.shutdown()
            raise
        finally:
            receiver.join(timeout=10)
        self.counters.busy_s = dict(self._busy)
        return self.counters

    def progress(self) -> tuple[int, int, int, int]:
        """(bytes of disk scanned, bytes to scan), by whole pages, bytes sent, by batches, and bytes
        read."""
        read = self.counters.read + sum(scanner.read for scanner in list(self._scanners))
        if self._tree is not None:
            return self._tree.done, self.task.disk.virtual_size, self.counters.sent, read
        return self._next_group * PAGE, len(self._pages) * PAGE, self.counters.sent, read

    def _make_private_slots(self, count: int, size: int) -> None:
        self._private = [comparing.aligned_buffer(size) for _ in range(count)]
        for index in range(count):
            self._free_slots.put(index)

    def _finish(self) -> None:
        if self.task.staging is not None:
            self.task.staging.sync()
        for _ in range(3):
            self._link.send(Finish())
            end = self._ends.get()
            if isinstance(end, Finished):
                return
            if isinstance(end, Resend):
                self._resend([(int(offset), int(length)) for offset, length in end.ranges])
                continue
            self._raise_failure()
        raise ProtocolError(self._link.peer, "asked for the same blocks again and again")

    def _raise_failure(self) -> None:
        failure = self._failure or LinkError(self._link.peer, "ended without an answer")
        raise failure

    # --- what the target says ----------------------------------------------------------------

    def _receive(self) -> None:
        try:
            while True:
                message, payload = self._link.receive()
                if isinstance(message, SlotFree):
                    self._free_slots.put(message.slot)
                elif isinstance(message, Acknowledged):
                    self.counters.acknowledged = message.written
                elif isinstance(message, Leaves | Nodes):
                    self._answers.put((message, bytes(payload)))
                elif isinstance(message, Failed):
                    raise error_from_wire(message.error)
                elif isinstance(message, Finished | Resend):
                    self._ends.put(message)
                    if isinstance(message, Finished):
                        return
                else:
                    raise ProtocolError(self._link.peer, f"unexpected {type(message).__name__}")
        except StandbyError as exc:
            self._failure = exc
            failed = Failed(0, {})
            for _ in range(self.task.threads + 1):
                self._free_slots.put(-1)
                self._answers.put((failed, b""))
            self._ends.put(failed)

    def _ask(self, question: Message) -> tuple[Message, bytes]:
        """Send a question and wait for its answer; callers hold `_lock`."""
        self._link.send(question)
        message, payload = self._answers.get()
        if isinstance(message, Failed):
            self._raise_failure()
        return message, payload

    def children(self, level: int, numbers: Sequence[int]) -> Children:
        """The children of these nodes of the target's tree: (n, 64, 16), leaves (n, 64)."""
        with self._lock:
            message, payload = self._ask(GetNodes(level, list(numbers)))
        if not isinstance(message, Nodes) or message.count != len(numbers):
            raise ProtocolError(self._link.peer, "an answer to other nodes")
        return unpacked_children(level, message.count, payload, self._link.peer)

    def fetch_leaves(self, pages: Sequence[int]) -> LeafArray:
        """(n, 4096): the target's leaves of at most 64 pages."""
        with self._lock:
            _, payload = self._ask(GetLeaves(list(pages)))
        if len(payload) != len(pages) * LEAVES_PER_PAGE * 8:
            raise ProtocolError(self._link.peer, "leaves of a wrong length")
        return np.frombuffer(payload, np.uint64).reshape(-1, LEAVES_PER_PAGE)

    def check(self) -> None:
        """Raise what ended the task, if anything did."""
        if self._failure is not None:
            self._raise_failure()

    @functools.cached_property
    def stored_index(self) -> PageLookup:
        """What the repository has, of a task whose baseline is the target."""
        return PageLookup(self.task.stored)

    # --- which pages -------------------------------------------------------------------------

    def _candidate_pages(self) -> PageNumbers:
        """Pages that hold stored bytes now or a non-zero page in a baseline, ascending."""
        task = self.task
        last = -(-task.disk.virtual_size // PAGE)
        found: list[PageNumbers] = []
        if task.candidates is not None:
            for extent in task.candidates:
                found.append(np.arange(extent.offset // PAGE, -(-extent.stop // PAGE)))
        else:
            for extent in task.disk.extents():
                if extent.kind == Kind.DATA:
                    found.append(np.arange(extent.offset // PAGE, -(-extent.stop // PAGE)))
            if task.stored is not None:
                found.append(self._stored_pages())
        if not found:
            return np.empty(0, np.int64)
        pages: PageNumbers = np.unique(np.concatenate(found).astype(np.int64))
        return pages[(pages >= task.resume_mark // PAGE) & (pages < last)]

    def _stored_pages(self) -> PageNumbers:
        if self.task.baseline == "target":
            return self.stored_index.numbers
        assert self.task.stored is not None
        return self.task.stored.index()[0]

    def _take_group(self, worker: int) -> PageNumbers:
        with self._lock:
            first = self._next_group
            fair = (len(self._pages) - first) // (2 * self.task.threads)
            group = self._pages[first : first + min(max(fair, 1), PAGES_AT_A_TIME)]
            self._next_group = first + len(group)
            if len(group):
                self._in_flight.setdefault(worker, int(group[0]))
            return group

    # --- scanning ----------------------------------------------------------------------------

    def send_pages(self, pages: PageNumbers, stop: int, changes: Mapping[int, Change]) -> None:
        """Scan these pages (ascending), of those in `changes` just that; everything else below
        `stop` is done then."""
        self._pages, self._next_group = pages, 0
        self._stop, self.changes = stop, changes
        self._run_scanners()

    def _run_scanners(self) -> None:
        threads = max(1, min(self.task.threads, -(-len(self._pages) // _PAGES_FOR_A_THREAD)))
        if self.task.baseline == "none" and self.task.compression == "none":
            # All of it is written at the target, which takes longer than reading it: a second
            # reader only takes the processor from the writer (2.1 against 1.9 s on two cores).
            threads = 1
        with ThreadPoolExecutor(threads, thread_name_prefix=self.task.task) as pool:
            workers = [pool.submit(self._scan, number) for number in range(threads)]
        for worker in workers:
            worker.result()

    def _scan(self, worker: int) -> None:
        try:
            scanner = PageScanner(self, worker)
            self._scanners.append(scanner)
            while self._failure is None:
                group = self._take_group(worker)
                if len(group) == 0:
                    break
                scanner.scan(group)
            if self._failure is not None:
                self._raise_failure()
            scanner.close()
            self._scanners.remove(scanner)  # its tally is among the counters
        except BaseException as exc:
            if self._failure is None:
                self._failure = exc
            for _ in range(self.task.threads):
                self._free_slots.put(-1)
            raise

    def take_slot(self) -> tuple[int, memoryview]:
        """A free slot; waits for the target, which is the back-pressure."""
        started = SYSTEM_CLOCK.monotonic()
        index = self._free_slots.get()
        self.account("network", SYSTEM_CLOCK.monotonic() - started)
        if index < 0:
            self._raise_failure()
        if self._ring is not None:
            return index, self._ring.slot(index)
        return index, self._private[index].data

    def account(self, station: str, seconds: float) -> None:
        with self._lock:
            self._busy[station] += seconds

    def give_slot_back(self, index: int) -> None:
        """A slot that was not sent may be filled again."""
        self._free_slots.put(index)

    def send(self, builder: BatchBuilder, slot: int, packer: Packer | None) -> None:
        """Send what `builder` collected; the slot belongs to the target until it says otherwise."""
        rows, leaves = builder.tables()
        data = builder.slot[: builder.filled]
        peer_waited_s = self._link.peer_waits_s() if self._auto is not None else 0.0
        started = SYSTEM_CLOCK.monotonic()
        if packer is not None and self._should_pack(packer, data):
            frame = packer.pack(rows, data)
            packed = SYSTEM_CLOCK.monotonic()
            self.account("proxy", packed - started)
            self._tell_packed(len(data), len(frame), packed - started)
            started = packed
            digest = digesting.leaves_digest(leaves)
            batch = Batch(len(rows), len(leaves), len(data), -1, "zstd", digest)
            self._link.send(batch, frame)
            sent = len(frame)
            self._free_slots.put(slot)
        elif self._ring is None:
            self._link.send(Batch(len(rows), len(leaves), len(data)), rows, leaves, data)
            sent = rows.nbytes + leaves.nbytes + len(data)
            self._free_slots.put(slot)
        else:
            self._link.send(Batch(len(rows), len(leaves), len(data), slot), rows, leaves)
            sent = rows.nbytes + leaves.nbytes + len(data)
        zeroed = int(rows[rows[:, 2] == 0, 1].sum())
        elapsed = SYSTEM_CLOCK.monotonic() - started
        # A target that writes slowly is no slow link: it would not take packed batches faster.
        peer_waited_s = self._link.peer_waits_s() - peer_waited_s if self._auto is not None else 0.0
        with self._lock:
            if self._auto is not None:
                self._auto.sent(sent, max(elapsed - peer_waited_s, elapsed / 16))
            self._busy["network"] += elapsed
            self.counters.sent += sent
            self.counters.changed += len(data) + zeroed
            self.counters.zeroed += zeroed

    def _should_pack(self, packer: Packer, data: memoryview) -> bool:
        """Whether the next batch is to be packed; now and then a piece of it is, to see."""
        if self._auto is None:
            return True
        with self._lock:
            wants_sample, should = self._auto.wants_sample, self._auto.should_pack
        if not wants_sample or not len(data):
            return should
        sample = data[: AutoPacking.SAMPLE]
        started = SYSTEM_CLOCK.monotonic()
        length = len(packer.pack(sample))
        self._tell_packed(len(sample), length, SYSTEM_CLOCK.monotonic() - started)
        with self._lock:
            return self._auto.should_pack

    def _tell_packed(self, length: int, packed_length: int, elapsed: float) -> None:
        if self._auto is not None:
            with self._lock:
                self._auto.packed(length, packed_length, elapsed)

    def page_done(self, worker: int, next_page: int | None) -> None:
        """Everything this worker scanned before `next_page` is sent and staged (None: everything
        it took); tells the target how far the whole disk is."""
        with self._lock:
            if next_page is None:
                self._in_flight.pop(worker, None)
            else:
                self._in_flight[worker] = next_page
            rest = self._pages[self._next_group :]
            pending = list(self._in_flight.values()) + ([int(rest[0])] if len(rest) else [])
            mark = min(pending) * PAGE if pending else self._stop
        self.tell_mark(mark)

    def tell_mark(self, mark: int) -> None:
        """Everything below `mark` is sent and staged."""
        with self._lock:
            if mark - self._marked < MARK_EVERY:
                return
            self._marked = mark
        if self.task.staging is not None:
            with self._stage_lock:
                self.task.staging.set_mark(self.task.checkpoint_id, mark)
                self.task.staging.sync()
        self._link.send(Mark(mark))

    def scanner_done(self, read: int, source_s: float, proxy_s: float) -> None:
        """A scanning thread's tally, once at its end."""
        with self._lock:
            self.counters.read += read
            self._busy["source"] += source_s
            self._busy["proxy"] += proxy_s

    def stage(self, pages: list[int], leaves: LeafArray) -> None:
        """Put new leaves of changed pages into the repository's staging."""
        if self.task.staging is not None and pages:
            with self._stage_lock:
                self.task.staging.put(pages, leaves)

    def _resend(self, ranges: list[tuple[int, int]]) -> None:
        """Read these ranges again and send them whole, whatever the baseline says."""
        builder = BatchBuilder(self.task.disk.virtual_size)
        packer = packer_for(self.task.compression)
        for offset, length in ranges:
            position = offset // PIECE * PIECE
            stop = min(offset + length, self.task.disk.virtual_size)
            while position < stop:
                slot, memory = self.take_slot()
                builder.begin(memory)
                size = min(BATCH_SIZE, stop - position)
                view = builder.tail(size)
                self.task.disk.read_into(position, view)
                pieces = -(-size // PIECE)
                leaves = np.empty(pieces, np.uint64)
                runs = np.empty((pieces, 3), np.int64)
                # Comparing with the complement of the true leaves makes every piece a change.
                digesting.leaves(view, leaves)
                count = comparing.scan(view, ~leaves, leaves, runs)
                builder.keep(position, size, runs[:count], leaves)
                self.send(builder, slot, packer)
                self.counters.resent += size
                position += size


class _CountingProxy(SourceProxy):
    """Finds what a SendTask would send, and sends nothing."""

    keeps = False

    def __init__(self, task: SendTask) -> None:
        ours, theirs = socket.socketpair()
        theirs.close()
        super().__init__(task, Link(ours, "nobody"), None)
        self._block_size = default_block_size(task.disk.virtual_size)
        count = -(-task.disk.virtual_size // self._block_size)
        self._steps: npt.NDArray[np.int32] = np.zeros(count + 1, np.int32)
        """By block: changes that begin in it less those that end in the one before."""

    def count(self) -> SendCounters:
        """Scan everything; the counters say what changed."""
        self._make_private_slots(self.task.threads, READ_SIZE)
        try:
            self._pages = self._candidate_pages()
            self._run_scanners()
        finally:
            self._link.close()
        self.counters.busy_s = dict(self._busy)
        self.counters.blocks = int(np.count_nonzero(np.cumsum(self._steps)))
        return self.counters

    def send(self, builder: BatchBuilder, slot: int, packer: Packer | None) -> None:
        rows, _ = builder.tables()
        with self._lock:
            np.add.at(self._steps, rows[:, 0] // self._block_size, 1)
            np.add.at(self._steps, (rows[:, 0] + rows[:, 1] - 1) // self._block_size + 1, -1)
            self.counters.changed += int(rows[:, 1].sum())
            self.counters.zeroed += int(rows[rows[:, 2] == 0, 1].sum())
        self.give_slot_back(slot)

    def page_done(self, worker: int, next_page: int | None) -> None:
        pass


def counted_changes(
    disk: VirtualDisk,
    stored: StoredLeaves | None,
    candidates: tuple[Extent, ...] | None,
    threads: int = 2,
) -> SendCounters:
    """What differs between `disk` and the stored leaves (None: zeros), read but not sent."""
    baseline = "none" if stored is None else "repository"
    task = SendTask("scan", disk, "", baseline, stored, None, candidates, 0, "none", threads)
    return _CountingProxy(task).count()
