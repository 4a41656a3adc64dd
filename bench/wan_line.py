"""Figure 6: how much of a slow, long line a pair of WAN accelerators uses.

    python bench/wan_line.py [--small] [--json] [--turns N] [--in FOLDER]

Two sites of network namespaces with 10 or 100 Mbit/s and 40 ms each way between them, real movers
over TLS (`tests/net/wan_sites.py`), a VM of incompressible data, which the pair sends for the first
time. Before that, one bare TCP connection between the same two machines sends as many bytes of
zeros, and is measured in the same way: what the line, which may be a process between two devices,
and the system's congestion control (BBR stops for a fifth of a second every ten) leave of it. The
share of the line is what the target's accelerator received, headers included, by the
kernel's count, over what the line carries in the time from the first 256 KiB on to the last ones:
while there was something to send. That of the whole transfer has everything around it, some
round trips until the first batch is under way and until the last is verified. Beside it, how the
report's bytes on the wire compare with the interface's. Needs root.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from net.network import Line, obstacle
from net.nursery import Nursery
from net.wan_sites import WanSites
from standby.units import KiB, MiB
from timing import Claim, Report, arguments, run_bench, say

DELAY_S = 0.04
GOAL = 0.95
LOOK_S = 0.02
BEGUN = 256 * KiB
LINES = {"10 Mbit/s": (1_250_000, 24 * MiB), "100 Mbit/s": (12_500_000, 256 * MiB)}
"""Bytes per second, and how much is sent."""
SMALL = 4
"""A part of that."""


class Seen:
    """What the target's accelerator had received, and when."""

    def __init__(self, sites: WanSites) -> None:
        self._link = sites.network["wb"].link
        self._is_over = threading.Event()
        self.counts: list[tuple[float, int]] = []
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._is_over.is_set():
            self.counts.append((time.perf_counter(), self._link.counters().received_bytes))
            self._is_over.wait(LOOK_S)

    def end(self) -> None:
        self._is_over.set()
        self._thread.join()

    def busy_bps(self) -> float:
        """Bytes per second while there was something to send."""
        first, last = self.counts[0][1], self.counts[-1][1]
        began = next(at for at in self.counts if at[1] >= first + BEGUN)
        ended = next(at for at in self.counts if at[1] >= last - BEGUN)
        return (ended[1] - began[1]) / (ended[0] - began[0])


def bare_bps(sites: WanSites, total: int) -> float:
    """Bytes per second of a socket, while it had something to send."""

    def receive(server: socket.socket) -> None:
        with server.accept()[0] as connection:
            while connection.recv(256 * KiB):
                pass

    network = sites.network
    with network["wb"].listen() as server, network["wa"].connect(server, None) as connection:
        receiving = threading.Thread(target=receive, args=(server,))
        receiving.start()
        seen = Seen(sites)
        try:
            for _ in range(0, total, MiB):
                connection.sendall(bytes(MiB))
            connection.shutdown(socket.SHUT_WR)
            receiving.join()
        finally:
            seen.end()
    return seen.busy_bps()


def turn(folder: Path, nursery: Nursery, rate_bps: int, total: int) -> dict[str, float]:
    """One session over such a line."""
    line = Line(DELAY_S, rate_bps)
    with WanSites(folder, nursery, wan=line, offload=False, tuned={}) as sites:
        sites.add_machine("vm1", (total + 16 * MiB,))
        for offset in range(0, total, 2 * MiB):
            sites.write(offset, 2 * MiB)
        bare = bare_bps(sites, total)
        before = sites.network["wa"].link.counters()
        seen = Seen(sites)
        try:
            (machine,) = sites.finish(sites.begin(), 600)
        finally:
            seen.end()
        after = sites.network["wa"].link.counters()
        wan = machine["disks"][0]["wan"]
        if wan["left"]:
            raise SystemExit(f"the pair was left: {wan['left']}")
        return {
            "bare": bare / rate_bps,
            "busy": seen.busy_bps() / rate_bps,
            "transfer": wan["wire_sent"] / machine["steps_s"]["transfer"] / rate_bps,
            "told": wan["wire_sent"] / (after.sent_bytes - before.sent_bytes),
        }


def bench(folder: Path, report: Report, options: argparse.Namespace) -> None:
    """Measure."""
    problem = obstacle()
    if problem:
        raise SystemExit(f"this bench needs {problem}")
    with Nursery() as nursery:
        for name, (rate_bps, total) in LINES.items():
            if options.small:
                total //= SMALL
            found = []
            for number in range(options.turns):
                say(f"{name}, turn {number + 1}")
                place = folder / f"{rate_bps}-{number}"
                found.append(turn(place, nursery, rate_bps, total))
            shares = [one["busy"] for one in found]
            report.rows.append(
                {
                    "what": name,
                    "MB": round(total / 1e6),
                    "bare socket": round(statistics.median(it["bare"] for it in found), 3),
                    "share while busy": round(statistics.median(shares), 3),
                    "of the transfer": round(statistics.median(it["transfer"] for it in found), 3),
                    "told / interface": round(statistics.median(it["told"] for it in found), 4),
                }
            )
            report.claims.append(
                Claim(
                    f"{name}: share of the line while there is something to send",
                    statistics.median(shares),
                    GOAL,
                    is_at_most=False,
                    spread=(min(shares), max(shares)),
                )
            )


def main() -> int:
    """Run it where the options say."""
    return run_bench("a pair on a slow line", arguments(__doc__ or "", turns=3), bench)


if __name__ == "__main__":
    sys.exit(main())
