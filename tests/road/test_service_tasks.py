"""Tasks without their server: they go on, are joined again, end, give way (RULES 18)."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from road.driving import Session, content, write
from road.plain import WAIT_S, Machine, ManualClock, Server
from standby import killpoints
from standby.errors import (
    Fenced,
    LinkError,
    MoverFenced,
    ProtocolError,
    ReplicaBusy,
    StandbyError,
)
from standby.host.folder import new_machine
from standby.road.event_log import EventLog
from standby.road.host_verbs import HostVerbs
from standby.road.lease import is_processing
from standby.road.replica import ReplicaFolder
from standby.road.target_host import TargetVerbs
from standby.units import MiB

ORPHAN_S = 600


class Pair:
    """A source and a target, and a door that a task of the target can be held at."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.source = Machine("src", folder / "src", clock=self.clock)
        self.target = Machine("dst", folder / "dst", clock=self.clock)
        new_machine(folder / "src", "vm1", {"scsi:0:0": 24 * MiB})
        self.disk = folder / "src" / "vm1" / "disk0.vhdx"
        write(self.disk, 0, 5 * MiB)
        self.replica = ReplicaFolder(folder / "dst" / "vm1_replica")
        self.reached = threading.Event()
        self.may_go = threading.Event()

    def hold(self, point: str = "verified") -> None:
        """Tasks wait at that point until `may_go`."""

        def handler(name: str) -> None:
            if name == point:
                self.reached.set()
                assert self.may_go.wait(WAIT_S)

        killpoints.install(handler)

    def session(self, **more: str) -> Session:
        return Session(self.source, self.target, clock=self.clock, **more)

    def close(self) -> None:
        self.may_go.set()
        killpoints.install(None)
        self.source.close()
        self.target.close()

    def is_open(self) -> bool:
        return is_processing(self.replica)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


def begun(pair: Pair, task: str = "task", **more: str) -> Session:
    """A session whose transfer is held at the target, all bytes sent."""
    session = pair.session(**more)
    session.prepare()
    session.take_checkpoint()
    session.begin()
    pair.hold()
    session.transfer(task)
    assert pair.reached.wait(WAIT_S)
    return session


def gone(pair: Pair, session: Session) -> None:
    """The server is gone, and both movers know."""
    session.close()
    for machine in (pair.source, pair.target):
        while machine.mover._sessions:
            pass


def came_back(pair: Pair, session: Session, server: str = "server") -> None:
    session.source = session.keeper = Server(pair.source, server)
    session.target = Server(pair.target, server)


def test_a_task_goes_on_without_its_server_and_is_joined_again(pair):
    session = begun(pair)
    gone(pair, session)
    came_back(pair, session)
    joined = [
        session.target.start("rejoin", task="task", verb="receive_disk"),
        session.source.start("rejoin", task="task"),
    ]
    again = session.target.start("rejoin", task="task")  # two may wait for one task
    pair.may_go.set()
    session.results(joined)
    assert again.result(WAIT_S) == session.received
    session.release()
    session.commit()
    assert content(pair.replica.chain_paths(pair.replica.newest(), session.disk_id)[0]) == content(
        pair.disk
    )
    session.close()


def test_the_result_of_a_task_that_ended_meanwhile_is_kept(pair):
    session = begun(pair)
    gone(pair, session)
    pair.may_go.set()
    came_back(pair, session)
    session.results(
        [session.target.start("rejoin", task="task"), session.source.start("rejoin", task="task")]
    )
    assert session.target.call("rejoin", task="task") == session.received
    session.target.call("forget_task", task="task")
    with pytest.raises(LinkError, match="not known"):
        session.target.call("rejoin", task="task")
    session.close()


def test_the_error_of_a_task_is_kept_too(pair):
    session = pair.session()
    session.prepare()
    session.take_checkpoint()
    at_target, _ = session.tickets("task", replica="other")
    with pytest.raises(StandbyError, match="refused"):
        session.receive("task", at_target).result(WAIT_S)
    gone(pair, session)
    came_back(pair, session)
    with pytest.raises(StandbyError, match="refused"):
        session.target.call("rejoin", task="task")
    session.close()


def test_a_task_that_is_asked_for_twice_runs_once(pair):
    session = begun(pair)
    at_target, _ = session.tickets("task")
    again = session.receive("task", at_target)
    pair.may_go.set()
    assert again.result(WAIT_S) == session.target.call("rejoin", task="task")
    session.close()


def test_a_task_nobody_knows_cannot_be_joined(pair):
    server = Server(pair.target)
    with pytest.raises(LinkError, match="not known"):
        server.call("rejoin", task="never")
    server.close()


def test_a_task_of_both_ends_on_one_mover_is_named_with_its_verb(pair, tmp_path):
    both = Machine("one", tmp_path / "one", clock=pair.clock)
    new_machine(tmp_path / "one" / "vms", "vm1", {"scsi:0:0": 8 * MiB})
    server = Server(both)
    tasks = both.mover._tasks
    for verb in ("send_disk", "receive_disk"):
        with pytest.raises(ProtocolError):
            server.call(verb, task="task")
    assert len(list(tasks)) == 2
    with pytest.raises(ProtocolError, match="say which"):
        server.call("rejoin", task="task")
    with pytest.raises(ProtocolError):
        server.call("rejoin", task="task", verb="send_disk")
    server.close()
    both.close()


def checkpoints_held(machine: Machine) -> int:
    return sum(len(role._held) for role in machine.mover._roles if isinstance(role, HostVerbs))


# --- what is left behind -------------------------------------------------------------------------


def test_what_a_server_left_is_closed_after_a_while(pair):
    session = begun(pair)
    assert checkpoints_held(pair.source) == 1
    gone(pair, session)
    pair.clock.advance(ORPHAN_S + 1)
    assert pair.target.mover.close_orphans() == []  # its task still runs
    pair.may_go.set()
    while any(task.is_running for task in pair.target.mover._tasks):
        pass
    assert pair.target.mover.close_orphans() == []  # from its end on it counts
    assert pair.is_open()
    pair.clock.advance(ORPHAN_S + 1)
    # The mover looks by itself too: whoever comes first closes it.
    pair.target.mover.close_orphans()
    pair.source.mover.close_orphans()
    while pair.is_open() or checkpoints_held(pair.source):
        pass
    assert list(pair.target.mover._tasks) == []  # old results are dropped


def test_what_a_connected_server_has_open_stays_open(pair):
    session = pair.session()
    session.prepare()
    pair.clock.advance(10 * ORPHAN_S)
    assert pair.target.mover.close_orphans() == []
    assert pair.is_open()
    session.close()


def test_a_new_session_need_not_wait_for_one_without_a_server(pair):
    old = begun(pair)
    gone(pair, old)
    new = pair.session()
    opened = threading.Thread(target=new.prepare, daemon=True)
    opened.start()
    while not pair.target.mover.connections._links.get("task"):
        pass
    pair.may_go.set()  # it was past its last byte: it may end, or is cut off
    opened.join(WAIT_S)
    assert new.path == "data:vm1_replica"
    assert new.point == old.point  # what it sent is there
    new.take_checkpoint()
    assert new.begin()["acknowledged"] >= 5 * MiB
    new.close()


def test_a_session_with_a_server_is_not_pushed_aside(pair):
    one, other = pair.session(), pair.session(server="server2")
    one.prepare()
    with pytest.raises(ReplicaBusy):
        other.prepare()
    other.prepare(take_over=True)
    with pytest.raises((Fenced, ProtocolError)):
        one.target.call("older_trackers", path="data:other")
    one.close()
    other.close()


def test_a_session_is_ended_by_name(pair):
    session = begun(pair, session="s1")
    other = pair.session(session="s2")
    ended = session.target.start("end_session", session="s1")
    pair.may_go.set()
    assert ended.result(WAIT_S) == ["data:vm1_replica"]
    assert not pair.is_open()
    other.prepare()
    assert session.target.call("end_session", session="s1") == []
    assert pair.is_open()
    session.close()
    other.close()


def test_a_crew_is_ended_without_the_rest_of_its_session(pair):
    server = Server(pair.target)
    failing = server.start(
        "tell_disk",
        crew="vm1",
        task="t",
        connection={"accept": {}},
        path="data:x",
        disk_id="d",
        virtual_size=1,
        seed_name="",
        mapped_from="",
        place="",
    )
    with pytest.raises(ProtocolError):
        failing.result(WAIT_S)
    (told,) = server.call("tasks")
    assert told == {"task": "t", "verb": "tell_disk", "session": "vm1", "is_running": False}
    with pytest.raises(ProtocolError, match="which session"):
        server.call("end_session", session="")
    server.close()


def test_a_server_that_leaves_leaves_nothing(pair):
    session = pair.session()
    session.prepare()
    session.take_checkpoint()
    assert session.target.call("leave") == ["data:vm1_replica"]
    (checkpoint,) = session.source.call("leave")
    assert checkpoint.startswith("checkpoint")
    assert not pair.is_open()
    session.close()


def test_a_task_is_cancelled(pair):
    session = pair.session()
    session.prepare()
    session.take_checkpoint()
    session.begin()
    at_target, _ = session.tickets("task")
    waiting = session.receive("task", at_target)
    while not pair.target.mover.connections._waiting:
        pass
    session.target.call("cancel", task="task")
    with pytest.raises(LinkError, match="was ended"):
        waiting.result(WAIT_S)
    assert pair.is_open()
    session.close()


def test_a_mover_that_ends_closes_all_clean(pair, tmp_path):
    session = begun(pair)
    closing = threading.Thread(target=pair.target.close, daemon=True)
    closing.start()
    pair.may_go.set()
    closing.join(WAIT_S)
    assert not closing.is_alive()
    assert not pair.is_open()
    session.close()
    pair.target = Machine("dst", tmp_path / "dst", clock=pair.clock)
    again = pair.session()
    again.prepare()
    assert again.point == session.point
    again.take_checkpoint()
    assert again.begin()["acknowledged"] >= 5 * MiB
    again.close()


# --- servers -------------------------------------------------------------------------------------


def test_an_older_server_is_fenced(pair, tmp_path):
    old, new = Server(pair.target, "old"), Server(pair.target, "new")
    assert old.call("join", generation=1)["name"] == "dst"
    new.call("join", generation=2)
    with pytest.raises((MoverFenced, LinkError)):
        old.call("points", path="data:vm1_replica")
    again = Server(pair.target, "old")
    assert again.call("ping") == "dst"
    with pytest.raises(MoverFenced, match="generation 2"):
        again.call("join", generation=1)
    with pytest.raises(MoverFenced):
        again.call("replica_list", root="data:")
    assert new.call("replica_list", root="data:") == {"replicas": [], "unreadable": {}}
    for server in (old, new, again):
        server.close()
    pair.target.close()
    pair.target = Machine("dst", tmp_path / "dst", clock=pair.clock)  # it remembers
    late = Server(pair.target, "old")
    with pytest.raises(MoverFenced):
        late.call("join", generation=1)
    late.close()


def test_a_command_line_is_no_older_server_and_fences_none(pair):
    server, guest = Server(pair.target, "server"), Server(pair.target, "server")
    server.call("join", generation=5)
    guest.call("join", generation=0)
    empty = {"replicas": [], "unreadable": {}}
    assert guest.call("replica_list", root="data:") == empty
    newer = Server(pair.target, "server")
    newer.call("join", generation=6)
    assert guest.call("replica_list", root="data:") == empty
    assert newer.call("replica_list", root="data:") == empty
    with pytest.raises((MoverFenced, LinkError)):
        server.call("replica_list", root="data:")
    for each in (server, guest, newer):
        each.close()


def test_only_so_many_servers_are_served(pair):
    servers = [Server(pair.target, f"s{number}") for number in range(16)]
    for server in servers:
        assert server.call("ping") == "dst"
    refused = Server(pair.target, "s16")
    with pytest.raises(LinkError):
        refused.call("ping")
    for server in (*servers, refused):
        server.close()


def test_a_bug_in_a_verb_is_told_and_ends_nothing(pair, monkeypatch):
    monkeypatch.setattr(type(pair.target.mover._places), "path", lambda self, text: 1 / 0)
    server = Server(pair.target)
    with pytest.raises(StandbyError, match="ZeroDivisionError"):
        server.call("inspect_replica", path="data:x")
    assert server.call("ping") == "dst"
    server.close()


def test_an_answer_that_fits_no_frame_is_an_error(pair, monkeypatch):
    monkeypatch.setitem(pair.target.mover._own, "ping", lambda owner: b"x" * (17 * MiB))
    server = Server(pair.target)
    with pytest.raises(ProtocolError, match="exceeds"):
        server.call("ping")
    server.close()


@pytest.mark.parametrize("verb", ["nonsense", "", "send_disk"])
def test_a_call_that_makes_no_sense_is_refused(pair, verb):
    server = Server(pair.target)
    with pytest.raises(ProtocolError):
        server.call(verb)
    with pytest.raises(ProtocolError):
        server.call("free_bytes", path="data:", more=1)
    server.close()


def test_events_are_lines_of_json():
    stream = io.StringIO()
    log = EventLog(stream, as_json=True, clock=ManualClock())
    log.say("task begun", task="vm scsi:0:0 ab", session="s1")
    line = json.loads(stream.getvalue())
    assert (line["event"], line["task"], line["session"]) == ("task begun", "vm scsi:0:0 ab", "s1")
    assert line["at"].endswith("+00:00")


def test_events_for_people_stay_on_their_line():
    stream = io.StringIO()
    log = EventLog(stream)
    log.say("failed", text="two\nlines", task="a b", empty="")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith('failed text="two\\nlines" task="a b"')
    EventLog(None).say("nobody listens")


def test_results_are_bounded(monkeypatch):
    from standby.road import tasks as module
    from standby.road.owners import Owner

    monkeypatch.setattr(module, "TASKS_MAX", 3)
    tasks = module.Tasks(ManualClock())
    owner = Owner("server")
    for number in range(3):
        task = tasks.begin("verb", f"t{number}", "", owner, lambda result, error: None)
        if number != 1:
            tasks.end(task, number, None)
    assert tasks.begin("verb", "t3", "", owner, lambda result, error: None)
    assert [task.name for task in tasks] == ["t1", "t2", "t3"]
    assert tasks.begin("verb", "t4", "", owner, lambda result, error: None)
    with pytest.raises(LinkError, match="run here already"):
        tasks.begin("verb", "t5", "", owner, lambda result, error: None)


def test_builtin_types_survive_the_way(pair):
    server = Server(pair.target)
    told = server.call("describe")
    assert msgspec.convert(told["roots"], dict[str, str]) == {"data": str(pair.target.folder)}
    server.close()


def test_a_server_that_is_back_keeps_what_it_names(pair):
    session = pair.session(session="s1")
    session.prepare()
    gone(pair, session)
    came_back(pair, session)
    session.target.call("keep_session", session="s1")
    pair.clock.advance(ORPHAN_S + 1)
    assert pair.target.mover.close_orphans() == []
    assert pair.is_open()
    session.close()


def test_a_replica_that_its_server_did_not_come_back_to_is_closed(pair):
    session = pair.session()
    session.prepare()
    gone(pair, session)
    came_back(pair, session)
    pair.target.mover.close_orphans()
    assert pair.is_open()
    # A person's verb does not push it aside while its server is there: the session may go on.
    with pytest.raises(StandbyError):
        session.target.call(
            "replica_undo_failover", root="data:", name="vm1_replica", drop_writes=True
        )
    assert pair.is_open()
    pair.clock.advance(ORPHAN_S + 1)
    pair.target.mover.close_orphans()
    while pair.is_open():
        pass
    session.close()


def test_a_joined_task_is_not_pushed_aside_any_more(pair):
    session = begun(pair)
    gone(pair, session)
    came_back(pair, session)
    joined = [
        session.target.start("rejoin", task="task", verb="receive_disk"),
        session.source.start("rejoin", task="task", verb="send_disk"),
    ]
    (target,) = [role for role in pair.target.mover._roles if isinstance(role, TargetVerbs)]
    while target.replicas.held("data:vm1_replica").owner.is_gone:
        pass
    other = pair.session(server="server2")
    with pytest.raises(ReplicaBusy):
        other.prepare()
    pair.may_go.set()
    session.results(joined)
    session.close()
    other.close()
