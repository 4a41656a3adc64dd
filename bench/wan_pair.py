"""Figure 5: how fast a pair of WAN accelerators is, and how much several disks at once gain.

    python bench/wan_pair.py [--small] [--turns N] [--json] [--in FOLDER]

Two processes with the stations of disk tasks (`road.source_wan`, `road.target_wan`), TLS between
them over the loopback device; a third process plays the proxies over plain sockets: batches of
4 MiB of changed data in, the same out, every leaf compared. Content is files of this system
(programs and libraries, /usr/lib first). `known` has nine of ten MiB in the target's cache, which
is in its folder as always; `new` nothing, and caches all of it.

Speed is of changed data: on the wall, with the proxies' share of the machine's cores in it, and per
second of processor time of the busier accelerator ("a core each"), of both together ("one core").
The goals of figure 5 are for two cores that the pair has for itself: half of "one core" bounds what
two give, a core each what one disk's stations, which are threads of one process on either side,
can reach where Python's lock is no matter.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import shutil
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from standby import digesting
from standby.heap import keep_freed_memory
from standby.road.batches import parsed_batch
from standby.road.source_wan import SourceWan
from standby.road.target_wan import TargetWan
from standby.road.wan_cache import CachedContent, Caching
from standby.road.wan_choosing import Way
from standby.units import GiB, MiB
from standby.wan.cache import GlobalCache
from standby.wan.limits import Limits
from standby.wan.pacing import Paces
from standby.wire import authority, tls
from standby.wire.identity import IdentityFolder
from standby.wire.link import BETWEEN_MACHINES, Link
from standby.wire.messages import Attach, Batch, Finish, Finished
from timing import Claim, Report, arguments, run_bench, say

KEY = bytes(range(32))
LIMITS = Limits(16 * GiB, 256 * MiB, keep_free_bytes=0)
BATCH = 4 * MiB
WINDOW_LOG = 27
DISKS = 8
FULL, SMALL = 512 * MiB, 96 * MiB
KNOWN_GOAL, NEW_GOAL, DISKS_GOAL = 600, 120, 1.7
"""MB/s, MB/s, times."""


# --- the accelerators ------------------------------------------------------------------------


def source_process(control: Connection, folder: Path) -> None:
    """Entry of the source's accelerator: one turn after the other."""
    keep_freed_memory()
    identity = IdentityFolder(folder / "near")
    paces = Paces()
    while (told := control.recv()) is not None:
        address, disks, size = told
        with socket.create_server(("127.0.0.1", 0)) as server:
            control.send(server.getsockname())
            nears = [Link(server.accept()[0], "proxy", BETWEEN_MACHINES) for _ in range(disks)]
        fars = [tls.connect(address, identity, "far", "wan", role="wan") for _ in nears]
        before = time.process_time()

        stations = [
            SourceWan("task", near, far, KEY, size, WINDOW_LOG, Way.DIGEST, paces=paces)
            for near, far in zip(nears, fars, strict=True)
        ]
        with ThreadPoolExecutor(disks) as pool:
            list(pool.map(SourceWan.run, stations))
        sent = sum(link.sent_bytes for link in fars)
        for link in (*nears, *fars):
            link.close()
        control.send((time.process_time() - before, sent))


def target_process(control: Connection, folder: Path) -> None:
    """Entry of the target's accelerator. A turn begins with the cache as it was prepared."""
    keep_freed_memory()
    identity = IdentityFolder(folder / "far")
    while (told := control.recv()) is not None:
        cache_folder, target, disks, size = told
        with GlobalCache(cache_folder, LIMITS) as cache:
            cpu_s = _relayed(control, cache, identity, tuple(target), disks, size)
        control.send(cpu_s)


def _relayed(
    control: Connection,
    cache: GlobalCache,
    identity: IdentityFolder,
    target: tuple[str, int],
    disks: int,
    size: int,
) -> float:
    left, done = threading.Semaphore(0), threading.Semaphore(0)
    namespace = cache.namespace(KEY)

    def take(near: Link, _: tls.Peer) -> None:
        far = Link(socket.create_connection(target), "proxy", BETWEEN_MACHINES)
        content, caching = CachedContent(namespace), Caching(namespace)
        left.release()
        with near, far:
            TargetWan("task", near, far, KEY, size, WINDOW_LOG, content, caching, asks=True).run()
            caching.end()
            content.close()
        done.release()

    before = time.process_time()
    with tls.Listener("127.0.0.1:0", identity, take) as listener:
        control.send(listener.address)
        for _ in range(disks):
            done.acquire()
    return time.process_time() - before


# --- the proxies -----------------------------------------------------------------------------


class Content:
    """Files of this system as the pieces of disks, and their leaves."""

    def __init__(self, length: int) -> None:
        data = bytearray()
        for path in _files():
            with contextlib.suppress(OSError):
                data += path.read_bytes()
            if len(data) >= length:
                break
        if len(data) < length:
            raise SystemExit(f"{len(data)} bytes of files, {length} are needed")
        self.data = np.frombuffer(bytes(data[:length]), np.uint8)
        self.leaves = digesting.leaves(self.data)


def _files() -> Iterator[Path]:
    for folder in ("/usr/lib", "/usr/bin", "/usr/share"):
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file() and not path.is_symlink() and path.stat().st_size >= 65536:
                yield path


def send_disk(address: tuple[str, int], content: Content, first: int, stop: int) -> None:
    """The source proxy of one disk, which holds `content` from `first` on."""
    with Link(socket.create_connection(address), "near", BETWEEN_MACHINES) as link:
        for at in range(first, stop, BATCH):
            end = min(at + BATCH, stop)
            rows = np.array([[at - first, end - at, 1]], np.int64)
            leaves = content.leaves[at // 4096 : end // 4096]
            link.send(Batch(1, len(leaves), end - at), rows, leaves, content.data[at:end])
        link.send(Finish())
        message, _ = link.receive()
        if not isinstance(message, Finished):
            raise SystemExit(f"the pair failed: {message}")


def receive_disk(link: Link, content: Content) -> int:
    """The target proxy of one disk; the bytes that came, all of them right."""
    known = set(content.leaves.tolist())
    message, _ = link.receive()
    if not isinstance(message, Attach):
        raise SystemExit(f"the pair began with {message}")
    done = 0
    while True:
        message, payload = link.receive()
        if isinstance(message, Finish):
            link.send(Finished(done, 0))
            return done
        batch = parsed_batch(message, payload, None, 1 << 40, "far")
        if not set(batch.leaves.tolist()) <= known:
            raise SystemExit("what came is not what was sent")
        done += int(batch.rows[:, 1].sum())  # zeros come as such


# --- turns -----------------------------------------------------------------------------------


class Pair:
    """Both processes."""

    def __init__(self, folder: Path, content: Content) -> None:
        self.folder = folder
        self.content = content
        made = authority.Authority.create(folder / "authority", "bench")
        for name in ("near", "far"):
            identity = IdentityFolder(folder / name)
            certificate = made.issue(identity.request(), name, ["wan"])
            identity.install(certificate, made.certificate, made.revocations())
        context = multiprocessing.get_context("spawn")
        self._controls, self._processes = [], []
        for work in (source_process, target_process):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, folder), daemon=True)
            process.start()
            theirs.close()
            self._controls.append(ours)
            self._processes.append(process)

    def close(self) -> None:
        for control, process in zip(self._controls, self._processes, strict=True):
            with contextlib.suppress(OSError):
                control.send(None)
            process.join(10)
            process.kill()

    def turn(self, known: Path | None, disks: int) -> dict[str, float]:
        """Send everything once, spread over so many disks."""
        cache = self.folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        if known is not None:
            shutil.copytree(known, cache)
        size = len(self.content.data)
        edges = [size // disks * number // BATCH * BATCH for number in range(disks)] + [size]
        near, far = self._controls
        with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
            far.send((cache, server.getsockname(), disks, size))
            near.send((far.recv(), disks, size))
            address = near.recv()
            with ThreadPoolExecutor(2 * disks) as pool:
                begun = time.perf_counter()
                sending = [
                    pool.submit(send_disk, address, self.content, first, stop)
                    for first, stop in pairwise(edges)
                ]
                links = [Link(server.accept()[0], "far", BETWEEN_MACHINES) for _ in range(disks)]
                came = list(pool.map(lambda link: receive_disk(link, self.content), links))
                for future in sending:
                    future.result()
                wall_s = time.perf_counter() - begun
        for link in links:
            link.close()
        if sum(came) != size:
            raise SystemExit(f"{sum(came)} bytes came, {size} were sent")
        near_s, sent = near.recv()
        return {"wall": wall_s, "near": near_s, "far": far.recv(), "sent": sent}


def prepared(folder: Path, content: Content) -> Path:
    """A cache that holds nine of ten MiB."""
    with GlobalCache(folder, LIMITS) as cache:
        part = cache.namespace(KEY)
        for at in range(0, len(content.data), MiB):
            if at // MiB % 10:
                part.take_in(content.data[at : at + MiB])
    return folder


def bench(folder: Path, report: Report, options: argparse.Namespace) -> None:
    """Every kind, with one disk and with several."""
    content = Content(SMALL if options.small else FULL)
    known = prepared(folder / "known", content)
    with contextlib.closing(Pair(folder, content)) as pair:
        found: dict[tuple[str, int], list[dict[str, float]]] = {}
        for turn in range(options.turns):
            for kind, start in (("known", known), ("new", None)):
                for disks in (1, DISKS):
                    say(f"{kind}, {disks} disks, turn {turn + 1}")
                    found.setdefault((kind, disks), []).append(pair.turn(start, disks))
    size = len(content.data) / 1e6
    for (kind, disks), turns in found.items():
        wall, near, far, sent = (_median(turns, key) for key in ("wall", "near", "far", "sent"))
        report.rows.append(
            {
                "what": f"{kind}, {disks} disks",
                "MB/s wall": round(size / wall),
                "a core each": round(size / max(near, far)),
                "one core": round(size / (near + far)),
                "source cpu s": round(near, 2),
                "target cpu s": round(far, 2),
                "MB sent": round(sent / 1e6, 1),
            }
        )
    for kind, goal in (("known", KNOWN_GOAL), ("new", NEW_GOAL)):
        best = max(size / it["wall"] for disks in (1, DISKS) for it in found[kind, disks])
        report.claims.append(
            Claim(f"{kind}: MB/s of changed data, on the wall", best, goal, is_at_most=False)
        )
        pairs = zip(found[kind, 1], found[kind, DISKS], strict=True)
        gains = [one["wall"] / several["wall"] for one, several in pairs]
        report.claims.append(
            Claim(
                f"{kind}: {DISKS} disks at once, times one disk",
                statistics.median(gains),
                DISKS_GOAL,
                is_at_most=False,
                spread=(min(gains), max(gains)),
            )
        )
    report.notes.append(f"{os.cpu_count()} cores, which the proxies use too")


def _median(turns: list[dict[str, float]], key: str) -> float:
    return statistics.median(turn[key] for turn in turns)


def main() -> int:
    """Run it where the options say."""
    return run_bench("pair of WAN accelerators", arguments(__doc__ or "", turns=3), bench)


if __name__ == "__main__":
    sys.exit(main())
