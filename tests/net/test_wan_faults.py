"""Jobs over a pair of WAN accelerators between machines whose lines, processes and disks fail:
every point reads right, and what the report says went over the wire is what the interface sent."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cli.processes import wait_until
from net.network import Line, has_tbf
from net.nursery import Child, Nursery
from net.served import finish
from net.wan_sites import PAIR, TWO_PAIRS, ServedWanSites, WanSites
from standby.units import MiB

DATA = 24 * MiB
RATE_BPS = 32 * MiB

Make = Callable[..., Any]


@pytest.fixture
def make(nursery: Nursery, tmp_path: Path) -> Iterator[Make]:
    """Sites with one disk of noise, on a line on which it takes most of a second."""
    with ExitStack() as stack:

        def made(kind: type[WanSites] = WanSites, data: int = DATA, **options: Any) -> WanSites:
            options = {"wan": Line(rate_bps=RATE_BPS) if has_tbf() else None} | options
            sites = stack.enter_context(kind(tmp_path / "site", nursery, **options))
            sites.add_machine(sizes=(32 * MiB,))
            sites.write(0, data)
            return sites

        yield made


def ended(sites: WanSites, session: Child) -> dict[str, Any]:
    """The VM's report, when all that must hold does."""
    (machine,) = sites.finish(session)
    assert sites.check_points() >= 1
    sites.check_nothing_leaked()
    return machine


def is_direct(machine: dict[str, Any]) -> bool:
    """Whether the disk went directly in the end; it is said in the warnings and in the report."""
    texts = [text for text in machine["warnings"] if "sent directly" in text]
    left = machine["disks"][0]["wan"]["left"]
    assert len(texts) == bool(left)
    assert not left or left in texts[0]
    return bool(left)


def test_bytes_on_the_wire_are_those_that_the_interface_sent(make: Make) -> None:
    data = 8 * MiB
    sites = make(wan=None, offload=False, data=data)

    def passed() -> int:
        """What the source's accelerator sent, but for what it acknowledged to the proxies."""
        sent = sites.network["wa"].link.counters().sent_bytes
        proxies = (sites.network[name].link.counters() for name in ("px1", "px2"))
        return sent - sum(counters.received_bytes for counters in proxies)

    before = passed()
    wan = ended(sites, sites.begin())["disks"][0]["wan"]
    # What the server asked of these machines, some ten KiB, is the rest.
    assert abs(passed() - before - wan["wire_sent"]) < 0.01 * data
    assert wan["wire_sent"] > 1.04 * wan["sent"] > 1.04 * data  # headers of packets of 1500 bytes


def test_a_line_that_is_down_for_a_while_is_gone_on_over(make: Make) -> None:
    sites = make(job=PAIR + 'if_away = "wait"\n')
    session = sites.begin()
    sites.until_passed()
    sites.network["wb"].link.down()
    wait_until(lambda: "failed" in sites.logs("wa"), "the source's accelerator noticed")
    sites.network["wb"].link.up()
    machine = ended(sites, session)
    assert not is_direct(machine)
    assert machine["disks"][0]["retries"] >= 1


@pytest.mark.parametrize("name", ["wa", "wb"])
def test_a_killed_accelerator_that_is_back_goes_on(make: Make, name: str) -> None:
    sites = make(job=PAIR + 'if_away = "wait"\n')
    session = sites.begin()
    sites.until_passed()
    sites.restart_mover(name)
    machine = ended(sites, session)
    assert not is_direct(machine)
    disk = machine["disks"][0]
    assert disk["retries"] >= 1
    assert disk["wan"]["sent"] < DATA  # what came before was kept
    if name == "wb":  # the cache was not closed: what it had sealed or synced is in it
        assert sites.wan("verify", "--pair", "main")["is_ok"]


@pytest.mark.parametrize("name", ["wa", "wb"])
def test_a_killed_accelerator_that_stays_away_is_done_without(make: Make, name: str) -> None:
    sites = make()
    session = sites.begin()
    sites.until_passed()
    sites.kill_mover(name)
    (machine,) = sites.finish(session)
    assert is_direct(machine)
    assert sites.check_points() == 1
    sites.start_movers(name)
    sites.check_nothing_leaked()


def test_a_cache_cleared_in_the_middle_costs_bytes_only(make: Make) -> None:
    sites = make()
    session = sites.begin()
    sites.until_passed()
    assert "segments" in sites.wan("clear", "--pair", "main", "--yes")
    machine = ended(sites, session)
    assert (is_direct(machine), machine["disks"][0]["retries"]) == (False, 0)
    (pair,) = sites.wan("status")["pairs"]
    assert pair["problem"] == ""
    assert pair["cache"]["pieces"] < DATA // 4096
    assert pair["cache"]["counts"]["damaged"] == 0


def test_an_older_cache_put_back_is_used_as_far_as_it_goes(make: Make) -> None:
    sites = make(wan=None, data=2 * MiB)
    ended(sites, sites.begin())
    sites.end_mover("wb")
    shutil.copytree(sites.cache, sites.folder / "older")
    sites.start_movers("wb")
    sites.write(4 * MiB, 2 * MiB)
    ended(sites, sites.begin())
    sites.end_mover("wb")
    shutil.rmtree(sites.cache)
    (sites.folder / "older").rename(sites.cache)
    sites.start_movers("wb")
    sites.copy_machine("vm1", "vm2")
    machines = sites.session()
    (wan,) = (machine["disks"][0]["wan"] for machine in machines if machine["machine"] == "vm2")
    assert wan["found"] == 2 * MiB // 4096
    assert wan["cached"] == 2 * MiB // 4096
    assert sites.check_points("vm2_replica") == 1


def test_a_full_cache_disk_caches_no_more_and_fails_nothing(make: Make, tmp_path: Path) -> None:
    place = tmp_path / "site" / "cache"
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "cache", str(place)], check=True)
    try:
        sites = make(wan=None)
        machine = ended(sites, sites.begin())
        assert (is_direct(machine), machine["disks"][0]["retries"]) == (False, 0)
        assert 0 < machine["disks"][0]["wan"]["cached"] < 8 * MiB // 4096
        assert any("global cache" in text for text in machine["warnings"])
        sites.close()
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_daemons_session_goes_over_the_pair(make: Make) -> None:
    sites = make(ServedWanSites, wan=None)
    with sites.daemon() as server:
        machine = sites.done(sites.queue())
        wan = machine.disks[0].wan
        assert wan is not None
        assert (wan.name, wan.left, wan.cached) == ("main", "", DATA // 4096)
        finish(server)
    assert sites.check_points() == 1
    sites.check_nothing_leaked()


def test_two_sources_at_once_fill_one_cache(make: Make) -> None:
    sites = make(job=TWO_PAIRS)
    sites.copy_machine("vm1", "vm2")
    first = sites.begin()
    second = sites.spawn("job", "start", "second", "--json")
    (one,) = sites.finish(first)
    (other,) = sites.finish(second)
    wans = [machine["disks"][0]["wan"] for machine in (one, other)]
    assert [(wan["name"], wan["left"]) for wan in wans] == [("main", ""), ("other", "")]
    # One cache: what both brought is not there twice. Just how often each piece is new to it is
    # tests/unit/test_wan_cache's; a cache that is too slow on a busy machine leaves some out.
    assert 0 < sum(wan["cached"] for wan in wans) <= DATA // 4096
    for name in ("vm1", "vm2"):
        assert sites.check_points(f"{name}_replica") == 1
    sites.check_nothing_leaked()
