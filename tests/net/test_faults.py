"""Machines, cables and storage fail in mid-transfer: every point reads right byte for byte, next to
nothing travels twice, nothing is left behind."""

from __future__ import annotations

import random
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cli.processes import state_of, wait_until
from net.network import Line, has_tbf
from net.nursery import Child, Nursery
from net.sites import PORT, ROLES, TUNED, Sites
from standby.clock import SYSTEM_CLOCK
from standby.errors import LinkError
from standby.units import MiB
from standby.wire.authority import Authority
from standby.wire.identity import IdentityFolder
from wires import SetClock

DISK = 64 * MiB
DATA = 48 * MiB
RATE_BPS = 24 * MiB
OVERHEAD = DATA // 100
TWICE_MAX = 4 * MiB
"""What the proxies may send more than the data: records, leaves and control, as a session without
faults shows, and what travels twice. That is what a lost connection had under way: what the network
held, and the part of a batch that had arrived. A batch is 1 MiB here (`sites.TUNED`), as its real
4 MiB are a twelfth of this disk by themselves."""

Make = Callable[..., Sites]


@pytest.fixture
def make(nursery: Nursery, tmp_path: Path) -> Iterator[Make]:
    """Sites with one disk of noise, on a line on which it takes two seconds."""
    with ExitStack() as stack:

        def made(data: int = DATA, **options: Any) -> Sites:
            line = Line(rate_bps=RATE_BPS) if has_tbf() else None
            sites = stack.enter_context(Sites(tmp_path / "site", nursery, wan=line, **options))
            sites.add_machine(sizes=(DISK,))
            sites.write(0, data)
            return sites

        yield made


def until_under_way(sites: Sites, size: int = 12 * MiB) -> str:
    """Wait until the target has that much; the proxy that sends."""
    wait_until(lambda: sites.partial_bytes() >= size, "some data arrived")
    return next(name for name in ("px1", "px2") if "send_disk" in sites.logs(name))


def finished(sites: Sites, session: Child, twice: int = TWICE_MAX) -> dict[str, Any]:
    """The VM's report, when all that must hold does."""
    (machine,) = sites.finish(session)
    assert sites.sent_bytes() < DATA + OVERHEAD + twice
    assert sites.check_points() >= 1
    sites.check_nothing_leaked()
    return machine


def test_a_session_without_faults_sends_every_byte_once(make: Make) -> None:
    sites = make()
    (disk,) = finished(sites, sites.begin(), twice=0)["disks"]
    assert (disk["retries"], disk["written"]) == (0, DATA)
    assert DATA <= disk["sent"] < DATA + OVERHEAD


def test_a_killed_proxy_gives_its_disk_to_the_other(make: Make) -> None:
    sites = make()
    session = sites.begin()
    lost = until_under_way(sites)
    sites.kill_mover(lost)
    (machine,) = sites.finish(session)
    (disk,) = machine["disks"]
    assert (disk["retries"], disk["proxy"] != lost) == (1, True)
    sites.start_movers(lost)
    finished(sites, session)


def test_a_proxy_without_its_storage_gives_its_disk_to_the_other(make: Make) -> None:
    sites = make(8 * MiB)
    sites.unplug("px1")
    machine = finished(sites, sites.begin())
    assert [(disk["proxy"], disk["retries"]) for disk in machine["disks"]] == [("px2", 1)]
    sites.plug("px1")
    (again,) = sites.session()
    assert [(disk["proxy"], disk["retries"]) for disk in again["disks"]] == [("px1", 0)]
    assert sites.check_points() == 2


def test_a_proxy_whose_storage_ends_while_it_reads_gives_its_disk_to_the_other(make: Make) -> None:
    sites = make()
    copy = sites.folder / "copy"
    shutil.copytree(sites.folder / "source", copy)
    sites.views["px1"] = copy
    sites.restart_mover("px1")
    session = sites.begin()
    assert until_under_way(sites) == "px1"
    with (copy / "vm1" / "disk0.vhdx").open("r+b") as file:
        file.truncate(16 * MiB)
    machine = finished(sites, session)
    assert [(disk["proxy"], disk["retries"]) for disk in machine["disks"]] == [("px2", 1)]


def test_a_proxy_without_network_gives_its_disk_to_the_other(make: Make) -> None:
    sites = make()
    session = sites.begin()
    lost = until_under_way(sites)
    sites.network[lost].link.down()  # no word to anybody: its peers are half open
    (machine,) = sites.finish(session)
    assert [(disk["proxy"] != lost, disk["retries"]) for disk in machine["disks"]] == [(True, 1)]
    sites.network[lost].link.up()
    finished(sites, session)


def test_a_line_that_drops_and_comes_back_costs_no_data(make: Make) -> None:
    sites = make()
    session = sites.begin()
    until_under_way(sites)
    for seconds in (0.3, 4):  # the faults themselves; 3 s end a connection
        sites.network.wan.down()
        time.sleep(seconds)
        sites.network.wan.up()
    finished(sites, session)


def test_a_target_side_that_vanishes_is_gone_on_with_when_it_is_back(make: Make) -> None:
    """Where one of its movers is back after the other has the replica, and the session's process
    with it, nobody tells it that the session ended: it closes by itself what it was left with."""
    sites = make(mover='orphan_timeout = "20s"')
    session = sites.begin()
    until_under_way(sites)
    for name in ("dr1", "dr2"):
        sites.network[name].link.down()
    time.sleep(4)  # the fault itself
    for name in ("dr1", "dr2"):
        sites.network[name].link.up()
    finished(sites, session)


def test_a_target_proxy_that_hangs_is_replaced_and_cannot_spoil_a_point(make: Make) -> None:
    quick = {
        "standby.server.service_mover.SILENCE_S": 4.0,
        "standby.server.fleet.CONNECT_TIMEOUT_S": 1.5,
    }
    sites = make(mover='orphan_timeout = "1s"', reconnect_for="1s", tuned={**TUNED, **quick})
    session = sites.begin()
    until_under_way(sites)
    hung = sites.movers["dr1"]
    hung.send_signal(signal.SIGSTOP)
    wait_until(lambda: state_of(hung.pid) == "T", "stopped")
    sites.finish(session)
    assert sites.replica().record().generation == 2
    sites.change_disk()
    sites.session()
    hung.send_signal(signal.SIGCONT)
    assert sites.check_points() == 2
    sites.check_nothing_leaked()


def test_a_target_proxy_that_is_away_from_the_beginning_is_not_waited_for(make: Make) -> None:
    sites = make(8 * MiB, reconnect_for="1s")
    sites.kill_mover("dr1")
    (machine,) = sites.session()
    (text,) = machine["warnings"]  # the host's own
    assert "mover dr1" in text
    assert "cannot be reached" in text
    sites.start_movers("dr1")
    assert sites.check_points() == 1
    sites.check_nothing_leaked()


def test_a_server_that_dies_at_any_of_its_steps_is_gone_on_with(make: Make) -> None:
    sites = make(8 * MiB, restore_points=20)
    for point in (
        "checkpoint made", "child created", "disk under way", "released", "repository commit"
    ):  # fmt: skip
        sites.change_disk()
        died = sites.begin(STANDBY_KILL_POINT=point)
        assert died.wait() == -signal.SIGKILL, point
        sites.session()
        sites.check_nothing_leaked()
    assert 5 <= sites.check_points() <= 10


def test_a_link_that_hangs_ends_with_the_checkpoints_age(make: Make) -> None:
    sites = make(tuned={})  # nobody else misses who is silent, for a minute or two
    with sites.nearby_server(checkpoint_max_age_s=5) as server:
        begun = ThreadPoolExecutor(1)
        session = begun.submit(server.start, "job")
        lost = until_under_way(sites)
        sites.network[lost].link.down()
        report = session.result(60)
        begun.shutdown()
    assert report.machines[0].outcome == "interrupted"
    assert "age 5 s" in report.machines[0].error
    sites.network[lost].link.up()
    finished(sites, sites.begin())


@pytest.mark.parametrize("name", ["px1", "dr1"])
def test_a_machine_whose_certificate_is_revoked_is_out_at_once(make: Make, name: str) -> None:
    sites = make()
    session = sites.begin()
    until_under_way(sites)
    sites.authority.revoke(name)
    revoked = sites.authority.revocations()
    homes = [sites.home(other) for other in ROLES if other != name]
    for home in (sites.folder, *homes):
        IdentityFolder(home / "identity").install_revocations(revoked)
    (machine,) = sites.finish(session)
    if name == "px1":
        assert [disk["proxy"] for disk in machine["disks"]] == ["px2"]
    else:
        assert sites.replica().record().generation == 2
    assert sites.check_points() == 1
    with pytest.raises(LinkError), sites.link(name):
        pass


def test_a_proxy_with_another_ones_certificate_gets_no_disk(make: Make) -> None:
    sites = make(8 * MiB)
    sites.end_mover("px1")
    shutil.rmtree(sites.home("px1") / "identity")
    sites.enrol("px2", sites.home("px1") / "identity", ("source",))
    sites.start_movers("px1")
    machine = finished_elsewhere(sites)
    assert machine["disks"][0]["retries"] == 0


def test_a_proxy_whose_certificate_ended_does_not_begin(make: Make) -> None:
    sites = make(8 * MiB)
    sites.end_mover("px1")
    shutil.rmtree(sites.home("px1") / "identity")
    earlier = SetClock(SYSTEM_CLOCK.now() - timedelta(days=2))
    authority = Authority(sites.folder / "authority", earlier)
    sites.enrol("px1", sites.home("px1") / "identity", ("source",), authority, days=1)
    with pytest.raises(AssertionError, match="ended at"):
        sites.start_movers("px1")
    finished_elsewhere(sites)


def finished_elsewhere(sites: Sites) -> dict[str, Any]:
    (machine,) = sites.session()
    assert [disk["proxy"] for disk in machine["disks"]] == ["px2"]
    assert sites.check_points() == 1
    return machine


def test_strangers_at_the_door_do_not_stop_a_session(make: Make) -> None:
    sites = make()
    target = (sites.network["dr1"].address, PORT)
    chance = random.Random(11)
    session = sites.begin()
    until_under_way(sites)
    with ExitStack() as stack:
        with sites.network["px2"].inside():
            strangers = [socket.create_connection(target, 5) for _ in range(60)]
        for number, stranger in enumerate(strangers):
            stack.enter_context(stranger)
            if number % 3 == 0:
                stranger.sendall(chance.randbytes(4096))  # garbage
            elif number % 3 == 1:
                stranger.sendall(b"\x16\x03\x01\x02")  # a handshake that goes on for ever
        (machine,) = sites.finish(session)
    assert [disk["retries"] for disk in machine["disks"]] == [0]
    finished(sites, session)
