"""Jobs over a pair of WAN accelerators between service movers: right, sending little, and going on
whatever becomes of the accelerators."""

from __future__ import annotations

import json
import sys
import threading
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from cli.processes import started, wait_until
from simulation.installed import ROLES as PROCESSES
from simulation.installed import Installation
from simulation.several import ROLES
from simulation.wan_site import DATA, MORE, SIZES, WanSite
from standby.disk import open_disk
from standby.road.target_host import TargetVerbs
from standby.server.infrastructure_check import checked
from standby.server.service_crew import ServiceCrew
from standby.units import MiB


@pytest.fixture
def make_site(tmp_path):
    made = []

    def make(more: str = MORE, kind: type[WanSite] = WanSite) -> WanSite:
        site = kind(tmp_path / "site", more)
        made.append(site)
        site.twin("vm1")
        return site

    yield make
    for site in made:
        site.close()


@pytest.fixture
def site(make_site):
    return make_site()


def done(report, machine: int = 0):
    """The one disk of a VM that got its point."""
    found = report.machines[machine]
    assert found.outcome == "done", found.error
    (disk,) = found.disks
    return disk


def check(site: WanSite, *names: str) -> None:
    for name in names or ("vm1",):
        assert site.check_points(f"{name}_replica") >= 1
        site.check_nothing_leaked(f"{name}_replica")
    wait_until(lambda: not site.running_tasks(), "no task runs")


def test_a_disk_goes_over_the_pair_and_the_report_says_what_that_cost(site):
    report = site.run()
    disk = done(report)
    assert report.machines[0].warnings == []
    wan = disk.wan
    assert (wan.name, disk.sent) == ("main", wan.sent)
    assert wan.sent == site.wire_bytes()
    assert DATA < wan.sent < 1.02 * DATA
    assert DATA < 1.1 * wan.direct < 1.3 * DATA
    assert sum(wan.pieces.values()) == DATA // 4096
    assert wan.cached == DATA // 4096
    assert set(wan.cpu_s) == {"source", "target"}
    with site.server() as server:
        assert server.store.session(report.id).machines[0].disks[0].wan == wan
    check(site)


def test_what_would_have_gone_directly_is_what_goes_directly(make_site):
    site = make_site(MORE)
    site.add_machine("vm2", sizes=SIZES)
    words = site.random.integers(97, 123, (4000, 8), np.uint8)
    text = words[site.random.zipf(1.3, MiB) % len(words)].tobytes()
    disk = open_disk(site.disk(0, "vm2"), writable=True)
    disk.write(0, text)
    disk.close()
    size = len(text)
    told = done(site.run(), 1).wan.direct
    directly = 'mode = "direct"\n[jobs.direct]\nsource = "source"\ntarget = "target"\n'
    directly += 'machines = ["vm2"]\ncompression = "fast"\nsuffix = "_direct"\n'
    text = site.config.read_text().replace(MORE, 'exclude_machines = ["vm2"]\n' + MORE + directly)
    site.config.write_text(text)
    with site.server() as server:
        sent = done(server.start("direct")).sent
    assert sent < size / 2
    assert 0.85 * sent < told < 1.05 * sent, (told, sent)


def test_what_the_other_site_has_seen_is_not_sent_again(site):
    done(site.run())
    site.twin("vm2")
    report = site.run()
    again, twin = done(report), done(report, 1)
    assert again.wan.sent < 64 * 1024
    assert twin.wan.found == DATA // 4096
    assert twin.sent < DATA // 20
    check(site, "vm1", "vm2")


def test_an_empty_cache_costs_bytes_only(site):
    done(site.run())
    with site.server() as server:
        key = bytes.fromhex(server.config.wan_key("main"))
    (role,) = (r for r in site.machines["wb"].mover._roles if hasattr(r, "cache"))
    assert role.cache.opened().clear(key) > 0
    site.twin("vm2")
    twin = done(site.run(), 1)
    assert twin.wan.found == 0
    assert twin.sent > DATA
    check(site, "vm1", "vm2")


def test_jobs_without_a_pair_and_pairs_set_to_direct_use_no_accelerator(make_site):
    site = make_site(MORE + 'mode = "direct"\n')
    report = site.run()
    assert done(report).wan is None
    assert report.machines[0].warnings == []
    assert site.machines["wa"].taken == site.machines["wb"].taken == []
    check(site)


class SharedSite(WanSite):
    """The accelerators are the proxies' own movers."""

    roles: ClassVar[dict[str, tuple[str, ...]]] = ROLES | {
        "px1": ("source", "wan"),
        "dr1": ("target", "host", "wan"),
    }
    caches = "dr1"


def test_a_mover_may_be_proxy_and_accelerator_in_one(make_site):
    pair = MORE.replace('"wa"', '"px1"').replace('"wb"', '"dr1"')
    site = make_site('proxies = ["px1"]\ntarget_proxies = ["dr1"]\n' + pair, SharedSite)
    disk = done(site.run())
    assert (disk.wan.name, disk.proxy, disk.retries) == ("main", "px1", 0)
    assert disk.wan.cached == DATA // 4096
    check(site)


class TwoSources(WanSite):
    """Two accelerators at the source, one at the target."""

    roles: ClassVar[dict[str, tuple[str, ...]]] = WanSite.roles | {"wa2": ("wan",)}


SECOND = """\
[wan.other]
source = "wa2"
target = "wb"
[jobs.second]
source = "source"
target = "target"
machines = ["vm2"]
wan = "other"
"""


def test_pairs_with_one_target_share_what_it_knows(make_site):
    site = make_site(MORE + SECOND, TwoSources)
    site.config.write_text(site.config.read_text().replace('["*"]', '["vm1"]'))
    site.twin("vm2")
    with site.server() as server:
        done(server.start("job"))
        report = server.start("second")
        site.remember(report)
    assert done(report).wan.name == "other"
    assert done(report).wan.found == DATA // 4096
    assert site.machines["wa2"].made
    check(site, "vm2")


def test_disks_and_machines_go_side_by_side(make_site):
    site = make_site(MORE)
    for name in ("vm2", "vm3"):
        site.add_machine(name)
        for number, length in enumerate((6 * MiB, 3 * MiB)):
            site.write(MiB, length, number, machine=name)
    report = site.run()
    assert [machine.outcome for machine in report.machines] == ["done"] * 3
    wans = [disk.wan for machine in report.machines for disk in machine.disks]
    assert len(wans) == 5
    assert sum(wan.sent for wan in wans) == site.wire_bytes()
    check(site, "vm1", "vm2", "vm3")


def test_more_disks_than_there_is_room_for_wait_their_turn(make_site):
    class Narrow(WanSite):
        disks_at_once = 1

    site = make_site(MORE, Narrow)
    most = []
    for name, side in (("wa", "send"), ("wb", "receive")):
        room = site.verbs(name)._rooms[side]

        def entered(*arguments, room=room, enter=room.enter):
            enter(*arguments)
            most.append(room.held)

        room.enter = entered
    site.add_machine("vm2")
    for number in range(2):
        site.write(MiB, MiB, number, machine="vm2")
    report = site.run()
    wans = [disk.wan for machine in report.machines for disk in machine.disks]
    assert [wan.left for wan in wans] == [""] * 3
    assert set(most) == {1}
    for name in ("wa", "wb"):
        assert site.verbs(name).wan_room() == {"send": [0, 0, 1], "receive": [0, 0, 1]}
    check(site, "vm1", "vm2")


def test_a_session_that_is_stopped_waits_for_no_room_any_more(make_site):
    class Narrow(WanSite):
        disks_at_once = 1

    site = make_site(MORE, Narrow)
    room = site.verbs("wa")._rooms["send"]
    with room.use("another server's disk"), site.server() as server:
        found = {}
        session = threading.Thread(target=lambda: found.update(report=server.start("job")))
        session.start()
        wait_until(lambda: room.waiting, "the disk waits")
        (report,) = server.store.unfinished_sessions()
        server.store.ask_to_stop(report.id)
        session.join(60)
        assert found["report"].outcome == "interrupted"
        wait_until(lambda: not room.waiting, "nobody waits")
        assert site.verbs("wb")._rooms["receive"].held == 0
    assert done(site.run()).wan.name == "main"
    check(site)


# --- accelerators that fail ------------------------------------------------------------------


def is_told_as_direct(report) -> bool:
    """Whether the session warns, once, that the disk went directly."""
    texts = [text for text in report.machines[0].warnings if "sent directly" in text]
    return len(texts) == 1 and "not over WAN accelerators main" in texts[0]


@pytest.mark.parametrize("name", ["wa", "wb"])
def test_with_an_accelerator_away_disks_go_directly(site, name):
    site.machines[name].vanish()
    report = site.run()
    disk = done(report)
    assert is_told_as_direct(report)
    assert (disk.wan.name, disk.wan.sent, disk.retries) == ("main", 0, 0)
    assert f"mover {name} " in disk.wan.left
    assert site.machines["wa"].made == []
    check(site)


@pytest.mark.parametrize("name", ["wa", "wb"])
def test_an_accelerator_that_vanishes_leaves_its_disk_to_the_direct_way(site, monkeypatch, name):
    begin, kept = TargetVerbs.begin_disk, []

    def begun(verbs, wanted):
        found = begin(verbs, wanted)
        kept.append(found["acknowledged"])
        return found

    monkeypatch.setattr(TargetVerbs, "begin_disk", begun)
    far = site.machines["wb"]  # when the target side was sent so much, whichever vanishes
    far.cuts, far.cut_after, far.on_cut = False, 8 * MiB, site.machines[name].vanish
    report = site.run()
    disk = done(report)
    assert is_told_as_direct(report)
    assert f"mover {name} " in disk.wan.left
    if name == "wb":  # the other one tells what went over the pair
        assert 8 * MiB <= disk.wan.sent <= site.wire_bytes()
        assert disk.wan.pieces["raw"] * 4096 >= disk.wan.sent - 64 * 1024
    assert 1 <= disk.retries <= 2
    assert kept[-1] > 0  # what came over the pair was
    assert DATA <= disk.written < DATA + 8 * MiB  # by all attempts
    check(site)


@pytest.mark.parametrize("name", ["wa", "wb", "px1"])
def test_a_connection_that_drops_once_is_made_again_over_the_pair(make_site, name):
    site = make_site('proxies = ["px1"]\n' + MORE)
    site.machines[name].cut_after = 8 * MiB
    report = site.run()
    disk = done(report)
    assert not is_told_as_direct(report)
    assert (disk.retries, disk.wan.name) == (1, "main")
    check(site)


def test_a_pair_that_drops_every_connection_is_given_up(make_site):
    site = make_site('proxies = ["px1"]\n' + MORE)
    machine = site.machines["wa"]
    machine.cut_after = 2 * MiB

    def again():
        machine.cut_after = 2 * MiB

    machine.on_cut = again
    report = site.run()
    assert is_told_as_direct(report)
    disk = done(report)
    assert ("2 attempts in a row broke off" in disk.wan.left, disk.retries) == (True, 2)
    assert 4 * MiB <= disk.wan.sent <= site.wire_bytes()
    with site.server() as server:
        assert server.store.session(report.id).machines[0].disks[0].wan == disk.wan
    check(site)


def test_a_pair_that_is_to_be_waited_for_is_never_given_up(make_site):
    site = make_site('proxies = ["px1"]\n' + MORE + 'if_away = "wait"\n')
    machine = site.machines["wa"]
    drops = [MiB, MiB]
    machine.cut_after = MiB

    def again():
        machine.cut_after = drops.pop() if drops else 0

    machine.on_cut = again
    report = site.run()
    assert not is_told_as_direct(report)
    assert (done(report).wan.name, done(report).retries) == ("main", 3)
    check(site)


def test_what_a_failed_attempt_put_on_the_wire_counts(make_site):
    site = make_site('proxies = ["px1"]\n' + MORE)
    machine = site.machines["wa"]
    (role,) = (role for role in machine.mover._roles if hasattr(role, "wan_progress"))
    asked = []

    def told():
        asked.append(machine.cut_after)
        return role.wan_progress()

    role._verbs["wan_progress"] = told
    machine.cut_after, machine.cuts = 8 * MiB, False

    def drop():
        wait_until(lambda: asked.count(0) > 1, "the server was told of what was sent so far")
        machine.made[0].shutdown()

    machine.on_cut = drop
    with site.server() as server:
        report = server.start("job", progress=lambda *told: None)
    site.remember(report)
    disk = done(report)
    assert (disk.retries, disk.wan.name) == (1, "main")
    assert disk.sent > DATA > disk.wan.sent
    assert disk.sent <= site.wire_bytes()
    check(site)


def test_a_pair_that_is_away_is_waited_for_if_so_configured(make_site):
    site = make_site(MORE + 'if_away = "wait"\n')
    site.away.add("wb")
    found = {}
    session = threading.Thread(target=lambda: found.update(report=site.run()))
    session.start()
    assert site.asked_away.wait(30)
    site.away.clear()
    session.join(60)
    assert done(found["report"]).wan.name == "main"
    assert found["report"].machines[0].warnings == []
    check(site)


def test_a_pair_that_is_waited_for_in_vain_interrupts_the_session(make_site):
    site = make_site(MORE + 'if_away = "wait"\n')
    text = site.config.read_text()
    site.config.write_text(text.replace('reconnect_for = "10s"', 'reconnect_for = "2s"'))
    site.away.add("wb")
    (machine,) = site.run().machines
    assert machine.outcome == "interrupted"
    assert "mover wb cannot be reached" in machine.error
    site.away.clear()
    assert done(site.run()).wan.name == "main"
    check(site)


def test_a_proxy_that_vanishes_gives_its_disk_to_the_other_over_the_pair(site):
    proxy = site.machines["px1"]
    proxy.cut_after, proxy.on_cut = 8 * MiB, proxy.vanish
    report = site.run()
    disk = done(report)
    assert not is_told_as_direct(report)
    assert (disk.retries, disk.proxy, disk.wan.name) == (1, "px2", "main")
    check(site)


def test_a_target_that_vanishes_gives_its_replica_to_the_other_over_the_pair(site):
    relay = site.machines["wb"]
    relay.cut_after, relay.cuts, relay.on_cut = 8 * MiB, False, site.machines["dr1"].vanish
    report = site.run()
    assert not is_told_as_direct(report)
    assert done(report).wan.name == "main"
    assert site.replica().record().generation == 2
    assert site.check_points() == 1
    site.check_nothing_leaked()


def test_what_lacks_for_a_pair_is_found_by_the_infrastructure_check(make_site):
    class Bare(WanSite):
        caches = ""

    site = make_site(MORE, Bare)
    with site.server() as server:
        checks = checked(server.crews.fleet, server.config, site.clock)
        found = {(item.seen_from, item.what): item.level.value for item in checks}
    assert found["server", "mover wb cache"] == "warning"
    assert ("server", "mover wa cache") not in found
    for way in (("px1", "wa as wan"), ("wa", "wb as wan"), ("wb", "dr1 as target")):
        assert found[f"mover {way[0]}", f"mover {way[1]}"] == "ok"
    report = site.run()
    assert (done(report).wan.asked, done(report).wan.cached) == (0, 0)
    check(site)


def test_a_mover_without_the_role_is_told_and_done_without(make_site):
    site = make_site(MORE.replace('"wb"', '"dr2"'))
    report = site.run()
    assert "knows no 'wan_enter'" in done(report).wan.left
    assert is_told_as_direct(report)
    check(site)


# --- the server ------------------------------------------------------------------------------


def test_a_stopped_session_ends_all_four_ends(site, monkeypatch):
    noticed = threading.Event()
    cut = ServiceCrew.cut

    def cut_and_say(crew):
        cut(crew)
        noticed.set()

    monkeypatch.setattr(ServiceCrew, "cut", cut_and_say)
    machine = site.machines["wa"]
    with site.server() as server:

        def stop():
            (report,) = server.store.unfinished_sessions()
            server.store.ask_to_stop(report.id)
            assert noticed.wait(30)

        machine.cut_after, machine.cuts, machine.on_cut = 8 * MiB, False, stop
        assert server.start("job").outcome == "interrupted"
        wait_until(lambda: not site.running_tasks(), "tasks ended")
        again = server.start("job")
    site.remember(again)
    assert done(again).mode == "resume"
    assert done(again).wan.name == "main"
    check(site)


def test_a_server_that_was_cut_off_joins_all_four_ends(site):
    machine = site.machines["wa"]
    machine.cut_after, machine.cuts, machine.on_cut = 8 * MiB, False, site.cut_off_server
    with site.server() as server:
        found = {}
        session = threading.Thread(target=lambda: found.update(report=server.start("job")))
        session.start()
        wait_until(lambda: site.is_cut_off, "the server was cut off")
        wait_until(lambda: not site.running_tasks(), "the transfer ended without the server")
        site.is_cut_off = False
        session.join(60)
    site.remember(found["report"])
    disk = done(found["report"])
    assert (disk.retries, disk.wan.sent) == (0, site.wire_bytes())
    check(site)


def test_an_accelerator_that_hangs_is_left(make_site):
    site = make_site(MORE)
    text = site.config.read_text()
    site.config.write_text(text.replace("[server]", '[server]\nhung_after = "1s"'))
    machine = site.machines["wb"]
    machine.cut_after, machine.cuts = 8 * MiB, False
    machine.on_cut = lambda: site.hang("wb")
    report = site.run()
    assert is_told_as_direct(report)
    assert done(report).wan.sent >= 8 * MiB
    site.released.set()
    wait_until(lambda: not site.running_tasks(), "what hung has ended")
    check(site)


# --- processes -------------------------------------------------------------------------------


class WanInstallation(Installation):
    """The processes of `Installation`, and an accelerator at each site."""

    roles: ClassVar[dict[str, tuple[str, ...]]] = PROCESSES | {"wa": ("wan",), "wb": ("wan",)}

    def more_of(self, name: str) -> list[str]:
        cache = ['cache = "cache"', 'size = "256 MiB"', 'memory = "8 MiB"', "keep_free = 0"]
        return ["[wan]", *cache] if name == "wb" else []


@pytest.fixture
def installation(tmp_path):
    made = WanInstallation(tmp_path / "site", MORE)
    made.add_machine(sizes=(64 * MiB,))
    made.write(0, 48 * MiB)
    yield made
    made.close()


def disk_of(outcome):
    assert outcome.returncode in (0, 3), outcome.stdout + outcome.stderr
    (machine,) = json.loads(outcome.stdout)["machines"]
    assert machine["outcome"] == "done", machine
    return machine["disks"][0], machine["warnings"]


@pytest.mark.skipif(sys.platform != "linux", reason="kill -9, and service movers run on Linux")
def test_a_killed_server_joins_all_four_ends_and_a_killed_accelerator_is_done_without(installation):
    died = installation.start(STANDBY_KILL_POINT="disk under way")
    assert died.returncode == -9
    disk, warnings = disk_of(installation.start())
    assert "went on with what another process began" in warnings
    assert (disk["retries"], disk["wan"]["name"]) == (0, "main")
    assert 48 * MiB < disk["wan"]["sent"] < 49 * MiB
    tried = installation.command("infrastructure", "check")
    assert tried.returncode == 0, tried.stdout
    for line in ("mover px -> mover wa as wan", "mover wa -> mover wb", "mover wb -> mover dr"):
        assert line in tried.stdout
    (key,) = installation.folder.glob("*-wan.key")
    for name in installation.roles:
        assert key.read_text().strip() not in installation.log(name)

    installation.write(0, 48 * MiB)
    installation.states.append(installation.content("vm1"))
    with started("job", "start", "job", "--json", "--config", installation.config) as process:
        partials = (installation.folder / "target").rglob
        wait_until(
            lambda: sum(p.stat().st_blocks * 512 for p in partials("*.partial.vhdx")) > 8 * MiB,
            "some data arrived",
        )
        installation.kill_mover("wb")
        out, err = process.communicate(timeout=120)
    disk, warnings = disk_of(SimpleNamespace(returncode=process.returncode, stdout=out, stderr=err))
    assert any("sent directly, not over WAN accelerators main" in text for text in warnings)
    assert ("mover wb" in disk["wan"]["left"], disk["retries"] > 0) == (True, True)
    assert installation.check_points() == 2
    installation.check_nothing_leaked()
