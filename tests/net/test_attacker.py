"""The target's own say: whoever holds valid certificates of every other role, and knows the whole
protocol, destroys no restore point that the target protects (RULES 17, 19, 20)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from net.nursery import Nursery
from net.sites import TUNED, Sites, ask
from standby.clock import SYSTEM_CLOCK
from standby.errors import (
    CertificateRefused,
    LinkError,
    ProtocolError,
    RefusedByPeer,
    StandbyError,
    error_from_wire,
)
from standby.road.connections import TO_TARGET, new_ticket, ticket_text
from standby.road.naming import new_point_id
from standby.units import MiB
from standby.wire.identity import IdentityFolder
from standby.wire.link import Link
from standby.wire.messages import Attach, Call, Failed

POINTS = 4
ROOT = "data:"
PATH = "data:vm1_replica"
NAME = "vm1_replica"
TRICKS = (
    "data:..", "data:../outside", "data:/etc", "data:vm1_replica/..", "data:./vm1_replica",
    "data:vm1_replica//disk0", "data:vm1_replica\\disk0", "data:link", "data:link/outside",
    "data:C:/x", "other:", "/etc", "", "data:vm1_replica\0",
)  # fmt: skip


@pytest.fixture(scope="module")
def site(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    """Four points, of which the target protects all: by count three, by age each."""
    folder = tmp_path_factory.mktemp("attacked") / "site"
    protect = "keep_points_min = 3\nkeep_days_min = 7"
    tuned = {**TUNED, "standby.road.connections.PARK_S": 2.0}
    more = 'orphan_timeout = "1s"'
    with Sites(folder, nursery, protect=protect, mover=more, tuned=tuned) as made:
        made.add_machine()
        made.fill()
        for _ in range(POINTS):
            made.change()
            made.session()
        outside = folder / "outside"
        outside.mkdir()
        (outside / "precious").write_text("untouched")
        (folder / "target" / "link").symlink_to(outside)
        yield made


@pytest.fixture(autouse=True)
def _protected(site: Sites) -> Iterator[None]:
    """Whatever the test did: the points are there and read right, and nothing else was touched."""
    before = [point.id for point in site.replica().points()]
    yield
    after = [point.id for point in site.replica().points()]
    assert after[: len(before)] == before
    for point in after[len(before) :]:  # forged: it may hold what the attacker likes
        site.points[f"{NAME}/{point}"] = site.points[f"{NAME}/{before[-1]}"]
    site.check_points()
    outside = site.folder / "outside"
    assert [path.name for path in outside.iterdir()] == ["precious"]
    assert (outside / "precious").read_text() == "untouched"


@pytest.fixture
def target(site: Sites) -> Iterator[Link]:
    """A control link to the target's mover, with the server's own certificate."""
    with site.link("dr1", "target") as link:
        yield link
        with contextlib.suppress(StandbyError):
            ask(link, "leave")


def refused(link: Link, verb: str, /, **arguments: Any) -> StandbyError:
    """The error that the mover answers with; a bug of the mover is none."""
    with pytest.raises(StandbyError) as caught:
        ask(link, verb, **arguments)
    assert type(caught.value).__name__ != "MoverFault", caught.value
    return caught.value


def identity(site: Sites, **changes: str) -> dict[str, str]:
    who: dict[str, str] = msgspec.to_builtins(site.replica().record().identity)
    return who | changes


def opened(link: Link, site: Sites, **changes: Any) -> dict[str, Any]:
    """Become the writer, by force."""
    arguments = {
        "root": ROOT,
        "identity": identity(site),
        "wanted": NAME,
        "session": "attack",
        "take_over": True,
        "must_exist": False,
        "expected": "",
    }
    found: dict[str, Any] = ask(link, "open_replica", **(arguments | changes))
    return found


def test_no_retention_goes_below_the_targets_own(site: Sites, target: Link) -> None:
    opened(target, site)
    for keep in (1, 0, -5):
        found = ask(target, "retire_points", path=PATH, keep=keep)
        assert len(found["points"]) == POINTS
        assert "own rules" in found["warnings"][0]


def test_forged_newer_points_push_no_older_one_out(site: Sites, target: Link) -> None:
    opened(target, site)
    replica = site.replica()
    newest = replica.newest()
    assert newest is not None
    machine = msgspec.to_builtins(newest.machine)
    point = new_point_id(SYSTEM_CLOCK, newest.id)
    disks = [
        {"disk_id": disk.disk_id, "place": disk.place, "excluded": True, "root": "",
         "tracker_id": "", "identity": ""}
        for disk in newest.disks
    ]  # fmt: skip
    ask(
        target, "commit_point", path=PATH, point=point, taken_at="2099-01-01T00:00:00Z",
        consistency="offline", session="attack", machine=machine, disks=disks, state_files={},
        changed_bytes=0,
    )  # fmt: skip
    found = ask(target, "retire_points", path=PATH, keep=1)
    assert len(found["points"]) == POINTS + 1


@pytest.mark.parametrize("verb", ["replica_permanent_failover", "replica_undo_failover"])
def test_a_failover_gives_nothing_up(site: Sites, target: Link, verb: str) -> None:
    oldest = site.replica().points()[0].id
    ask(target, "replica_failover", root=ROOT, name=NAME, point=oldest, source_may_run=True)
    try:
        if verb == "replica_permanent_failover":
            refused(target, verb, root=ROOT, name=NAME)
        error = refused(
            target, "open_replica", root=ROOT, identity=identity(site), wanted=NAME,
            session="attack", take_over=True, must_exist=False, expected="",
        )  # fmt: skip
        assert type(error).__name__ == "IllegalTransition"
    finally:
        ask(target, "replica_undo_failover", root=ROOT, name=NAME, drop_writes=True)


def test_nobody_maps_the_files_of_a_replica_into_another_one(site: Sites, target: Link) -> None:
    newest = site.replica().points()[POINTS - 1]
    base = site.replica().chain_paths(newest, newest.disks[0].disk_id)[-1]
    machine = msgspec.to_builtins(newest.machine)
    inside = str(base.relative_to(site.replica().path))
    for number, file in enumerate((inside, f"../{NAME}/{inside}", str(base), "../link/precious")):
        with contextlib.suppress(StandbyError):  # it may say what the replica VM is attached to
            ask(target, "keep_replica_machine", path=PATH, machine=machine,
                ready={newest.disks[0].place: file})  # fmt: skip
        theirs = opened(target, site, identity=identity(site, machine_id=f"{number} evil"))
        disks = [{"id": "disk0", "place": newest.disks[0].place, "page83": ""}]
        with contextlib.suppress(StandbyError):
            ask(target, "register_disks", path=theirs["path"], disks=disks)
        for folder in (NAME, f"../{NAME}", "link", f"./{NAME}"):
            refused(target, "map_machine", path=theirs["path"], folder=folder)
        ask(target, "close_replica", path=theirs["path"])
    ready = {disk.place: f"{disk.disk_id}/ready.vhdx" for disk in newest.disks}
    ask(target, "keep_replica_machine", path=PATH, machine=machine, ready=ready)


def test_no_path_leads_elsewhere(site: Sites, target: Link) -> None:
    for path in TRICKS:
        refused(target, "open_replica", root=path, identity=identity(site), wanted="x",
                session="attack", take_over=True, must_exist=False, expected="")  # fmt: skip
        refused(target, "inspect_replica", path=path)
        refused(target, "replica_list", root=path)
        refused(target, "free_bytes", path=path)
        refused(target, "host_machines", root=path, host="target")
    for name in ("..", "../outside", "link", "/etc", "disk0/../.."):
        refused(target, "replica_permanent_failover", root=ROOT, name=name)
        refused(target, "replica_verify", task="t", root=ROOT, name=name)
    refused(target, "open_replica", root=ROOT, identity=identity(site, machine_id="x"),
            wanted="link", session="attack", take_over=True, must_exist=False,
            expected="")  # fmt: skip
    for wanted in ("../outside/x", "/tmp/x", "..", "C:\\x", "/../../o", "/../out"):
        found = opened(target, site, identity=identity(site, machine_id=wanted), wanted=wanted)
        assert "/" not in found["path"].removeprefix(ROOT)
        ask(target, "close_replica", path=found["path"])


def test_no_disk_is_begun_outside_of_its_replica(site: Sites, target: Link) -> None:
    opened(target, site)
    good = {
        "path": PATH, "disk_id": "disk0", "point": new_point_id(SYSTEM_CLOCK),
        "checkpoint": "c", "virtual_size": 24 * MiB, "logical_sector_size": 512,
        "physical_sector_size": 4096, "page83": "", "has_parent": True, "copy": False,
        "seed": False, "seed_name": "",
    }  # fmt: skip
    bad = [{"disk_id": name} for name in ("..", "../../outside", "a/b", "", "C:", "\0")]
    bad += [{"point": name} for name in ("../x", "", "a/b", "x" * 300)]
    bad += [{"seed": True, "seed_name": name} for name in ("../x", "/etc/passwd", "a\\b")]
    for change in bad:
        error = refused(target, "begin_disk", **(good | change))
        assert isinstance(error, StandbyError)


def test_planted_links_are_not_followed(site: Sites, target: Link) -> None:
    opened(target, site)
    home = site.replica().path
    (home / "disk9").symlink_to(site.folder / "outside")
    (home.parent / "evil_replica").symlink_to(home)
    try:
        refused(
            target, "begin_disk", path=PATH, disk_id="disk9",
            point=new_point_id(SYSTEM_CLOCK), checkpoint="c", virtual_size=MiB,
            logical_sector_size=512, physical_sector_size=4096, page83="", has_parent=False,
            copy=False, seed=False, seed_name="",
        )  # fmt: skip
        refused(target, "inspect_replica", path="data:evil_replica")
        refused(target, "replica_permanent_failover", root=ROOT, name="evil_replica")
    finally:
        (home / "disk9").unlink()
        (home.parent / "evil_replica").unlink()


def test_forged_damage_repairs_nothing(site: Sites, target: Link) -> None:
    newest = site.replica().newest()
    assert newest is not None
    verdicts = msgspec.to_builtins(
        ask(target, "replica_verify", task="verify", root=ROOT, name=NAME)
    )
    for verdict in verdicts:
        verdict["is_ok"] = False
    with contextlib.suppress(StandbyError):
        ask(target, "replica_repair", task="repair", root=ROOT, name=NAME, verdicts=verdicts)


def test_a_mover_has_the_verbs_of_its_roles_only(site: Sites) -> None:
    for name, verb in (
        ("px1", "open_replica"), ("px1", "host_machines"), ("px1", "repository_forget"),
        ("repo", "retire_points"), ("src", "send_disk"), ("dr2", "host_machines"),
        ("dr1", "send_disk"), ("dr1", "repository_forget"), ("dr1", "close"), ("dr1", "__init__"),
    ):  # fmt: skip
        with site.link(name) as link:
            assert isinstance(refused(link, verb), ProtocolError)


@pytest.fixture
def source(site: Sites) -> IdentityFolder:
    """The certificate of a source proxy."""
    return IdentityFolder(site.home("px1") / "identity")


def attached(site: Sites, identity: IdentityFolder, task: str, ticket: str) -> StandbyError:
    """What a source proxy that comes with that ticket is told."""
    with site.link("dr1", "target", identity=identity, host="px1", speaks="source") as link:
        link.send(Attach(task, ticket))
        message, _ = link.receive()
        assert isinstance(message, Failed), message
        return error_from_wire(message.error)


def test_a_source_certificate_is_no_servers(site: Sites, source: IdentityFolder) -> None:
    with pytest.raises((CertificateRefused, RefusedByPeer)):
        with site.link("dr1", "target", identity=source, host="px1"):
            pass
    with site.link("dr1", "target", identity=source, host="px1", speaks="source") as link:
        link.send(Call(1, "retire_points", {"path": PATH, "keep": 1}))
        message, _ = link.receive()
        assert isinstance(message, Failed)
        with pytest.raises(LinkError):
            link.receive()


def test_a_source_needs_the_ticket_that_it_was_given(
    site: Sites, source: IdentityFolder, target: Link
) -> None:
    ours = new_ticket("task", "replica", "disk0", 1, TO_TARGET, "px1", "dr1")
    theirs = new_ticket("task", "replica", "disk0", 1, TO_TARGET, "px2", "dr1")
    attempts = (
        ("task", ticket_text(ours)),  # the server gave none
        ("task", ticket_text(theirs)),
        ("other", ticket_text(ours)),
        ("task", ""),
        ("task", "{}"),
        ("task", ticket_text(ours)[:-2]),
    )
    with ThreadPoolExecutor(len(attempts)) as pool:  # a good one is waited with for a while
        errors = list(pool.map(lambda attempt: attached(site, source, *attempt), attempts))
    for error in errors:
        assert type(error).__name__ in ("TicketRefused", "ProtocolError"), error


def test_a_used_ticket_is_worth_nothing(site: Sites, source: IdentityFolder, target: Link) -> None:
    key = "/".join(identity(site).values())
    disk = site.replica().record().disks[0]
    ticket = new_ticket("told", key, disk.id, 1, TO_TARGET, "px1", "dr1")
    ask_later = Call(
        7, "tell_disk",
        {"path": PATH, "disk_id": disk.id, "virtual_size": 24 * MiB, "task": "told",
         "connection": {"accept": msgspec.to_builtins(ticket)}, "seed_name": "",
         "mapped_from": "", "place": ""},
    )  # fmt: skip
    target.send(ask_later)
    with site.link("dr1", "target", identity=source, host="px1", speaks="source") as link:
        link.send(Attach("told", ticket_text(ticket)))
        link.receive()  # Attached
    target.receive()  # the task ended with its link
    error = attached(site, source, "told", ticket_text(ticket))
    assert type(error).__name__ == "TicketRefused"
    target.send(ask_later)
    message, _ = target.receive()
    assert isinstance(message, Failed)


def test_an_older_generation_of_server_is_fenced_and_a_newer_one_destroys_nothing(
    site: Sites,
) -> None:
    with site.link("dr2", "target") as forged, site.link("dr2", "target") as honest:
        ask(honest, "join", generation=1)
        ask(forged, "join", generation=2**40)
        found = opened(forged, site)
        assert found["state"]["newest"]
        assert len(ask(forged, "retire_points", path=PATH, keep=1)["points"]) >= POINTS
        with pytest.raises(StandbyError):
            ask(honest, "points", path=PATH)
        ask(forged, "close_replica", path=PATH)
    (site.home("dr2") / "state" / "server-generation.json").unlink()  # as its administrator would
    site.start_movers("dr2")
    with site.link("dr2", "target") as honest:
        ask(honest, "join", generation=1)


def test_a_revoked_server_is_out_at_once(site: Sites) -> None:
    identity = site.enrol("server", Path(site.folder / "stolen"), ("server",))
    with site.link("dr1", "target", identity=identity) as link:
        ask(link, "ping")
        site.authority.revoke(identity.facts.serial)
        with site.link("dr1", "target") as ours:
            ask(ours, "install_revocations", revocations=site.authority.revocations())
        with pytest.raises(LinkError):
            ask(link, "retire_points", path=PATH, keep=1)
    with pytest.raises(LinkError), site.link("dr1", "target", identity=identity):
        pass
