"""The ways over a pair of WAN accelerators, and mode auto, on lines of several speeds.

    python bench/wan_modes.py [--small] [--json] [--turns N] [--in FOLDER]

Source and target are processes with the stations of a disk task (`road.source_wan`,
`road.target_wan`), a cache and a newest restore point; what the proxies do beside them (reading a
disk, writing one) is left out. Between them is a process that passes so many bytes per second on,
20 ms late either way, or nothing. Three transfers of the disks of `bench/wan_disks.py` (small, or
full size):

    new        a web server; nothing is known
    known      the same content from a VM nobody has seen; all of it is in the cache
    patched    its patch day; the day before went over the pair

On slow lines a part of the disk is sent: what takes direct batches some 15 s. Every byte that
arrives is compared. Bytes are those of the connection between the two, either way; times are from
the first batch to the target's last word. The claim is mode auto over the fastest of the others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import shutil
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import wan_disks
from standby import digesting
from standby.road.source_wan import SourceWan
from standby.road.target_wan import TargetWan
from standby.road.wan_cache import CachedContent, Caching
from standby.road.wan_choosing import Way
from standby.road.wan_newest import NO_POINT, NewestPoint
from standby.units import GiB, KiB, MiB
from standby.wan.cache import GlobalCache
from standby.wan.limits import Limits
from standby.wan.references import PIECE
from standby.wan.remembering import SourceMemory
from standby.wan.table import LookupTable
from standby.wire.link import Link
from standby.wire.messages import Attach, Batch, Finish, Finished
from timing import Claim, Report, arguments, run_bench, say
from wan_bytes import Disk

KEY = bytes(range(32))
LIMITS = Limits(16 * GiB, 256 * MiB, keep_free_bytes=0)
INDEX_BYTES = 256 * MiB
STORE_BYTES = 256 * MiB
WINDOW_LOG = 27
DELAY_S = 0.02
LINES = {"10 Mbit/s": 1.25e6, "100 Mbit/s": 12.5e6, "1 Gbit/s": 125e6, "loopback": 0.0}
DIRECT_S = 15.0
BATCH = 1024
"""Pieces of a batch of a source proxy: 4 MiB."""

MODES = (*Way, "auto")
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Transfer:
    """Pieces of a disk that are to be sent, of a replica, beside what the target has of it."""

    name: str
    disk: Disk
    numbers: np.ndarray
    replica: str
    before: Disk | None = None


class Image:
    """A raw image as the target's newest point."""

    def __init__(self, disk: Disk) -> None:
        self.virtual_size = disk.size
        self._content = disk.content

    def read_into(self, offset: int, buffer: Any) -> None:
        """See holding.Reader."""
        memoryview(buffer)[:] = memoryview(self._content[offset : offset + len(buffer)])


def feed(link: Link, transfer: Transfer) -> None:
    """The source proxy: the pieces, in batches."""
    for start in range(0, len(transfer.numbers), BATCH):
        numbers = transfer.numbers[start : start + BATCH]
        data = transfer.disk.pieces(numbers)
        first = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
        counts = np.diff(first, append=len(numbers))
        rows = np.stack((numbers[first] * PIECE, counts * PIECE, np.ones_like(first)), 1)
        leaves = digesting.leaves(data.reshape(-1))
        link.send(Batch(len(rows), len(leaves), data.nbytes), rows, leaves, data)
    link.send(Finish())


def send(
    near: socket.socket, transfer: Transfer, mode: str, memory: SourceMemory
) -> dict[str, Any]:
    """The source's side; what became of it."""
    ours, theirs = socket.socketpair()
    proxy, far = Link(ours, "accelerator"), Link(near, "target")
    held = memory.disk(KEY, transfer.replica, "disk", transfer.disk.size)
    station = SourceWan(
        "task", Link(theirs, "proxy"), far, KEY, transfer.disk.size, WINDOW_LOG, mode, held,
        transfer.name,
    )  # fmt: skip
    feeding = threading.Thread(target=feed, args=(proxy, transfer))
    saying = threading.Thread(target=_until_finished, args=(proxy,))
    began = time.perf_counter()
    feeding.start()
    saying.start()
    station.run()
    saying.join()
    took_s = time.perf_counter() - began
    feeding.join()
    if held is not None:
        held.close()
    return {
        "s": took_s,
        "bytes": far.sent_bytes + far.received_bytes,
        "pieces": station.pieces,
        "mode": station.mode,
        "cpu_s": station.cpu_s,
    }


def _until_finished(proxy: Link) -> None:
    while not isinstance(proxy.receive()[0], Finished):
        pass


def receive(near: socket.socket, transfer: Transfer, folder: Path) -> None:
    """The target's side; compares what arrives."""
    ours, theirs = socket.socketpair()
    point = NO_POINT
    if transfer.before is not None:
        point = NewestPoint("before", Image(transfer.before))  # type: ignore[arg-type]
    elif transfer.replica == "web":
        point = NewestPoint("")
    with GlobalCache(folder, LIMITS) as cache:
        namespace = cache.namespace(KEY)
        content, caching = CachedContent(namespace), Caching(namespace)
        station = TargetWan(
            "task", Link(near, "source"), Link(theirs, "target"), KEY, transfer.disk.size,
            WINDOW_LOG, content, caching, asks=True, newest=point,
        )  # fmt: skip
        target = threading.Thread(target=_take, args=(Link(ours, "accelerator"), transfer))
        target.start()
        station.run()
        target.join()
        caching.end()
        content.close()


def _take(link: Link, transfer: Transfer) -> None:
    from standby.road.batches import parsed_batch
    from standby.road.packing import Unpacker

    unpacker = Unpacker("accelerator")
    assert isinstance(link.receive()[0], Attach)
    came = 0
    while True:
        message, payload = link.receive()
        if isinstance(message, Finish):
            break
        assert isinstance(message, Batch)
        if message.packing:
            payload = memoryview(unpacker.unpack(payload))
        batch = parsed_batch(message, payload, None, transfer.disk.size, "accelerator")
        at = 0
        for offset, length, kind in batch.rows.tolist():
            right = transfer.disk.content[offset : offset + length]
            if kind:
                assert batch.data[at : at + length] == memoryview(right), "other bytes arrived"
                at += length
            else:
                assert not right.any(), "zeros arrived"
            came += length
    assert came == len(transfer.numbers) * PIECE, "not everything arrived"
    link.send(Finished(came, 0))


# --- the line --------------------------------------------------------------------------------


def carry(near: socket.socket, far: socket.socket, rate_bps: float) -> None:
    """Both directions of a line until both ended."""
    ways = [
        threading.Thread(target=_carry_one, args=(one, other, rate_bps))
        for one, other in ((near, far), (far, near))
    ]
    for way in ways:
        way.start()
    for way in ways:
        way.join()


def _carry_one(source: socket.socket, target: socket.socket, rate_bps: float) -> None:
    under_way: deque[tuple[float, bytes]] = deque()
    changed = threading.Condition()

    def deliver() -> None:
        while True:
            with changed:
                changed.wait_for(lambda: under_way)
                at, data = under_way.popleft()
            time.sleep(max(0.0, at - time.monotonic()))
            with contextlib.suppress(OSError):
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)

    delivering = threading.Thread(target=deliver)
    delivering.start()
    free_at = time.monotonic()
    while True:
        data = b""
        with contextlib.suppress(OSError):
            data = source.recv(int(min(256 * KiB, max(4 * KiB, rate_bps / 100))))
        free_at = max(free_at, time.monotonic()) + len(data) / rate_bps
        time.sleep(max(0.0, free_at - time.monotonic()))
        with changed:
            under_way.append((free_at + DELAY_S, data))
            changed.notify()
        if not data:
            break
    delivering.join()


def connected() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection on this machine, with buffers as small as a line's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * KiB)
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * KiB)
        one.connect(listener.getsockname())
        return one, listener.accept()[0]


@contextlib.contextmanager
def process(work: Callable[..., None], *given: Any) -> Iterator[None]:
    """`work` beside the block, in another process."""
    beside = FORK.Process(target=work, args=given)
    beside.start()
    try:
        yield
        beside.join(600)
    finally:
        if beside.is_alive():
            beside.terminate()
        beside.join()
    if beside.exitcode:
        raise SystemExit(f"{work.__name__} ended with {beside.exitcode}")


def measured(
    transfer: Transfer, mode: str, rate_bps: float, memory: SourceMemory, cache: Path, work: Path
) -> dict[str, Any]:
    """One transfer; memory and cache are as before after it."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(cache, work)
    near, other = connected()
    far, last = connected() if rate_bps else (near, other)
    told, telling = FORK.Pipe()

    def source() -> None:
        telling.send(send(near, transfer, mode, memory))

    with contextlib.ExitStack() as stack:
        stack.enter_context(process(receive, last, transfer, work))
        if rate_bps:
            stack.enter_context(process(carry, other, far, rate_bps))
        stack.enter_context(process(source))
        for end in (near, other, far, last):
            end.close()
        if not told.poll(600):
            raise SystemExit("nothing came back")
        found: dict[str, Any] = told.recv()
    return found


# --- what is known before --------------------------------------------------------------------


def primed(web: Disk, folder: Path) -> SourceMemory:
    """A memory and a cache behind the first transfer of the web server."""
    memory = SourceMemory(LookupTable, INDEX_BYTES, STORE_BYTES)
    first = Transfer("before", web, web.stored(), "web")
    near, far = socket.socketpair()
    with process(receive, far, first, folder):
        send(near, first, "full", memory)
        far.close()
    return memory


def limited(numbers: np.ndarray, rate_bps: float) -> np.ndarray:
    """As many as direct batches need DIRECT_S for, about, from the middle."""
    count = int(rate_bps * DIRECT_S * 3) // PIECE if rate_bps else len(numbers)
    start = max(0, (len(numbers) - count) // 2)
    return numbers[start : start + count]


def bench(folder: Path, report: Report, options: argparse.Namespace) -> None:
    """Measure in `folder`."""
    made = wan_disks.disks(wan_disks.SMALL if options.small else wan_disks.FULL)
    web, patched = (Disk(made.path(state)) for state in ("web", "patched"))
    empty = folder / "empty"
    empty.mkdir()
    nothing = SourceMemory(LookupTable, INDEX_BYTES, STORE_BYTES)
    say("the day before")
    memory = primed(web, folder / "cache")
    for line, rate_bps in LINES.items():
        stored = limited(web.stored(), rate_bps)
        changed = limited(patched.changed_since(web), rate_bps)
        transfers = (
            (Transfer("new", web, stored, "web"), nothing, empty),
            (Transfer("known", web, stored, "other"), nothing, folder / "cache"),
            (Transfer("patched", patched, changed, "web", web), memory, folder / "cache"),
        )
        for transfer, known, cache in transfers:
            found: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
            for turn in range(options.turns):
                for mode in MODES:
                    say(f"{line}, {transfer.name}, {mode}, turn {turn + 1}")
                    told = measured(transfer, mode, rate_bps, known, cache, folder / "work")
                    found[mode].append(told)
            _report(report, line, transfer, found)


def _report(
    report: Report, line: str, transfer: Transfer, found: dict[str, list[dict[str, Any]]]
) -> None:
    total = len(transfer.numbers) * PIECE
    times = {mode: statistics.median(told["s"] for told in many) for mode, many in found.items()}
    best = min(times[way] for way in Way)
    for mode, many in found.items():
        last = many[-1]
        report.rows.append(
            {
                "line": line,
                "transfer": transfer.name,
                "mode": mode,
                "changed MB": round(total / 1e6, 1),
                "wire MB": round(last["bytes"] / 1e6, 3),
                "s": round(times[mode], 3),
                "MB/s": round(total / times[mode] / 1e6, 1),
                "CPU s": round(last["cpu_s"], 2),
                "as": last["mode"],
                "pieces": json.dumps(last["pieces"]).strip("{}").replace('"', ""),
            }
        )
    ratios = [
        auto["s"] / min(found[way][n]["s"] for way in Way) for n, auto in enumerate(found["auto"])
    ]
    report.claims.append(
        Claim(
            f"{line}, {transfer.name}: time of auto over the best way",
            times["auto"] / best,
            1.05,
            spread=(min(ratios), max(ratios)),
        )
    )


if __name__ == "__main__":
    sys.exit(run_bench("modes over WAN accelerators", arguments(__doc__, turns=3), bench))
