"""What a server, or someone who speaks like one, cannot have a service mover do (RULES 17, 20)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from road.driving import Session, content, write
from road.plain import Machine, ManualClock, Server, connected
from standby import files
from standby.disk import vhdx
from standby.errors import (
    ConfigurationError,
    LinkError,
    ParentRefused,
    PathRefused,
    PeerBusy,
    ProtocolError,
    StandbyError,
    TargetRefuses,
)
from standby.host.folder import new_machine
from standby.model.replica import ReplicaIdentity, ReplicaState
from standby.model.target_rules import TargetRules
from standby.road.replica import ReplicaFolder
from standby.road.service_config import WanConfig, load_service_config
from standby.road.surveying import ReplicaStatus
from standby.road.verifying import PointVerdict
from standby.units import MiB
from standby.wan.limits import Limits
from standby.wire.messages import Finish

IDENTITY = msgspec.to_builtins(ReplicaIdentity("test", "prod", "id1", "job"))


class Site:
    """One machine with all roles and a VM; secrets beside its root, links to them in it."""

    def __init__(self, folder: Path, protect: TargetRules = TargetRules()) -> None:  # noqa: B008
        self.clock = ManualClock()
        self.root = folder / "one"
        self.outside = folder / "outside"
        self.machine = Machine("one", self.root, clock=self.clock, protect=protect)
        (self.root / "vms").mkdir()
        (self.root / "target").mkdir()
        new_machine(self.root / "vms", "vm1", {"scsi:0:0": 8 * MiB})
        self.vm = self.root / "vms" / "vm1"
        self.disk = self.vm / "disk0.vhdx"
        write(self.disk, 0, MiB)
        self.outside.mkdir()
        vhdx.create(self.outside / "secret.vhdx", 8 * MiB).close()
        (self.outside / "secret").write_bytes(b"secret")
        for place in ("", "vms", "target"):
            (self.root / place / "link").symlink_to(self.outside)
        files.confine([self.root, folder / "one-state"])
        self.server = Server(self.machine)
        self.before = self.outsiders()

    def outsiders(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.outside.iterdir()}

    def close(self) -> None:
        self.server.close()
        self.machine.close()
        files.confine(())

    def session(self) -> Session:
        return Session(
            self.machine,
            self.machine,
            clock=self.clock,
            source_root="data:vms",
            target_root="data:target",
        )

    def replica(self) -> ReplicaFolder:
        return ReplicaFolder(self.root / "target" / "vm1_replica")


@contextlib.contextmanager
def opened(folder: Path, *rules: TargetRules) -> Iterator[Site]:
    made = Site(folder, *rules)
    try:
        yield made
        assert made.outsiders() == made.before
    finally:
        made.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with opened(tmp_path) as made:
        yield made


BAD_PLACES = (
    "/etc",
    "data:/etc",
    "data:../outside",
    "data:vms/../../outside",
    "data:link",
    "data:link/secret",
    "state:",
    "C:\\Windows",
    "data:vms\0",
    "",
)


@pytest.mark.parametrize("place", BAD_PLACES)
def test_no_verb_takes_a_place_outside_of_the_roots(site, place):
    disk = {"root": place, "files": ["x"]}
    calls = {
        "find_replica": {"root": place, "identity": IDENTITY, "wanted": "x"},
        "inspect_replica": {"path": place},
        "mapped_disks": {"root": place, "folder": "x"},
        "free_bytes": {"path": place},
        "open_replica": {
            "root": place,
            "identity": IDENTITY,
            "wanted": "x",
            "session": "s",
            "take_over": False,
            "must_exist": False,
            "expected": "x",
        },
        "keep_replica_machine": {
            "path": place,
            "machine": {"id": "x", "name": "x", "folder": "x"},
            "ready": {"scsi:0:0": "ready.vhdx"},
        },
        "measure_disk": {"disk": disk},
        "host_machines": {"root": place, "host": "prod"},
        "host_release_leftovers": {"root": place, "host": "prod"},
        "replica_list": {"root": place},
        "replica_show": {"root": place, "name": "x"},
        "replica_failover": {"root": place, "name": "x"},
        "replica_verify": {"task": "t", "root": place, "name": "x"},
        "repository_states": {"repository": place, "replica": "x", "create": True},
        "repository_heal": {"repository": place, "replica": "x", "problem": "damaged"},
        "repository_verify": {"repository": place},
    }
    for verb, arguments in calls.items():
        with pytest.raises(PathRefused):
            site.server.call(verb, **arguments)


@pytest.mark.parametrize("name", ["../outside/secret.vhdx", "/etc/passwd", "link/secret.vhdx", ""])
def test_a_disk_is_read_below_its_hosts_folder_only(site, name):
    for root in ("data:", "data:vms"):
        with pytest.raises(PathRefused):
            site.server.call("measure_disk", disk={"root": root, "files": [name]})
    with pytest.raises(ProtocolError):
        site.server.call("measure_disk", disk={"root": "data:", "files": []})


def test_a_parent_locator_leads_nowhere(site):
    files.confine(())
    child = site.root / "vms" / "child.vhdx"
    vhdx.create_child(child, site.outside / "secret.vhdx").close()
    linked = site.root / "vms" / "linked.vhdx"
    vhdx.create_child(linked, site.disk).close()
    (site.vm / "was").hardlink_to(site.disk)
    site.disk.unlink()
    site.disk.symlink_to(site.outside / "secret.vhdx")
    files.confine([site.root])
    for name in ("child.vhdx", "linked.vhdx"):
        with pytest.raises((ParentRefused, PathRefused)):
            site.server.call("measure_disk", disk={"root": "data:vms", "files": [name]})


@pytest.mark.parametrize("file", ["../../outside/secret.vhdx", "/etc/passwd", "link.vhdx"])
def test_a_vm_toml_leads_nowhere(site, file):
    (site.vm / "link.vhdx").symlink_to(site.outside / "secret.vhdx")
    text = (site.vm / "vm.toml").read_text()
    (site.vm / "vm.toml").write_text(text.replace("disk0.vhdx", file))
    vm = {"id": "x", "name": "vm1", "folder": "vm1", "disks": []}
    with pytest.raises(StandbyError):
        site.server.call(
            "host_take_checkpoint", root="data:vms", host="prod", machine=vm, intent_id="i"
        )


def test_a_vm_in_a_linked_folder_is_none(site):
    (site.root / "vms" / "vm2").symlink_to(site.outside)
    for folder in ("vm2", "..", "link"):
        vm = {"id": "x", "name": "vm1", "folder": folder}
        with pytest.raises((ConfigurationError, PathRefused)):
            site.server.call("host_power_state", root="data:vms", host="prod", machine=vm)


def test_disks_points_and_seeds_are_names_in_the_replicas_folder(site):
    session = site.session()
    session.prepare()
    session.take_checkpoint()
    good = session.disk_id, session.point
    for bad in ("../vm1", "..", "a/b", "/etc", "", "a\0"):
        session.disk_id = bad
        with pytest.raises((PathRefused, ProtocolError)):
            session.begin()
    session.disk_id = good[0]
    for bad in ("../../x", "", "20200101T000000Z-0000/../x"):
        session.point = bad
        with pytest.raises(ProtocolError):
            session.begin()
    session.point = good[1]
    session.begin()
    session.close()


def test_a_planted_link_in_a_replica_is_not_followed(site):
    session = site.session()
    session.prepare()
    session.take_checkpoint()
    folder = site.replica()
    folder.disk_path(session.disk_id).symlink_to(site.outside)
    with pytest.raises(StandbyError):
        session.begin()
    session.target.call("close_replica", path=session.path)
    holder = folder.path / ".holder.json"
    holder.unlink()
    holder.symlink_to(site.outside / "secret")
    with pytest.raises(PathRefused):
        session.prepare()
    session.close()


def test_a_repository_behind_a_link_is_not_opened(site):
    (site.root / "repository").mkdir()
    (site.root / "repository" / "repository.sqlite-wal").symlink_to(site.outside / "secret")
    with pytest.raises(PathRefused):
        site.server.call(
            "repository_states", repository="data:repository", replica="x", create=True
        )


# --- what the target keeps -----------------------------------------------------------------------


@pytest.mark.parametrize("where", ["mover.toml", "the folder's file"])
def test_points_are_kept_whatever_a_server_orders(tmp_path, where):
    rules = TargetRules(2, 0) if where == "mover.toml" else TargetRules(1, 0)
    with opened(tmp_path, rules) as site:
        check_that_points_are_kept(site, where)


def check_that_points_are_kept(site: Site, where: str) -> None:
    if where != "mover.toml":
        (site.root / "target" / "standby-target.toml").write_text("keep_points_min = 2\n")
    points = []
    for number in range(3):
        write(site.disk, number * MiB, 4096, seed=number + 3)
        session = site.session()
        points.append(session.run())
        session.close()
        site.clock.advance(5)
    session = site.session()
    session.prepare()
    kept = session.target.call("retire_points", path=session.path, keep=1)
    assert list(kept["points"]) == points[1:]
    assert "own rules" in kept["warnings"][0]
    session.target.call("close_replica", path=session.path)
    server = site.server
    server.call("replica_failover", root="data:target", name="vm1_replica")
    with pytest.raises(TargetRefuses):
        server.call("replica_permanent_failover", root="data:target", name="vm1_replica")
    session.close()


# --- replicas from afar --------------------------------------------------------------------------


def test_replicas_are_listed_failed_over_undone_and_verified_from_afar(site):
    session = site.session()
    point = session.run()
    session.close()
    server = site.server
    (listed,) = server.call("replica_list", root="data:target")["replicas"]
    status = msgspec.convert(listed, ReplicaStatus)
    assert (status.name, status.folder) == ("vm1_replica", "data:target/vm1_replica")
    assert status.points[-1].id == point
    shown = server.call("replica_show", root="data:target", name="vm1_replica")
    moving = {"newest_age_s": 0, "free_bytes": 0}
    assert shown | moving == listed | moving
    plan = server.call("replica_plan", root="data:target", name="vm1_replica", action="failover")
    assert (plan["becomes"], plan["point"]) == ("failover", point)
    with pytest.raises(StandbyError, match="source VM is running"):
        server.call("replica_failover", root="data:target", name="vm1_replica", source_running=True)
    done = server.call("replica_failover", root="data:target", name="vm1_replica")
    assert done["record"]["state"] == ReplicaState.FAILOVER
    undone = server.call("replica_undo_failover", root="data:target", name="vm1_replica")
    assert undone["state"] == ReplicaState.READY
    verdicts = server.call("replica_verify", task="v", root="data:target", name="vm1_replica")
    (verdict,) = msgspec.convert(verdicts, list[PointVerdict])
    assert verdict.is_ok
    assert verdict.disks[0].bytes_read >= MiB
    assert server.call("rejoin", task="v") == verdicts
    assert server.call("progress") == {}


def test_damage_is_found_and_healed_from_another_replica(site):
    for job in range(2):
        session = site.session()
        if job:
            site.replica().path.rename(site.root / "aside")
        session.run()
        session.close()
    (site.root / "aside").rename(site.root / "target" / "other_replica")
    folder = site.replica()
    newest = folder.newest()
    path = folder.chain_paths(newest, newest.disks[0].disk_id)[0]
    data = path.read_bytes()
    held = content(site.disk)[4096:8192]
    place = data.index(held)
    path.write_bytes(data[:place] + b"damage" + data[place + 6 :])
    server = site.server
    verdicts = server.call("replica_verify", task="v", root="data:target", name="vm1_replica")
    assert not msgspec.convert(verdicts, list[PointVerdict])[0].is_ok
    assert server.call("replica_show", root="data:target", name="vm1_replica")["state"] == "damaged"
    (report,) = server.call(
        "replica_repair", task="r", root="data:target", name="vm1_replica", verdicts=verdicts
    )
    assert (report["healed_bytes"], report["missing"]) == (4096, {})
    verdicts = server.call("replica_verify", task="v2", root="data:target", name="vm1_replica")
    assert msgspec.convert(verdicts, list[PointVerdict])[0].is_ok


def test_an_action_nobody_knows_has_no_plan(site):
    with pytest.raises(StandbyError, match="action"):
        site.server.call("replica_plan", root="data:target", name="x", action="explode")
    with pytest.raises(StandbyError, match="replica"):
        site.server.call("replica_show", root="data:target", name="x")


# --- a repository from afar ----------------------------------------------------------------------


def test_a_repository_answers_from_afar(site):
    session = site.session()
    point = session.run()
    server, where = site.server, {"repository": "data:repository"}
    key, disk = session.key, session.disk_id
    assert server.call("repository_replicas", **where) == [key]
    assert server.call("repository_points", replica=key, **where) == [point]
    state = server.call("repository_states", replica=key, **where)[disk]
    assert (state["point_id"], state["root"]) == (point, session.sent["root"])
    assert server.call("repository_staged", replica=key, **where) == []
    index = server.call("repository_index", replica=key, disk=disk, **where)
    assert (index["count"], len(index["numbers"]), len(index["nodes"])) == (1, 8, 16)
    leaves = server.call("repository_leaves", replica=key, disk=disk, pages=[0], **where)
    assert len(leaves) == 4096 * 8
    with pytest.raises(ProtocolError):
        server.call("repository_leaves", replica=key, disk=disk, pages=[0] * 65, **where)
    assert server.call("repository_verify", task="v", **where) == []
    server.call("repository_discard", replica=key, **where)
    server.call("repository_drop_points", replica=key, keep=[point], **where)
    told = server.call("repository_heal", replica=key, problem="it is damaged: x", **where)
    assert "dropped" in told
    assert server.call("repository_states", replica=key, **where) == {}
    with pytest.raises(StandbyError, match="other"):
        server.call("repository_heal", replica=key, problem="other program's", **where)
    with pytest.raises(StandbyError, match="does not exist"):
        server.call("repository_states", repository="data:nowhere", replica=key)
    session.close()


def test_a_repository_that_is_beyond_healing_is_moved_away(site):
    (site.root / "repository").mkdir()
    (site.root / "repository" / "repository.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 4096)
    told = site.server.call(
        "repository_heal", repository="data:repository", replica="x", problem="it is damaged"
    )
    assert "moved to" in told
    assert not (site.root / "repository").exists()


# --- peers ---------------------------------------------------------------------------------------


def test_a_mover_that_asks_for_control_gets_none(site):
    from standby.wire.messages import Call, Failed

    for role in ("source", "target", "repository", "host"):
        link = connected(site.machine.listener.address, "evil", role, "one")
        link.send(Call(1, "ping", {}))
        message, _ = link.receive()
        assert isinstance(message, Failed)
        with pytest.raises(LinkError):
            link.receive()
        link.close()


def test_a_server_that_speaks_no_calls_is_cut_off(site):
    server = Server(site.machine, "strange")
    server.link.send(Finish())
    with pytest.raises(LinkError):
        server.call("ping")
    server.close()


def test_only_so_many_calls_are_under_way(site, monkeypatch):
    monkeypatch.setattr("standby.road.service.CALLS_MAX", 0)
    with pytest.raises(PeerBusy):
        site.server.call("ping")


def test_a_call_that_gets_no_thread_is_refused_and_the_connection_stays(site, monkeypatch):
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if thread.name == "tasks":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    for _ in range(3):
        with pytest.raises(PeerBusy, match="thread"):
            site.server.call("tasks")
    monkeypatch.undo()
    assert site.server.call("tasks") == []


# --- mover.toml ----------------------------------------------------------------------------------

GOOD = """\
name = "px1"
listen = "127.0.0.1:0"
identity = "identity"
state = "state"
roles = ["source", "host"]
orphan_timeout = "90s"
[roots]
vms = "vms"
[protect]
keep_points_min = 3
keep_days_min = 7
"""


def test_mover_toml_is_read(tmp_path):
    (tmp_path / "vms").mkdir()
    (tmp_path / "mover.toml").write_text(GOOD)
    config = load_service_config(tmp_path)
    assert (config.name, config.roles, config.orphan_timeout_s) == ("px1", ("source", "host"), 90)
    assert config.roots == {"vms": tmp_path / "vms"}
    assert config.identity == tmp_path / "identity"
    assert config.protect == TargetRules(3, 7)


def test_mover_toml_of_a_wan_accelerator(tmp_path):
    (tmp_path / "mover.toml").write_text(
        'name = "w"\nstate = "state"\nroles = ["wan"]\n[wan]\ncache = "cache"\n'
        'size = "10 GiB"\nmemory = "64 MiB"\nkeep_free = "2 GiB"\nwindow = "100 MiB"\n'
    )
    config = load_service_config(tmp_path)
    limits = Limits(10 << 30, 64 << 20, keep_free_bytes=2 << 30)
    assert (config.roles, config.roots) == (("wan",), {})
    assert config.wan == WanConfig(tmp_path / "cache", limits, 26)
    assert tmp_path / "cache" in config.folders


def test_an_accelerator_needs_no_cache_and_others_need_no_accelerator(tmp_path):
    (tmp_path / "mover.toml").write_text('name = "w"\nstate = "state"\nroles = ["wan"]\n[wan]\n')
    config = load_service_config(tmp_path)
    assert config.wan is not None
    assert (config.wan.cache, config.wan.window_log) == (None, 27)
    (tmp_path / "mover.toml").write_text(
        'name = "w"\nstate = "state"\n[roots]\nvms = "."\n[protect]\n'
    )
    config = load_service_config(tmp_path)
    assert config.wan is None
    assert "wan" not in config.roles


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"host"', '"hots"', "not known"),
        ('["source", "host"]', "[]", "is empty"),
        ('vms = "vms"', "", "names no folder"),
        ('vms = "vms"', 'vms = "nowhere"', "is not a folder"),
        ('vms = "vms"', 'v = "vms"', "no name for a root"),
        ("keep_points_min", "keep_point_min", "unknown key"),
        ('name = "px1"', "", "is missing"),
        ('"90s"', "90", "duration"),
        ("listen", "listens", "unknown key"),
        ("[protect]", '[wan]\ncache = "c"\n[protect]', "only for WAN accelerators"),
        ('"host"]', '"wan"]\n[wan]\ncaches = "c"', "unknown key"),
        ('"host"]', '"wan"]\n[wan]\ncache = "c"\nsize = "1 MiB"', "a limit of 1.0 MiB"),
        ('"host"]', '"wan"]\n[wan]\nwindow = "1 KiB"', "too few"),
    ],
)
def test_a_mover_toml_that_is_wrong_says_where(tmp_path, old, new, problem):
    (tmp_path / "vms").mkdir()
    (tmp_path / "mover.toml").write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigurationError, match=problem):
        load_service_config(tmp_path / "mover.toml")
