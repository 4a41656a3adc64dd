"""Figure 4: how much of a slow, long line a full cycle uses.

    python bench/slow_link.py [--small] [--json] [--turns N] [--in FOLDER]

Two sites of network namespaces with 100 Mbit/s and 40 ms each way between them, real movers over
TLS (`tests/net/sites.py`), a VM of incompressible data, a first restore point: all of it on one
disk, or on two, each of which has a connection of its own. The share of the line is what the
target's interface received, headers included, over what 100 Mbit/s carry in the time of the
transfer; that of the whole session has everything around it. The other contender is a bare TCP
socket with as many bytes, from its first byte to its last: what the line and the system's TCP
carry. Under BBR that is less than the rate by 3 %, for it all but stops for 0.3 s every 10 s to
measure the line, which two connections do not do at the same time; and by the slow start. Two
connections do not share a line evenly, so that two disks end at different times, and the one that
is left has to find the whole rate anew: 1 to 2.5 s, whatever the size (96 MiB in 9.7 s on one disk,
in 10.5 and 12.1 s on two, the first of which had ended after 7.0 and 5.3 s). What a
transfer has beside it, some 0.9 s until the first batches are under way (the task's connection and
messages are nine times the delay) and until the last are verified, is the same for any size. Needs
root.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from net.network import Line, has_netem, obstacle
from net.nursery import Nursery
from net.sites import Sites
from standby.units import GiB, MiB
from timing import Claim, Contender, Report, Timed, arguments, in_turns, run_bench

RATE_BPS = 12_500_000
DELAY_S = 0.04
GOAL = 0.95

BARE = "bare socket"
ONE = "standby TLS, one disk"
TWO = "standby TLS, two disks"


class SlowLine:
    """The sites with a VM, of which each turn makes a first point."""

    def __init__(self, sites: Sites, total: int) -> None:
        self.sites = sites
        self.total = total
        self.machines = 0
        self.shares: dict[str, list[float]] = {}

    def prepare(self, disks: int = 1) -> None:
        """A VM nobody has seen yet, its data spread over `disks`; those before it are away."""
        for old in (self.sites.folder / "source").glob("vm*"):
            old.rename(self.sites.folder / f"away-{old.name}")
        self.machines += 1
        name = f"vm{self.machines}"
        self.sites.add_machine(name, (self.total // disks + 16 * MiB,) * disks)
        for number in range(disks):
            for offset in range(0, self.total // disks, 8 * MiB):
                self.sites.write(offset, 8 * MiB, number, machine=name)

    def received(self) -> int:
        """What the target site's proxies received so far."""
        names = ("dr1", "dr2")
        return sum(self.sites.network[name].link.counters().received_bytes for name in names)

    def session(self, kind: str) -> Timed:
        """A session; the seconds of its transfer."""
        before, began = self.received(), time.perf_counter()
        session = self.sites.begin()
        if session.wait(600) not in (0, 3):
            raise SystemExit(session.said() + session.log())
        whole_s = time.perf_counter() - began
        found = json.loads(session.said())["machines"]
        (machine,) = (item for item in found if item["outcome"] == "done")
        transfer_s = float(machine["steps_s"]["transfer"])
        got = self.received() - before
        self._keep(kind, got / transfer_s / RATE_BPS)
        self._keep(f"{kind}, session", got / whole_s / RATE_BPS)
        return Timed(transfer_s, sum(disk["written"] for disk in machine["disks"]))

    def pump(self) -> Timed:
        """As many bytes over a bare connection."""
        px1, dr1 = self.sites.network["px1"], self.sites.network["dr1"]
        with (
            dr1.listen() as listener,
            px1.connect(listener, 30) as near,
            listener.accept()[0] as far,
        ):
            near.settimeout(None)
            before, began = self.received(), time.perf_counter()
            sending = threading.Thread(target=self._send, args=(near,))
            sending.start()
            done = 0
            buffer = bytearray(MiB)
            while done < self.total:
                done += far.recv_into(buffer)
            seconds = time.perf_counter() - began
            sending.join()
        self._keep(BARE, (self.received() - before) / seconds / RATE_BPS)
        return Timed(seconds, done)

    def _keep(self, kind: str, share: float) -> None:
        self.shares.setdefault(kind, []).append(share)

    def _send(self, near: socket.socket) -> None:
        piece = bytes(MiB)
        for _ in range(self.total // MiB):
            near.sendall(piece)

    def check(self, value: Any) -> None:
        """Every byte arrived."""
        if value != self.total:
            raise SystemExit(f"{value} bytes arrived, {self.total} were sent")


def bench(folder: Path, report: Report, options: argparse.Namespace) -> None:
    """Measure."""
    problem = obstacle()
    if problem:
        raise SystemExit(f"this bench needs {problem}")
    total = 48 * MiB if options.small else GiB
    line = Line(DELAY_S, RATE_BPS)
    with Nursery() as nursery:
        with Sites(folder / "sites", nursery, wan=line, offload=False, tuned={}) as sites:
            slow = SlowLine(sites, total)
            result = in_turns(
                [
                    Contender(BARE, slow.pump, check=slow.check),
                    Contender(ONE, lambda: slow.session(ONE), slow.prepare, slow.check),
                    Contender(TWO, lambda: slow.session(TWO), lambda: slow.prepare(2), slow.check),
                ],
                options.turns,
            )
            if sites.check_points(f"vm{slow.machines}_replica") != 1:
                raise SystemExit("there is no restore point")
    report.times(result, total, BARE)
    report.claims = [_claim("used by a bare socket", slow.shares[BARE])]
    for kind in (ONE, TWO):
        transfer = _claim(f"used by a full transfer, {kind}", slow.shares[kind])
        transfer.goal = GOAL
        report.claims += [
            transfer,
            _claim("used over the whole session", slow.shares[f"{kind}, session"]),
            Claim(
                "the same of what the line carries",
                result.ratio(BARE, kind),
                is_at_most=False,
                spread=result.ratio_range(BARE, kind),
            ),
        ]
    report.facts["congestion control"] = Path(
        "/proc/sys/net/ipv4/tcp_congestion_control"
    ).read_text()[:-1]
    report.facts["line"] = "netem" if has_netem() else "a process between two TAP devices"


def _claim(text: str, shares: list[float]) -> Claim:
    return Claim(
        f"share of 100 Mbit/s {text}",
        statistics.median(shares),
        is_at_most=False,
        spread=(min(shares), max(shares)),
    )


if __name__ == "__main__":
    sys.exit(run_bench("slow link", arguments(__doc__, turns=3), bench))
