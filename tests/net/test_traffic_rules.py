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

LIMIT_BPS = 80 * 125_000
DATA = 56 * MiB
MEASURED_S = 2.5
TURNS = 3
"""The limit is never exceeded; movers that wait for a busy machine's processors may not use it up,
so that one turn of several shows that they can."""

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
limit = "80 Mbit/s"
"""


@pytest.fixture
def sites(nursery: Nursery, tmp_path: Path) -> Iterator[Sites]:
    with Sites(tmp_path / "site", nursery, offload=False, job=MORE) as made:
        for name in ("vm1", "vm2"):
            made.add_machine(name, sizes=(64 * MiB,))
            made.write(0, DATA, machine=name)
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
    sessions = [sites.spawn("job", "start", name) for name in ("job", "heavy")]
    wait_until(lambda: sum(count > MiB for count in sent_bytes(sites)) == 2, "both send")
    with sites.link("px1") as control:
        for _ in range(TURNS):
            before, began = arrived_bytes(sites), time.monotonic()
            sent = sent_bytes(sites)[-2:]
            slowest_s = 0.0
            while (now := time.monotonic()) < began + MEASURED_S:
                ask(control, "ping")
                slowest_s = max(slowest_s, time.monotonic() - now)
                time.sleep(0.05)
            after, ended = arrived_bytes(sites), time.monotonic()
            now_sent = sent_bytes(sites)[-2:]
            rate_bps = (after - before) / (ended - began)
            assert rate_bps < 1.05 * LIMIT_BPS
            if rate_bps > 0.95 * LIMIT_BPS:
                break
    assert rate_bps > 0.95 * LIMIT_BPS
    light, heavy = (late - early for late, early in zip(now_sent, sent, strict=True))
    # 3 : 1 while both ask; threads of a busy machine do not always.
    assert 1.5 < heavy / light < 4
    assert slowest_s < 1
    for number in (1, 0):
        assert sessions[number].poll() is None
        assert sessions[number].wait(60) in (0, 3), sessions[number].log()
