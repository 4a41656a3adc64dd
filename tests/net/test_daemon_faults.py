"""What `standby server` makes of faults in mid-transfer: its own death and that of its peers, of
cables and of the line. Every point reads right, next to nothing travels twice, nothing is left."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import databases
from cli.processes import state_of, wait_until
from net.network import Line, has_tbf
from net.nursery import Nursery
from net.served import ServedSites, finish
from net.test_faults import DATA, DISK, OVERHEAD, RATE_BPS, TWICE_MAX, until_under_way

Make = Callable[..., ServedSites]


@pytest.fixture
def make(nursery: Nursery, tmp_path: Path) -> Iterator[Make]:
    """As in `test_faults`."""
    with ExitStack() as stack:

        def made(**options: Any) -> ServedSites:
            line = Line(rate_bps=RATE_BPS) if has_tbf() else None
            sites = stack.enter_context(
                ServedSites(tmp_path / "site", nursery, wan=line, **options)
            )
            sites.add_machine(sizes=(DISK,))
            sites.write(0, DATA)
            return sites

        yield made


def check(sites: ServedSites, points: int = 1) -> None:
    """All that must hold when the daemons have ended."""
    assert sites.sent_bytes() < DATA + OVERHEAD + TWICE_MAX
    assert sites.check_points() == points
    sites.check_nothing_leaked()


def test_a_server_killed_while_a_proxy_sends_joins_it_when_it_is_back(make: Make) -> None:
    sites = make()
    with sites.daemon() as killed:
        session = sites.queue()
        until_under_way(sites)
        killed.kill()
    sites.expire_lease()
    with sites.daemon() as server:
        machine = sites.done(session)
        assert "went on with what another process began" in machine.warnings
        assert (sites.transfers(), machine.disks[0].retries) == (1, 0)
        sites.change_disk()
        assert sites.ask().wait(100) == 0  # it is as well as ever
        finish(server)
    check(sites, points=2)


def test_a_session_of_the_api_survives_its_proxy(make: Make) -> None:
    sites = make()
    with sites.daemon() as server:
        session = sites.ask()
        lost = until_under_way(sites)
        sites.kill_mover(lost)
        (machine,) = sites.finish(session)
        (disk,) = machine["disks"]
        assert (disk["retries"], disk["proxy"] != lost) == (1, True)
        sites.start_movers(lost)
        finish(server)
    check(sites)


@pytest.mark.parametrize("names", [("wan",), ("dr1", "dr2"), ("server",)], ids="+".join)
def test_what_is_cut_off_for_a_while_is_gone_on_with(make: Make, names: tuple[str, ...]) -> None:
    sites = make()
    links = [sites.network.wan if name == "wan" else sites.network[name].link for name in names]
    with sites.daemon() as server:
        session = sites.queue()
        until_under_way(sites)
        for link in links:
            link.down()
        time.sleep(4)  # the fault itself; 3 s end a connection
        for link in links:
            link.up()
        machine = sites.done(session)
        if names == ("server",):  # the movers go on without it
            assert (sites.transfers(), machine.disks[0].retries) == (1, 0)
        finish(server)
    check(sites)


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "paused"])
def test_the_second_server_on_postgresql_goes_on_with_the_firsts_session(
    make: Make, postgresql: databases.Cluster, is_killed: bool
) -> None:
    sites = make(state=postgresql.new_database())
    with sites.daemon() as first, sites.daemon("standing by") as second:
        session = sites.queue()
        until_under_way(sites)
        if is_killed:
            first.kill()
        else:
            first.send_signal(signal.SIGSTOP)
            wait_until(lambda: state_of(first.pid) == "T", "the first server hangs")
        sites.expire_lease()
        sites.wait_active(second)
        machine = sites.done(session)
        assert "went on with what another process began" in machine.warnings
        assert (sites.transfers(), machine.disks[0].retries) == (1, 0)
        if not is_killed:
            first.send_signal(signal.SIGCONT)
            assert first.wait() == 16, first.log()
            assert "is fenced" in first.log()
            assert sites.done(session) == machine
        finish(second)
    check(sites)
