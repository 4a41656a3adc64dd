"""The cache of a mover, looked after while jobs run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.processes import wait_until
from simulation.wan_site import DATA, MORE, WanSite
from standby.errors import ConfigurationError, LinkError, MoverDied, PathRefused, UnknownName
from standby.server.fleet import Fleet
from standby.server.wan_caches import WanCaches
from standby.units import MiB
from standby.wan.namespace import Namespace

OTHER = MORE + '[wan.other]\nsource = "wa"\ntarget = "dr2"\n'


@pytest.fixture
def site(tmp_path: Path) -> Iterator[WanSite]:
    made = WanSite(tmp_path / "site", OTHER)
    made.twin("vm1")
    yield made
    made.close()


@pytest.fixture
def caches(site: WanSite) -> Iterator[WanCaches]:
    with (
        site.server() as server,
        contextlib.closing(Fleet(server.config, make_link=site.link)) as it,
    ):
        yield WanCaches(server.config, it)


def test_a_replica_is_taken_in_and_the_next_vm_is_not_sent(
    site: WanSite, caches: WanCaches
) -> None:
    key = caches.key_of_pair("main")
    source = site.folder / "target" / "seed"
    source.mkdir()
    (source / "disk.raw").write_bytes(site.random.bytes(1 << 20))
    cache = caches.of_pair("main")
    assert cache.disks([str(source)]) == [(str(source / "disk.raw"), 1 << 20)]
    told: list[tuple[str, int, int]] = []
    report, evicted = cache.populate(key, [str(source)], lambda *it: told.append(it))
    assert (report.disks, report.pieces_added, evicted) == (1, 256, 0)
    report, _ = cache.populate(key, [str(source)], None, in_place=True)
    assert report.pieces_added == 0
    site.run()
    assert cache.clear(key) > 0
    replica = str(site.folder / "target" / "vm1_replica")
    report, _ = cache.populate(key, [replica], None)
    assert report.pieces_added == DATA // 4096
    site.twin("vm2")
    twin = site.run().machines[1].disks[0].wan
    assert twin.found == DATA // 4096
    status = cache.status()
    assert status.counts["found"] >= DATA // 4096
    assert (status.mode, status.pieces) == ("full", DATA // 4096)


def test_the_cache_is_verified_and_cleared_while_a_disk_goes_through(
    site: WanSite, caches: WanCaches
) -> None:
    machine, cache = site.machines["wa"], caches.of_mover("wb")
    found = {}

    def look() -> None:
        found["verified"] = cache.verify(caches.keys_of_mover("wb"), None, drop=True)
        found["cleared"] = cache.clear(None)

    machine.cut_after, machine.cuts, machine.on_cut = DATA // 2, False, look
    report = site.run()
    assert report.machines[0].outcome == "done"
    assert found["verified"].is_ok
    assert site.check_points("vm1_replica") == 1
    after = cache.verify(caches.keys_of_mover("wb"), None, drop=False)
    assert (after.is_ok, after.unnamed_pieces) == (True, 0)
    assert after.pieces <= DATA // 4096


def test_who_does_not_wait_for_a_warm_up_any_more_ends_it(
    site: WanSite, caches: WanCaches, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site.folder / "target" / "disk.raw").write_bytes(site.random.bytes(16 * MiB))
    verbs = site.verbs("wb")
    take_in, cancel = Namespace.take_in, verbs.cancel
    reads, told = threading.Semaphore(0), threading.Event()

    def held(part: Namespace, data: object) -> object:
        reads.acquire()
        return take_in(part, data)

    monkeypatch.setattr(Namespace, "take_in", held)
    monkeypatch.setattr(verbs, "cancel", lambda task: (cancel(task), told.set()))
    reads.release()

    class Enough(Exception):
        pass

    def stop(label: str, done: int, total: int) -> None:
        if done:
            assert (label, done, total) == ("mover wb", 2 * MiB, 16 * MiB)
            raise Enough

    cache, key = caches.of_mover("wb"), caches.key_of_pair("main")
    with pytest.raises(Enough):
        cache.populate(key, [str(site.folder / "target" / "disk.raw")], stop)
    assert told.wait(20)
    for _ in range(8):
        reads.release()
    wait_until(lambda: not verbs.call("progress", {}), "it has ended")
    assert cache.status().pieces == 4 * MiB // 4096


def test_what_cannot_be_asked_says_why(site: WanSite, caches: WanCaches) -> None:
    for call in (caches.of_mover, caches.of_pair):
        with pytest.raises(UnknownName):
            call("nobody")
    key = caches.key_of_pair("main")
    with pytest.raises(ConfigurationError, match="lies below none of the roots"):
        caches.of_mover("wb").populate(key, ["/etc"], None)
    with pytest.raises(ConfigurationError, match="is not there, at mover wb"):
        caches.of_mover("wb").populate(key, [str(site.folder / "target" / "none")], None)
    (site.folder / "target" / "link").symlink_to("/etc")
    with pytest.raises(PathRefused, match="is a link"):
        caches.of_mover("wb").disks([str(site.folder / "target" / "link")])
    with pytest.raises(ConfigurationError, match="mover wa: keeps no global cache"):
        caches.of_mover("wa").status()
    with pytest.raises(ConfigurationError, match="mover wa: keeps no global cache"):
        caches.of_mover("wa").verify([], None, drop=True)
    site.away.add("wb")
    site.machines["wb"].vanish()
    with pytest.raises((MoverDied, LinkError)):  # asked before it was seen to be gone
        caches.of_mover("wb").status()


def test_all_pairs_say_what_their_caches_hold(site: WanSite, caches: WanCaches) -> None:
    site.run()
    main, other = caches.status()
    assert (main.pair, main.source, main.target, main.problem) == ("main", "wa", "wb", "")
    assert main.cache is not None
    assert main.cache.pieces == DATA // 4096
    assert other.cache is None
    assert (other.receiving, main.receiving) == (None, other.sending)
    assert "knows no 'wan_status'" in other.problem
