"""Disks sent through a pair of WAN accelerators: every byte arrives, whatever happens to the cache,
the links and either end; what is known travels as names."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from road.accelerating import KEY, LIMITS, Pair, WanSession, errors
from road.driving import content, write
from road.plain import WAIT_S
from standby.disk import open_disk
from standby.errors import DiskFull, LinkError, ProtocolError, SourceChanged, StandbyError
from standby.road.partial import PartialDisk
from standby.road.replica import ReplicaFolder
from standby.road.source_proxy import SourceProxy
from standby.units import GiB, KiB, MiB, TiB
from standby.wan.cache import GlobalCache, Namespace
from standby.wan.transfers import CacheTransfer

PIECE = 4 * KiB


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path, tmp_path / "cache")
    yield made
    made.close()


def fill(disk: Path, *, seed: int = 1) -> None:
    """Noise, something that compresses, and holes between."""
    write(disk, 4 * KiB, 9 * MiB, seed)
    opened = open_disk(disk, writable=True)
    words = np.random.default_rng(seed).integers(97, 101, 4 * MiB, np.uint8)
    opened.write(12 * MiB + 8 * KiB, words.tobytes())
    opened.close()


def zero(disk: Path, offset: int, length: int) -> None:
    opened = open_disk(disk, writable=True)
    opened.write(offset, bytes(length))
    opened.close()


def run(pair: Pair, name: str, **given: Any) -> WanSession:
    """A whole session; the replica is the source."""
    session = pair.session(name)
    session.results(session.begin_all(**given))
    session.end_all()
    assert pair.replica(name) == content(pair.folder / "src" / name / name / "disk0.vhdx")
    return session


# --- what arrives ----------------------------------------------------------------------------


def test_a_whole_disk_arrives_and_the_report_is_true(pair):
    fill(pair.machine("vm1"))
    session = run(pair, "vm1")
    sent, received = session.wan_sent, session.wan_received
    pieces = sum(sent["pieces"].values())
    assert pieces * 4 * KiB == session.sent["changed"]
    assert {"raw", "stream"} <= set(sent["pieces"])
    assert 9 * MiB < sent["sent"] < 11.5 * MiB
    assert abs(sent["direct"] - sent["sent"]) < sent["sent"] / 10
    assert sent["received"] < 20 * KiB
    assert (sent["resent"], sent["mode"]) == (0, "digest")
    assert received["asked"] == received["cached"] == pieces
    assert received["found"] == 0
    assert received["warnings"] == []
    assert min(sent["cpu_s"], received["cpu_s"]) > 0


def test_the_same_disk_of_another_vm_is_only_named(pair):
    for name in ("vm1", "vm2"):
        fill(pair.machine(name))
        session = run(pair, name)
    sent = session.wan_sent
    assert set(sent["pieces"]) == {"asked"}
    # 6 bytes per piece, 32 per 64 of them; what is not data is a few hundred.
    assert sent["sent"] + sent["received"] < session.sent["changed"] * 0.002
    assert session.wan_received["found"] == session.wan_received["asked"]
    assert session.wan_received["cached"] == 0
    assert pair.servers["far"].call("wan_status")["counts"]["found"] > 0


def test_the_next_point_carries_what_changed_and_what_is_zero_now(pair):
    disk = pair.machine("vm1")
    fill(disk)
    run(pair, "vm1")
    zero(disk, 2 * MiB, 3 * MiB)
    write(disk, 20 * MiB + 512, 100 * KiB)
    zero(disk, 12 * MiB + 8 * KiB, 4 * KiB)
    session = run(pair, "vm1")
    assert session.sent["zeroed"] >= 3 * MiB
    assert session.wan_sent["sent"] < 120 * KiB


def test_a_target_is_asked_for_what_it_holds(pair):
    disk = pair.machine("vm1")
    fill(disk)
    run(pair, "vm1")
    write(disk, 20 * MiB, 100 * KiB)
    session = run(pair, "vm1", baseline="target")
    assert session.sent["changed"] <= 128 * KiB


def test_the_last_piece_may_be_short(pair):
    size = 8 * MiB + 512
    disk = pair.machine("vm1", size)
    write(disk, 8 * MiB - 6 * KiB, 6 * KiB + 512)
    run(pair, "vm1")
    zero(disk, 8 * MiB, 512)
    run(pair, "vm1")
    write(disk, 8 * MiB, 512, 3)
    run(pair, "vm1")


def test_packed_batches_are_understood_too(pair):
    fill(pair.machine("vm1"))
    session = pair.session("vm1")
    session.compression = "fast"
    session.results(session.begin_all())
    session.end_all()
    assert pair.replica("vm1") == content(pair.folder / "src" / "vm1" / "vm1" / "disk0.vhdx")


def test_disks_at_once_share_the_cache(pair):
    names = ["vm1", "vm2", "vm3"]
    for name in names:
        fill(pair.machine(name), seed=int(name[2:]))
    fill(pair.machine("seen"), seed=2)
    run(pair, "seen")
    sessions = [pair.session(name) for name in names]
    begun = [session.begin_all() for session in sessions]
    for session, futures in zip(sessions, begun, strict=True):
        session.results(futures)
        session.end_all()
    for name in names:
        assert pair.replica(name) == content(pair.folder / "src" / name / name / "disk0.vhdx")
    assert sessions[1].wan_received["found"] == sessions[1].wan_received["asked"]
    assert sessions[0].wan_received["found"] < sessions[0].wan_received["asked"]


# --- read-back -------------------------------------------------------------------------------


def test_blocks_that_read_back_wrong_come_again(pair, monkeypatch):
    fill(pair.machine("vm1"))
    right = PartialDisk.read_back
    wrong = [(64 * KiB, 128 * KiB), (13 * MiB, 4 * KiB)]

    def read_back(self: PartialDisk, *given: Any, **more: Any) -> list[tuple[int, int]]:
        found, wrong[:] = [*right(self, *given, **more), *wrong], []
        return found

    monkeypatch.setattr(PartialDisk, "read_back", read_back)
    session = run(pair, "vm1")
    assert session.received["resent_blocks"] == 2
    assert session.sent["resent"] >= 132 * KiB


# --- the cache -------------------------------------------------------------------------------


def damage(folder: Path) -> None:
    """Flip a byte every 2 KiB of all content."""
    for path in folder.glob("*.segment"):
        data = bytearray(path.read_bytes())
        for at in range(4 * KiB, len(data), 2 * KiB):
            data[at] ^= 0xFF
        path.write_bytes(data)


@pytest.mark.parametrize("is_open", [True, False], ids=["while open", "between"])
def test_a_damaged_cache_costs_bytes_only(pair, is_open):
    fill(pair.machine("vm1"))
    run(pair, "vm1")
    if is_open:
        pair.servers["far"].call("wan_status")
        damage(pair.cache)
    else:
        pair.restart_far()
        damage(pair.cache)
    fill(pair.machine("vm2"))
    session = run(pair, "vm2")
    assert session.wan_sent["sent"] < 11.5 * MiB
    if is_open:
        assert session.wan_sent["resent"] > 0


def test_a_wrong_hint_costs_one_unit_again(pair, monkeypatch):
    fill(pair.machine("vm1"))
    run(pair, "vm1")
    fill(pair.machine("vm2"))
    right = CacheTransfer.read_found
    lies = [1]

    def read_found(self: CacheTransfer, locations: Any, rows: Any, out: Any) -> Any:
        ok = right(self, locations, rows, out)
        if lies and ok.all() and len(ok):
            lies.pop()
            out[rows[0]] ^= 1
        return ok

    monkeypatch.setattr(CacheTransfer, "read_found", read_found)
    session = run(pair, "vm2")
    assert session.wan_sent["resent"] == 1
    assert session.wan_received["resent"] == 1
    assert session.wan_sent["sent"] < 64 * 4 * KiB + session.sent["changed"] * 0.002


def test_a_cache_that_is_cleared_is_filled_again(pair):
    fill(pair.machine("vm1"))
    run(pair, "vm1")
    pair.restart_far()
    with GlobalCache(pair.cache, LIMITS) as cache:
        cache.clear()
    fill(pair.machine("vm2"))
    session = run(pair, "vm2")
    assert session.wan_received["found"] == 0
    assert session.wan_received["cached"] > 0


def test_an_older_cache_put_back_is_used_as_far_as_it_goes(pair):
    fill(pair.machine("vm1"))
    run(pair, "vm1")
    pair.restart_far()
    shutil.copytree(pair.cache, pair.folder / "older")
    fill(pair.machine("vm2"), seed=2)
    run(pair, "vm2")
    pair.servers["far"].close()
    pair.far.close()
    shutil.rmtree(pair.cache)
    (pair.folder / "older").rename(pair.cache)
    pair.restart_far()
    for name, seed in (("vm3", 1), ("vm4", 2)):
        fill(pair.machine(name), seed=seed)
        session = run(pair, name)
        assert (session.wan_received["found"] > 0) == (seed == 1)


def test_a_cache_in_use_elsewhere_fails_nothing(pair):
    with GlobalCache(pair.cache, LIMITS):
        fill(pair.machine("vm1"))
        session = run(pair, "vm1")
    assert session.wan_received["asked"] == 0
    assert "cannot be used" in session.wan_received["warnings"][0]


def test_a_cache_whose_folder_is_none_fails_nothing(pair):
    pair.cache.write_bytes(b"")
    fill(pair.machine("vm1"))
    session = run(pair, "vm1")
    assert "cannot be used" in session.wan_received["warnings"][0]
    with pytest.raises(StandbyError):
        pair.servers["far"].call("wan_status")


def test_a_cache_that_fails_fails_nothing(pair, monkeypatch):
    def take_in(*_: Any) -> Any:
        raise ValueError("a bug")

    def lookup(*_: Any, **__: Any) -> Any:
        raise ValueError("another bug")

    monkeypatch.setattr(Namespace, "take_in", take_in)
    monkeypatch.setattr(Namespace, "lookup", lookup)
    fill(pair.machine("vm1"))
    session = run(pair, "vm1")
    assert session.wan_received["cached"] == 0
    asked, taken = session.wan_received["warnings"]
    assert asked.endswith("not asked: another bug")
    assert taken.endswith("takes nothing in: a bug")


def test_an_accelerator_without_a_cache_sends_everything(tmp_path):
    pair = Pair(tmp_path, None)
    try:
        fill(pair.machine("vm1"))
        session = run(pair, "vm1")
        assert session.wan_received["asked"] == 0
        assert pair.servers["far"].call("wan_status") is None
    finally:
        pair.close()


# --- what fails ------------------------------------------------------------------------------


def test_what_fails_at_the_target_is_said_at_the_source(pair, monkeypatch):
    fill(pair.machine("vm1"))

    def receive(*_: Any) -> None:
        raise DiskFull("replica", 100, 1)

    monkeypatch.setattr(PartialDisk, "receive", receive)
    session = pair.session("vm1")
    ended = errors(session.begin_all())
    assert [type(error) for error in ended] == [DiskFull] * 4


def test_what_fails_at_the_source_ends_all_four(pair, monkeypatch):
    fill(pair.machine("vm1"))

    def scan(self: SourceProxy) -> None:
        raise SourceChanged("vm1", "disk0.vhdx", "it was written to")

    monkeypatch.setattr(SourceProxy, "_run_scanners", scan)
    ended = errors(pair.session("vm1").begin_all())
    assert [type(error) for error in ended] == [LinkError] * 3 + [SourceChanged]


def test_an_accelerator_that_cannot_connect_says_so_at_the_source(pair):
    fill(pair.machine("vm1"))
    pair.cutter.address = "127.0.0.1:1"
    pair.far.mover.connections._accept_timeout_s = 0.2
    pair.target.mover.connections._accept_timeout_s = 0.2
    session = pair.session("vm1")
    ended = errors(session.begin_all())
    assert all(isinstance(error, LinkError) for error in ended)
    assert "cannot connect" in str(ended[3])


def test_a_task_that_is_cancelled_ends_everywhere(pair, monkeypatch):
    fill(pair.machine("vm1"))
    right, begun, gate = PartialDisk.receive, threading.Event(), threading.Event()

    def receive(*given: Any) -> None:
        begun.set()
        assert gate.wait(WAIT_S)
        right(*given)

    monkeypatch.setattr(PartialDisk, "receive", receive)
    session = pair.session("vm1")
    session.prepare()
    session.take_checkpoint()
    session.begin()
    futures = session.transfer("task")
    assert begun.wait(WAIT_S)
    pair.servers["near"].call("cancel", task="task")
    gate.set()
    assert [type(error) for error in errors(futures)] == [LinkError] * 4


@pytest.mark.parametrize("after", [100, 5 * KiB, 400 * KiB, 4 * MiB])
def test_a_link_cut_between_the_accelerators_is_gone_on_from(pair, after):
    fill(pair.machine("vm1"))
    session = pair.session("vm1")
    pair.cutter.after = after
    for machine in (pair.far, pair.target):
        machine.mover.connections._accept_timeout_s = 1
    ended = errors(session.begin_all())
    assert all(isinstance(error, LinkError) for error in ended)
    for machine in (pair.far, pair.target):
        machine.mover.connections._accept_timeout_s = WAIT_S
    pair.cutter.after = 1 << 62
    begun = session.begin()
    session.results(session.transfer(mark=begun["mark"], baseline="target"))
    session.end_all()
    assert pair.replica("vm1") == content(pair.folder / "src" / "vm1" / "vm1" / "disk0.vhdx")


def test_an_accelerator_that_died_is_gone_on_from(pair):
    fill(pair.machine("vm1"))
    session = pair.session("vm1")
    pair.cutter.after = 19 * MiB // 2
    errors(session.begin_all())
    pair.restart_far()
    begun = session.begin()
    session.results(session.transfer(mark=begun["mark"], baseline="target"))
    session.end_all()
    # The frame of 8 MiB that had arrived is not sent again.
    assert session.wan_sent["sent"] < 4 * MiB
    assert pair.replica("vm1") == content(pair.folder / "src" / "vm1" / "vm1" / "disk0.vhdx")


def test_a_key_that_is_none_is_refused_and_not_repeated(pair):
    fill(pair.machine("vm1"))
    session = pair.session("vm1")
    session.key_text = KEY[:-2] + "xy"
    for machine in (pair.source, pair.target):
        machine.mover.connections._accept_timeout_s = 0.2
        machine.mover.connections._park_s = 0.2
    pair.near.mover.connections._park_s = 0.2
    ended = errors(session.begin_all())
    for error in ended[1:3]:
        assert isinstance(error, ProtocolError)
        assert session.key_text not in str(error)


# --- ways ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["direct", "auto", "full"])
def test_every_way_brings_every_byte(tmp_path, mode):
    pair = Pair(tmp_path, tmp_path / "cache", mode=mode, reads_replicas=True)
    try:
        size = 24 * MiB + 512
        disk = pair.machine("vm1", size)
        fill(disk)
        write(disk, 24 * MiB - 6 * KiB, 6 * KiB + 512)
        session = run(pair, "vm1")
        zero(disk, 2 * MiB, 3 * MiB)
        zero(disk, 24 * MiB, 512)
        write(disk, 20 * MiB + 512, 100 * KiB)
        for part in range(40):
            write(disk, part * 68 * KiB, 512, part)
        session = run(pair, "vm1")
        pieces = session.wan_sent["pieces"]
        assert sum(pieces.values()) * 4 * KiB == session.sent["changed"] - session.sent["zeroed"]
        told = session.wan_sent
        said = told["sent"] + told["received"]
        assert 0.9 * said - 2 * KiB < sum(told["bytes"].values()) < said
        if mode == "direct":
            assert set(pieces) == {"direct"}
            assert session.wan_received["asked"] == session.wan_received["cached"] == 0
        assert session.wan_sent["mode"].startswith(mode)
        assert session.wan_sent["resent"] == 0
    finally:
        pair.close()


def test_direct_batches_of_an_estimate_are_what_was_sent(tmp_path):
    pair = Pair(tmp_path, None, mode="direct")
    try:
        fill(pair.machine("vm1"))
        sent = run(pair, "vm1").wan_sent
        assert abs(sent["direct"] - sent["sent"]) < 20 * KiB
    finally:
        pair.close()


@pytest.mark.parametrize("mode", ["direct", "auto"])
def test_what_reads_back_wrong_comes_again_any_way(tmp_path, monkeypatch, mode):
    pair = Pair(tmp_path, tmp_path / "cache", mode=mode, reads_replicas=True)
    try:
        fill(pair.machine("vm1"))
        right = PartialDisk.read_back
        wrong = [(64 * KiB, 128 * KiB), (13 * MiB, 4 * KiB)]

        def read_back(self: PartialDisk, *given: Any, **more: Any) -> list[tuple[int, int]]:
            found, wrong[:] = [*right(self, *given, **more), *wrong], []
            return found

        monkeypatch.setattr(PartialDisk, "read_back", read_back)
        assert run(pair, "vm1").received["resent_blocks"] == 2
    finally:
        pair.close()


@pytest.mark.parametrize("mode", ["direct", "auto"])
def test_a_cut_link_is_gone_on_from_any_way(tmp_path, mode):
    pair = Pair(tmp_path, tmp_path / "cache", mode=mode, reads_replicas=True)
    try:
        fill(pair.machine("vm1"))
        session = pair.session("vm1")
        pair.cutter.after = 5 * MiB
        for machine in (pair.far, pair.target):
            machine.mover.connections._accept_timeout_s = 1
        assert all(isinstance(error, LinkError) for error in errors(session.begin_all()))
        pair.cutter.after = 1 << 62
        begun = session.begin()
        session.results(session.transfer(mark=begun["mark"], baseline="target"))
        session.end_all()
        assert pair.replica("vm1") == content(pair.folder / "src" / "vm1" / "vm1" / "disk0.vhdx")
    finally:
        pair.close()


# --- what next to nothing costs --------------------------------------------------------------

CYCLE_BYTES, PIECE_BYTES = 200, 8 * KiB
"""Of messages, both ways, at most: an unchanged disk on a standing link; one changed piece of a
disk of 1 TiB, of which nothing is known on this side, without its data."""


def said(session: WanSession) -> int:
    """Bytes between the accelerators, both ways, as their links count them."""
    return session.wan_sent["sent"] + session.wan_sent["received"]


def test_an_unchanged_disk_costs_next_to_nothing_on_a_standing_link(pair):
    disk = pair.machine("vm1", 600 * MiB)  # enough for marks
    write(disk, 4 * KiB, MiB)
    run_large(pair, "vm1")
    costs = []
    for _ in range(3):
        session = run_large(pair, "vm1")
        assert session.sent["changed"] == 0
        costs.append((session.wan_sent["sent"], session.wan_sent["received"]))
    assert len(set(costs)) == 1  # nothing of it depends on the weather
    assert sum(costs[0]) <= CYCLE_BYTES
    assert pair.cutter.connections == 1


def run_large(pair: Pair, name: str, **given: Any) -> WanSession:
    """`run` without reading a disk whole."""
    session = pair.session(name)
    session.results(session.begin_all(**given))
    session.end_all()
    return session


def test_interfaces_bytes_are_those_of_the_task_alone(pair):
    write(pair.machine("vm1"), 4 * KiB, 2 * MiB)
    first, second = run(pair, "vm1"), run(pair, "vm1")
    if first.wan_sent["wire_sent"]:  # Linux
        assert first.wan_sent["wire_sent"] > 2 * MiB
        for way in ("sent", "received"):
            assert second.wan_sent[way] < second.wan_sent[f"wire_{way}"] < 4 * KiB


def test_one_piece_of_a_terabyte_of_which_nothing_is_known_costs_little(pair):
    """Every gigabyte has something, and so has every page, block and piece around the change: no
    node that is asked for is zero."""
    disk = pair.machine("vm1", TiB)
    place = 700 * GiB + 20 * 16 * MiB + 9 * 256 * KiB + 5 * PIECE
    chance = np.random.default_rng(3)
    opened = open_disk(disk, writable=True)
    offsets = {gib * GiB for gib in range(1024)}
    offsets |= {700 * GiB + page * 16 * MiB for page in range(64)}
    offsets |= {place // (16 * MiB) * 16 * MiB + block * 256 * KiB for block in range(64)}
    for offset in sorted(offsets):
        opened.write(offset, chance.bytes(PIECE))
    opened.write(place // (256 * KiB) * 256 * KiB, chance.bytes(256 * KiB))
    opened.close()
    run_large(pair, "vm1")
    changed = chance.bytes(PIECE)
    opened = open_disk(disk, writable=True)
    opened.write(place, changed)
    opened.close()
    session = run_large(pair, "vm1", baseline="target")
    assert session.sent["changed"] == PIECE
    assert said(session) - PIECE <= PIECE_BYTES
    held = bytearray(PIECE)
    with_parents = newest(pair, "vm1")
    with_parents.read_into(place, held)
    with_parents.close()
    assert held == changed
    assert said(run_large(pair, "vm1", baseline="target")) <= 2 * KiB


def newest(pair: Pair, name: str) -> Any:
    """The newest point's disk."""
    folder = ReplicaFolder(pair.folder / "dst" / f"{name}_replica")
    point = folder.newest()
    assert point is not None
    chain = folder.chain_paths(point, folder.record().disks[0].id)
    return open_disk(chain[0], parents=list(chain[1:]) or None)


@pytest.mark.parametrize("side", ["near", "far"])
def test_an_accelerator_that_was_started_anew_between_cycles_costs_a_connection(pair, side):
    write(pair.machine("vm1"), 4 * KiB, MiB)
    run(pair, "vm1")
    pair.restart_near() if side == "near" else pair.restart_far()
    assert said(run(pair, "vm1")) <= 2 * CYCLE_BYTES
    assert said(run(pair, "vm1")) <= CYCLE_BYTES


def test_a_standing_link_that_is_cut_between_cycles_is_made_anew(pair):
    write(pair.machine("vm1"), 4 * KiB, MiB)
    run(pair, "vm1")
    pair.cutter.after = 1  # the next byte on it
    with_cut = pair.session("vm1")
    with_cut.prepare()
    with_cut.take_checkpoint()
    with_cut.begin()
    right = pair.near.mover.connections._connect

    def connect(*given: Any) -> Any:
        pair.cutter.after = 1 << 62
        return right(*given)

    pair.near.mover.connections._connect = connect
    with_cut.results(with_cut.transfer())
    with_cut.end_all()
    assert pair.cutter.connections == 2
    assert run(pair, "vm1").sent["changed"] == 0
    assert pair.cutter.connections == 2


@pytest.mark.parametrize("after", [24, 40], ids=["as it begins", "before the last word"])
def test_a_standing_link_that_is_cut_in_a_cycle_is_gone_on_from(pair, after):
    disk = pair.machine("vm1")
    fill(disk)
    run(pair, "vm1")
    for machine in (pair.far, pair.target):
        machine.mover.connections._accept_timeout_s = 1
    pair.cutter.after = after
    session = pair.session("vm1")
    ended = errors(session.begin_all())
    # The target and its accelerator may have it all: their last word is what was cut off.
    assert all(isinstance(error, LinkError) for error in ended[2:])
    assert all(error is None or isinstance(error, LinkError) for error in ended[:2])
    pair.cutter.after = 1 << 62
    for machine in (pair.far, pair.target):
        machine.mover.connections._accept_timeout_s = WAIT_S
    session.results(session.transfer(mark=session.begin()["mark"], baseline="target"))
    session.end_all()
    assert pair.replica("vm1") == content(disk)
