"""Real jobs between two sites under a rule of standby.toml, as the interfaces count them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.processes import wait_until
from net.network import NETWORKS
from net.nursery import Nursery
from net.sites import Sites, ask
from standby.units import MiB

LIMIT_BPS = 40 * 125_000
DATA = {"vm1": 12 * MiB, "vm2": 28 * MiB}
"""Both jobs send for some seven seconds."""
WINDOW_S = 1.2
BURST = MiB // 2
"""What may come at once: pieces of all links, and what had waited in a socket."""

MORE = f"""\
exclude_machines = ["vm2"]
proxies = ["px1"]
[jobs.heavy]
source = "source"
target = "target"
machines = ["vm2"]
compression = "none"
proxies = ["px1"]
weight = 3
[traffic.wan]
from = "{NETWORKS["a"]}"
to = "{NETWORKS["b"]}"
limit = "40 Mbit/s"
"""


@pytest.fixture
def sites(nursery: Nursery, tmp_path: Path) -> Iterator[Sites]:
    with Sites(tmp_path / "site", nursery, offload=False, job=MORE) as made:
        for name, data in DATA.items():
            made.add_machine(name, sizes=(32 * MiB,))
            made.write(0, data, machine=name)
        yield made


def arrived_bytes(sites: Sites) -> int:
    """What has come to the target's site, as the kernel counts it."""
    hosts = ("dr1", "dr2", "server")
    return sum(sites.network[name].link.counters().received_bytes for name in hosts)


def sent_bytes(sites: Sites) -> list[int]:
    """What the source proxy has sent over each connection to the target's movers, the one that
    sent most last; by the kernel."""
    told = (
        sites.network["px1"].run(["ss", "-tinHO", "state", "established", "dport", "9440"]).stdout
    )
    return sorted(int(count) for count in re.findall(r"bytes_sent:(\d+)", told))


def test_jobs_share_a_limit_by_weight_and_control_is_not_delayed(sites: Sites) -> None:
    """At no time has more arrived than the limit allows. That it is used up, shared 3 : 1 while
    both ask, and that a ping gets through, shows in a window in which the machine has time."""
    sessions = [sites.spawn("job", "start", name) for name in ("job", "heavy")]
    wait_until(lambda: sum(count > MiB for count in sent_bytes(sites)) == 2, "both send")
    windows: list[tuple[float, float, float]] = []

    def is_shared() -> bool:
        used, ratio, slowest_s = windows[-1]
        return 0.95 < used < 1.05 and 1.5 < ratio < 4 and slowest_s < 1

    first, began = arrived_bytes(sites), time.monotonic()
    with sites.link("px1") as control:
        while not windows or not is_shared():
            sent = sent_bytes(sites)[-2:]
            seen, looked = arrived_bytes(sites), time.monotonic()
            slowest_s = 0.0
            while (now := time.monotonic()) < looked + WINDOW_S:
                ask(control, "ping")
                slowest_s = max(slowest_s, time.monotonic() - now)
                time.sleep(0.05)
            arrived, now = arrived_bytes(sites), time.monotonic()
            now_sent = sent_bytes(sites)[-2:]
            assert arrived - first < 1.03 * LIMIT_BPS * (now - began) + BURST
            assert [session.poll() for session in sessions] == [None, None], windows
            light, heavy = (late - early for late, early in zip(now_sent, sent, strict=True))
            used = (arrived - seen) / (now - looked) / LIMIT_BPS
            windows.append((used, heavy / max(light, 1), slowest_s))
    for session in sessions:
        assert session.wait(60) in (0, 3), session.log()
